"""The one way to a model: every kind of file, what it says of itself, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from petface.data.images import Preprocessing
from petface.errors import SettingsError, UserError
from petface.files import sha256_of_file
from petface.inference.loading import (
    ComputeOptions,
    describe_model,
    find_model,
    find_specialist,
    load_stage,
)
from petface.inference.views import AveragedViews
from petface.models import checkpoints
from petface.models.checkpoints import CheckpointError
from petface.models.network import Network
from tests import reference_networks as reference

RULE = Preprocessing(32, "stretch", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
HEADS = reference.linear_heads(color1=4, gender=2)
EXACT = ComputeOptions("cpu", "fp32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A specialist for chinchillas where its run leaves it, whose gender alone is calibrated."""
    folder = tmp_path_factory.mktemp("models")
    checkpoints.save(
        folder / "chinchilla" / "chinchilla_best.pt",
        {
            "model": reference.stored(HEADS),
            "species": "chinchilla",
            "head_vocabs": {"color1": list("abcd"), "gender": ["female", "male"]},
            "preprocessing": RULE.to_dict(),
            "calibration": {"gender": {"temperature": 2.0}},
        },
    )
    return folder


@pytest.fixture
def specialist(folder: Path) -> Path:
    return folder / "chinchilla" / "chinchilla_best.pt"


def test_a_stage_predicts_as_by_hand(specialist: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (9, 32, 32, 3), generator=draw, dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (RULE.mean, RULE.std))
    x = (pixels.permute(0, 3, 1, 2) / 255 - mean) / std
    wanted = reference.reference_logits(x, HEADS)
    stage = load_stage(specialist, "chinchilla", EXACT)
    assert isinstance(stage.network, Network)
    assert stage.names == {"color1": tuple("abcd"), "gender": ("female", "male")}
    assert list(stage.names) == list(wanted) and stage.network.temperatures == (1.0, 2.0)
    assert set(stage.sources.values()) == {"checkpoint"} and stage.species == "chinchilla"
    for found, expected in zip(stage.network.answer_pixels(pixels), wanted.values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    views = load_stage(specialist, "chinchilla", ComputeOptions("cpu", "fp32", views="flip"))
    assert isinstance(views.network, AveragedViews) and views.network.views == "flip"


def test_a_model_describes_its_file_its_classes_and_its_calibration(specialist: Path) -> None:
    described = json.loads(json.dumps(describe_model(specialist, "chinchilla")))
    assert described["path"] == str(specialist)
    assert described["sha256"] == sha256_of_file(specialist)
    assert described["heads"] == {"color1": list("abcd"), "gender": ["female", "male"]}
    assert list(described["calibration"]) == ["gender"]
    assert Preprocessing.from_dict(described["preprocessing"]) == RULE


def test_where_a_specialist_is_found(folder: Path, specialist: Path, tmp_path: Path) -> None:
    for place in (folder, str(folder / "chinchilla"), specialist):
        assert find_specialist("chinchilla", place) == specialist
        assert find_model(place, "chinchilla") == specialist
    for place in (tmp_path, tmp_path / "missing"):
        assert find_specialist("chinchilla", place) is None
    with pytest.raises(CheckpointError, match=r"holds no yak_best\.pt; train"):
        load_stage(folder, "yak", EXACT)
    with pytest.raises(CheckpointError, match=r"chinchilla_best\.pt: .*chinchilla, not for cat"):
        load_stage(specialist, "cat", EXACT)
    assert find_model("runs/best.pt", None) == Path("runs/best.pt")


@pytest.mark.parametrize(
    "species", ["../chinchilla", "..", ".", "", "/etc", "chinchilla/../chinchilla", "a/b", "a\0b"]
)
def test_species_that_lead_elsewhere_are_refused(
    folder: Path, specialist: Path, species: str
) -> None:
    for place in (folder, folder / "chinchilla", specialist):
        with pytest.raises(UserError, match="must be a plain name"):
            load_stage(place, species, EXACT)


def test_options_resolve_auto_and_refuse_a_device_that_is_missing() -> None:
    options = ComputeOptions.choose(None, "auto")
    assert options.device in ("cpu", "cuda") and options.precision in ("fp32", "bf16", "fp16")
    assert ComputeOptions.choose("cpu") == EXACT
    with pytest.raises(UserError, match="DEVICE 'nonsense'"):
        ComputeOptions.choose("nonsense")


def test_exported_models_bring_their_precision_along() -> None:
    with pytest.raises(SettingsError, match="as they were exported"):
        ComputeOptions.choose("cpu", "bf16", stage1="bundle/stage1.onnx")
    options = ComputeOptions.choose("cpu", "auto", stage1="bundle/stage1.onnx")
    assert (options.engine, options.precision) == ("onnxruntime", "exported")


def test_whatever_moves_a_prediction_is_part_of_the_identity() -> None:
    assert EXACT.identity()["packages"] == {"torch": torch.__version__}
    others = [
        ComputeOptions("cpu", "bf16"),
        ComputeOptions("cpu", "fp32", compiled=True),
        ComputeOptions("cpu", "fp32", views="flip"),
        ComputeOptions("cuda", "fp32"),
    ]
    assert len({json.dumps(options.identity()) for options in (EXACT, *others)}) == 5
