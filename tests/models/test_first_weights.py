"""First weights of one body or several: from files of both stages, from torchvision, or drawn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torchvision

from petface.errors import SettingsError
from petface.models import backbones, checkpoints
from petface.models.architecture import Architecture, build_body, build_classifier
from petface.models.checkpoints import CheckpointError
from petface.models.first_weights import initialise_body
from petface.models.multi_body import bodies_of
from petface.models.multi_head import _MultiHeadModel
from tests import reference_networks as reference

SMALL = "mobilenet_v3_small"
TWO = Architecture(SMALL, bodies=2)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """Where a checkpoint of 45 MB goes; deleted after the test."""
    path = tmp_path / "chinchilla_best.pt"
    yield path
    path.unlink(missing_ok=True)


@pytest.mark.parametrize("prefix", ["body.", ""])
def test_first_weights_from_a_file(prefix: str, file: Path) -> None:
    """A specialist's body, and a stage-1 checkpoint with its own classifier."""
    state = {prefix + name: tensor for name, tensor in reference.resnet18_body().items()}
    last = "heads.gender.weight" if prefix else "fc.weight"
    reference.write(file, {"model": {**state, last: torch.zeros(2, 512)}})
    body = backbones.build_body("resnet18")
    told = initialise_body(body, "resnet18", str(file), "auto")
    assert told == "file chinchilla_best.pt"
    for name, tensor in body.state_dict().items():
        assert torch.equal(tensor, reference.resnet18_body()[name]), name


@pytest.mark.parametrize(("weights", "policy"), [("none", "require"), ("no/such.pt", "none")])
def test_no_first_weights(weights: str, policy: str) -> None:
    body = torch.nn.Linear(2, 2)
    before = body.weight.clone()
    assert initialise_body(body, "resnet18", weights, policy) == "random"
    assert torch.equal(body.weight, before)


def test_first_weights_that_do_not_fit(file: Path) -> None:
    reference.write(file, {"model": {"conv1.weight": torch.zeros(64, 3, 7, 7)}})
    body = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"chinchilla_best\.pt: does not fit a resnet18"):
        initialise_body(body, "resnet18", str(file), "auto")


def written(folder: Path, architecture: Architecture, seed: int) -> tuple[Path, Path]:
    """A stage 1 and a specialist for cats, as trainers leave them, with different weights."""
    torch.manual_seed(seed)
    one = build_classifier(architecture, 3)
    two = _MultiHeadModel({"breed": 4}, architecture)
    paths = folder / f"best{seed}.pt", folder / f"cat_best{seed}.pt"
    for path, model in zip(paths, (one, two), strict=True):
        checkpoints.save(path, {**architecture.stored(), "model": model.state_dict()})
    return paths


def is_of(body: torch.nn.Module, path: Path, prefix: str = "") -> bool:
    """Whether all weights of a body are those of a file."""
    stored = checkpoints.load(path)["model"]
    return all(torch.equal(t, stored[prefix + name]) for name, t in body.state_dict().items())


def test_bodies_of_a_hierarchy_begin_with_their_own_files(tmp_path: Path) -> None:
    """One trained on species, one on breeds."""
    stage1, stage2 = written(tmp_path, Architecture(SMALL), 0)
    network = build_body(TWO)
    weights = (str(stage1), str(tmp_path / "{species}_best0.pt"))
    told = initialise_body(network, SMALL, weights, "require", "cat")
    assert told == "file best0.pt + file cat_best0.pt"
    first, second = bodies_of(network)
    assert is_of(first, stage1) and is_of(second, stage2, "body.")
    assert not is_of(first, stage2, "body.")


def test_one_file_is_duplicated(tmp_path: Path) -> None:
    stage1, stage2 = written(tmp_path, Architecture(SMALL), 0)
    model = _MultiHeadModel({"breed": 4}, Architecture(SMALL, bodies=3))
    assert initialise_body(model.body, SMALL, str(stage1), "auto") == "file best0.pt"
    assert all(is_of(body, stage1) for body in bodies_of(model.body))
    assert initialise_body(model.body, SMALL, str(stage2), "auto") == "file cat_best0.pt"
    assert all(is_of(body, stage2, "body.") for body in bodies_of(model.body))


def test_a_file_of_several_bodies_fills_as_many(tmp_path: Path) -> None:
    stage1, stage2 = written(tmp_path, TWO, 0)
    network = build_classifier(TWO, 9)
    initialise_body(network, SMALL, str(stage1), "auto")
    assert all(is_of(b, stage1, f"bodies.{k}.") for k, b in enumerate(bodies_of(network)))
    initialise_body(network, SMALL, str(stage2), "auto")
    assert all(is_of(b, stage2, f"body.bodies.{k}.") for k, b in enumerate(bodies_of(network)))
    with pytest.raises(CheckpointError, match=r"best0\.pt: has 2 bodies, but is to fill 1"):
        initialise_body(network, SMALL, (str(stage1), str(stage1)), "auto")
    with pytest.raises(CheckpointError, match="has 2 bodies, but is to fill 3"):
        initialise_body(build_body(Architecture(SMALL, bodies=3)), SMALL, str(stage1), "auto")


def test_untrained_bodies_differ_and_a_list_may_mix(tmp_path: Path) -> None:
    stage1, _ = written(tmp_path, Architecture(SMALL), 0)
    network = build_body(TWO)
    before = [body.features[0][0].weight.clone() for body in bodies_of(network)]
    assert not torch.equal(*before)
    assert initialise_body(network, SMALL, "none", "auto") == "random"
    told = initialise_body(network, SMALL, ("none", str(stage1)), "auto")
    assert told == "random + file best0.pt"
    first, second = bodies_of(network)
    assert torch.equal(first.features[0][0].weight, before[0]) and is_of(second, stage1)


@pytest.mark.parametrize("policy", ["auto", "none"])
@pytest.mark.parametrize("weights", [(), ("none",), ("none", "none", "torchvision")])
def test_a_list_of_another_length_is_refused(weights: tuple[str, ...], policy: str) -> None:
    with pytest.raises(
        SettingsError, match=f"WEIGHTS is a list of {len(weights)}, but BODIES is 2"
    ):
        initialise_body(build_body(TWO), SMALL, weights, policy)


def test_a_list_of_one_is_for_one_body(tmp_path: Path) -> None:
    stage1, _ = written(tmp_path, Architecture(SMALL), 0)
    body = build_body(Architecture(SMALL))
    assert initialise_body(body, SMALL, (str(stage1),), "auto") == "file best0.pt"
    assert is_of(body, stage1)


@pytest.mark.parametrize("name", backbones.BACKBONES)
def test_attention_stays_as_drawn_where_the_weights_have_none(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.device("meta"):
        shapes = torchvision.models.get_model(name, weights=None).state_dict()
    given = {key: torch.full(t.shape, 0.25, dtype=t.dtype) for key, t in shapes.items()}
    enum = torchvision.models.get_model_weights(name)
    monkeypatch.setattr(enum.DEFAULT, "get_state_dict", lambda **_: given)
    body = build_body(Architecture(name, attention="se", bodies=2))
    told = initialise_body(body, name, "torchvision", "require")
    assert told == f"torchvision {enum.DEFAULT}"
    for one in bodies_of(body):
        others = {key for key, t in one.state_dict().items() if key not in given}
        assert len(others) == 4 and all("fc" in key for key in others)
        assert all(bool((p == 0.25).all()) for key, p in one.named_parameters() if key in given)


def test_without_a_network_the_second_body_does_not_wait_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def unreachable(*_: object, **__: object) -> None:
        asked.append(1)
        raise OSError("network is unreachable")

    default = torchvision.models.get_model_weights(SMALL).DEFAULT
    monkeypatch.setattr(default, "get_state_dict", unreachable)
    assert "unreachable" in initialise_body(build_body(TWO), SMALL, "torchvision", "auto")
    assert len(asked) == 1


def test_attention_that_the_network_does_not_have_is_refused(tmp_path: Path) -> None:
    stage1, _ = written(tmp_path, Architecture(SMALL, attention="se"), 0)
    body = build_body(Architecture(SMALL, attention="se"))
    initialise_body(body, SMALL, str(stage1), "auto")
    assert is_of(body, stage1)
    with pytest.raises(CheckpointError, match=r"does not fit a mobilenet_v3_small.*features\.13"):
        initialise_body(build_body(Architecture(SMALL)), SMALL, str(stage1), "auto")
