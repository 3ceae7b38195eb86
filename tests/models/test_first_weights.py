"""First weights of one body or several: from files of both stages, from torchvision, or drawn."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torchvision

from petface.data.images import Preprocessing
from petface.errors import SettingsError, UserError
from petface.models import backbones, checkpoints
from petface.models.architecture import (
    Architecture,
    _MultiHeadModel,
    bodies_of,
    build_body,
    build_classifier,
    head_of,
)
from petface.models.checkpoints import CheckpointError
from petface.models.first_weights import initialise, initialise_body

SMALL = "mobilenet_v3_small"
TWO = Architecture(SMALL, bodies=2)


def written(folder: Path, architecture: Architecture) -> tuple[Path, Path]:
    """A stage 1 and a specialist for cats, as trainers leave them, with different weights."""
    torch.manual_seed(0)
    one = build_classifier(architecture, 3)
    two = _MultiHeadModel({"breed": 4}, architecture)
    paths = folder / "best.pt", folder / "cat_best.pt"
    for path, model in zip(paths, (one, two), strict=True):
        checkpoints.save(path, {**architecture.stored(), "model": model.state_dict()})
    return paths


def is_of(body: torch.nn.Module, path: Path, prefix: str = "") -> bool:
    """Whether all weights of a body are those of a file."""
    stored = checkpoints.load(path)["model"]
    return all(torch.equal(t, stored[prefix + name]) for name, t in body.state_dict().items())


def test_each_body_begins_with_its_own_file_or_all_with_one(tmp_path: Path) -> None:
    """One trained on species, one on breeds; a file fills any number of bodies."""
    stage1, stage2 = written(tmp_path, Architecture(SMALL))
    network = build_body(TWO)
    weights = (str(stage1), str(tmp_path / "{species}_best.pt"))
    told = initialise_body(network, SMALL, weights, "require", "cat")
    assert told == "file best.pt + file cat_best.pt"
    first, second = bodies_of(network)
    assert is_of(first, stage1) and is_of(second, stage2, "body.")
    assert not is_of(first, stage2, "body.")
    assert initialise_body(network, SMALL, str(stage1), "auto") == "file best.pt"
    assert all(is_of(body, stage1) for body in bodies_of(network))
    single = build_body(Architecture(SMALL))
    assert initialise_body(single, SMALL, (str(stage2),), "auto") == "file cat_best.pt"
    assert is_of(single, stage2, "body.")


@pytest.mark.parametrize("backbone", ["resnet18", SMALL])
def test_a_file_of_several_bodies_fills_as_many(tmp_path: Path, backbone: str) -> None:
    two = Architecture(backbone, bodies=2)
    stage1, stage2 = written(tmp_path, two)
    network = build_classifier(two, 9)
    for path, prefix in ((stage1, ""), (stage2, "body.")):
        initialise_body(network, backbone, str(path), "auto")
        pairs = enumerate(bodies_of(network))
        assert all(is_of(body, path, f"{prefix}bodies.{k}.") for k, body in pairs)
    for num in (1, 3) if backbone == SMALL else ():
        with pytest.raises(CheckpointError, match=f"has 2 bodies, but is to fill {num}"):
            initialise_body(build_body(Architecture(SMALL, bodies=num)), SMALL, str(stage1), "auto")


@pytest.mark.parametrize("species", ["", "cat"])
@pytest.mark.parametrize("hidden", [0, 5])
def test_a_class_more_keeps_the_rows_of_the_known_ones(
    tmp_path: Path, species: str, hidden: int
) -> None:
    """Whatever their order; a head of another shape or of another species stays drawn."""
    architecture, head = Architecture(SMALL, hidden=hidden), "breed" if species else "species"

    def network(classes: list[str], like: Architecture = architecture) -> torch.nn.Module:
        return (
            _MultiHeadModel({head: len(classes)}, like)
            if species
            else build_classifier(like, len(classes))
        )

    before, now = ["ant", "bee", "cow"], ["bee", "ape", "cow", "ant"]
    old, path = network(before), tmp_path / "best.pt"
    vocabularies = (
        {"head_vocabs": {head: before}, "species": species}
        if species
        else {"class_to_index": {name: k for k, name in enumerate(before)}}
    )
    checkpoints.save(
        path,
        {
            **architecture.stored(),
            **vocabularies,
            "model": old.state_dict(),
            "preprocessing": Preprocessing().to_dict(),
        },
    )
    drawn = network(now)
    first = head_of(drawn, head).state_dict()["4.weight" if hidden else "weight"][1].clone()
    told = initialise(drawn, str(path), "auto", {head: now}, species)
    assert told == f"file best.pt, heads as in the file for 3 of 4 classes of {head}"
    own, stored = (head_of(net, head).state_dict() for net in (drawn, old))
    last = [key for key in own if own[key].shape[0] == 4]
    for key in own:
        of = [1, 2, 0] if key in last else slice(None)
        assert torch.equal(own[key][[0, 2, 3]] if key in last else own[key], stored[key][of])
    assert torch.equal(own[last[0]][1], first)
    other = network(now, Architecture(SMALL, hidden=3))
    assert initialise(other, str(path), "auto", {head: now}, species) == "file best.pt"
    assert initialise(drawn, str(path), "auto", {head: now}, "dog") == "file best.pt"


def test_untrained_bodies_differ_and_a_list_has_one_source_for_each(tmp_path: Path) -> None:
    stage1, _ = written(tmp_path, Architecture(SMALL))
    network = build_body(TWO)
    before = [body.features[0][0].weight.clone() for body in bodies_of(network)]
    assert not torch.equal(*before)
    for weights, policy in (("none", "require"), ("no/such.pt", "none")):
        assert initialise_body(network, SMALL, weights, policy) == "random"
    told = initialise_body(network, SMALL, ("none", str(stage1)), "auto")
    assert told == "random + file best.pt"
    first, second = bodies_of(network)
    assert torch.equal(first.features[0][0].weight, before[0]) and is_of(second, stage1)
    for wrong in ((), ("none",), ("none", "none", "torchvision")):
        for policy in ("auto", "none"):
            with pytest.raises(SettingsError, match=f"a list of {len(wrong)}, but BODIES is 2"):
                initialise_body(network, SMALL, wrong, policy)


@pytest.mark.parametrize("name", backbones.BACKBONES)
def test_imagenet_weights_fill_all_but_the_attention_they_do_not_have(
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


def test_weights_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second body does not wait for the network again."""
    patience, before = [], socket.getdefaulttimeout()

    def unreachable(*_: object, **__: object) -> None:
        patience.append(socket.getdefaulttimeout())
        raise OSError("network is unreachable")

    default = torchvision.models.get_model_weights(SMALL).DEFAULT
    monkeypatch.setattr(default, "get_state_dict", unreachable)
    with pytest.raises(UserError, match=r"unreachable.*PRETRAINED.*WEIGHTS"):
        initialise_body(build_body(TWO), SMALL, "torchvision", "require")
    told = initialise_body(build_body(TWO), SMALL, "torchvision", "auto")
    assert told.startswith("random") and "unreachable" in told
    assert patience == [20.0, 20.0] and socket.getdefaulttimeout() == before


@pytest.mark.parametrize(
    ("attention", "name", "tensor"),
    [
        ("none", "features.3.block.0.1.running_var", None),
        ("none", "layer9.weight", torch.zeros(1)),
        ("none", "features.0.0.weight", torch.zeros(64, 1, 7, 7)),
        ("se", "features.13.fc1.weight", torch.zeros(1)),
    ],
    ids=["missing", "unknown", "another shape", "attention that the network has not"],
)
def test_weights_that_do_not_fit_are_refused(
    tmp_path: Path, attention: str, name: str, tensor: torch.Tensor | None
) -> None:
    path, _ = written(tmp_path, Architecture(SMALL, attention))
    own = build_body(Architecture(SMALL, attention))
    initialise_body(own, SMALL, str(path), "auto")
    assert is_of(own, path)
    content = checkpoints.load(path)
    content["model"].pop(name, None)
    if tensor is not None:
        content["model"][name] = tensor
    checkpoints.save(path, content)
    with pytest.raises(CheckpointError, match=rf"does not fit a mobilenet_v3_small.*{name[:11]}"):
        initialise_body(build_body(Architecture(SMALL)), SMALL, str(path), "auto")


@pytest.mark.parametrize("backbone", [SMALL, "resnet18"])
@pytest.mark.parametrize(
    ("wrap", "told"),
    [
        (lambda s: {"state_dict": named(s, "module.")}, ""),
        (lambda s: {"model": named(s, "_orig_mod.")}, ""),
        (lambda s: named(s, "module._orig_mod."), ""),
        (lambda s: {"model": named(s, "_orig_mod.module.")}, ""),
        (lambda s: {"state_dict": named(s, "model."), "hyper_parameters": {}}, ""),
        (lambda s: {"net": s}, ""),
        (lambda s: {"model_ema": {**named(s, "module."), "n_averaged": torch.tensor(3)}}, ""),
        (lambda s: {"state_dict": {"model": named(s, "module.model._orig_mod.")}}, ""),
        (lambda s: named({**s, "n_averaged": torch.tensor(3)}, "module.model."), ""),
        (lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()}, ""),
        (
            lambda s: named(s, "backbone."),
            " (prefix backbone. taken off, 0 other tensors left out)",
        ),
        (
            lambda s: {**named(s, "model.encoder.trunk."), "model.head.weight": torch.ones(3)},
            " (prefix encoder.trunk. taken off, 1 other tensors left out)",
        ),
        (lambda s: named(s, "module.body."), ""),
    ],
)
def test_what_trainers_wrap_around_weights_is_taken_off(
    tmp_path: Path, backbone: str, wrap, told: str
) -> None:
    torch.manual_seed(0)
    state = build_classifier(Architecture(backbone), 3).half().float().state_dict()
    state = {name: t for name, t in state.items() if not name.startswith("fc.")}
    path = tmp_path / "theirs.pt"
    torch.save(wrap(state), path)
    body = build_body(Architecture(backbone))
    assert initialise_body(body, backbone, str(path), "auto") == f"file theirs.pt{told}"
    assert all(torch.equal(tensor, state[name]) for name, tensor in body.state_dict().items())


def named(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def test_weights_that_cannot_be_first_are_refused_in_words(tmp_path: Path) -> None:
    path, state = tmp_path / "theirs.pt", build_classifier(Architecture(SMALL), 3).state_dict()
    broken = {**state, "features.0.0.weight": state["features.0.0.weight"] * float("nan")}
    for content, words in (
        (broken, "holds NaN or infinite numbers in features.0.0.weight; take"),
        ({**named(state, "student."), **named(state, "teacher.")}, r"networks \(student., teacher"),
        (build_classifier(Architecture("resnet18"), 3).state_dict(), "does not fit.*set BACKBONE"),
    ):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=words) as caught:
            initialise_body(build_body(Architecture(SMALL)), SMALL, str(path), "auto")
        assert len(str(caught.value)) < 600 + len(str(path)) and "\n" not in str(caught.value)
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    with pytest.raises(CheckpointError, match="is a TorchScript program, not weights"):
        initialise_body(build_body(Architecture(SMALL)), SMALL, str(path), "auto")
