"""The one way to a model: every kind of file, what it says of itself, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from petface.data.images import Preprocessing
from petface.errors import SettingsError, UserError
from petface.files import sha256_of_file
from petface.inference.loading import (
    AveragedViews,
    ComputeOptions,
    describe_model,
    find_model,
    find_specialist,
    load_stage,
    views_of,
)
from petface.models import checkpoints
from petface.models.checkpoints import CheckpointError
from petface.models.network import Network
from tests.inference.made_stages import COLOURS, write_chinchilla

RULE = Preprocessing(32, "stretch", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
EXACT = ComputeOptions("cpu", "fp32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A specialist for chinchillas where its run leaves it, whose gender alone is calibrated."""
    folder = tmp_path_factory.mktemp("models")
    write_chinchilla(folder, RULE)
    path = folder / "chinchilla" / "chinchilla_best.pt"
    calibration = {"gender": {"temperature": 2.0}}
    checkpoints.save(path, {**checkpoints.load(path), "calibration": calibration})
    return folder


@pytest.fixture
def specialist(folder: Path) -> Path:
    return folder / "chinchilla" / "chinchilla_best.pt"


def test_a_stage_knows_its_names_and_obeys_its_options(specialist: Path) -> None:
    stage = load_stage(specialist, "chinchilla", EXACT)
    assert isinstance(stage.network, Network) and stage.network.preprocessing == RULE
    assert list(stage.names.items()) == [("color1", COLOURS), ("gender", ("female", "male"))]
    assert stage.network.temperatures == (1.0, 2.0)
    assert set(stage.sources.values()) == {"checkpoint"} and stage.species == "chinchilla"
    views = load_stage(specialist, "chinchilla", ComputeOptions("cpu", "fp32", views="flip"))
    assert isinstance(views.network, AveragedViews) and views.network.views == "flip"


def test_a_model_describes_its_file_its_classes_and_its_calibration(specialist: Path) -> None:
    described = json.loads(json.dumps(describe_model(specialist, "chinchilla")))
    assert described["path"] == str(specialist)
    assert described["sha256"] == sha256_of_file(specialist)
    assert described["heads"] == {"color1": list(COLOURS), "gender": ["female", "male"]}
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


PIXELS = torch.randint(0, 256, (5, 32, 32, 3), generator=torch.Generator().manual_seed(0)).to(
    torch.uint8
)


def network_of():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    model = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    return Network.for_inference(model.eval(), Preprocessing(32), "cpu", "fp32", (2.0,))


def test_flip_is_the_mirror_image_and_five_are_the_corners():
    same, mirror = views_of(PIXELS, "flip")
    assert same is PIXELS
    assert np.array_equal(
        mirror[2].numpy(),
        np.asarray(Image.fromarray(PIXELS[2].numpy()).transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    )
    five = views_of(PIXELS, "five")
    assert len(five) == 5 and five[0] is PIXELS
    assert all(view.shape == PIXELS.shape and view.dtype == torch.uint8 for view in five)
    corners = [(0, 0), (4, 0), (0, 4), (4, 4)]  # left, top
    for view, (x, y) in zip(five[1:], corners, strict=True):
        whole = Image.fromarray(PIXELS[1].numpy())
        wanted = whole.resize((32, 32), Image.Resampling.BILINEAR, box=(x, y, x + 28, y + 28))
        away = np.abs(view[1].numpy().astype(int) - np.asarray(wanted).astype(int))
        # Pillow looks a little beyond the box at its border
        assert away[2:-2, 2:-2].max() <= 1
    assert views_of(PIXELS, "none") == [PIXELS]


@pytest.mark.parametrize("views", ["flip", "five"])
def test_logits_are_the_mean_over_the_views(views):
    network = network_of()
    (found,) = AveragedViews(network, views).answer_pixels(PIXELS)
    wanted = torch.stack([network.answer_pixels(v)[0] for v in views_of(PIXELS, views)]).mean(0)
    torch.testing.assert_close(found, wanted)
    assert (found - network.answer_pixels(PIXELS)[0]).abs().max() > 1e-4


def test_what_is_around_the_network_is_the_networks():
    network = AveragedViews(network_of(), "flip")
    assert network.temperatures == (2.0,) and network.preprocessing == Preprocessing(32)
