"""Checkpoints of every layout give the logits of one plain torchvision network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from inference_engine import Stage1Model, Stage2Model
from petface.calibration import HeadCalibration
from petface.data.images import Preprocessing
from petface.models import architecture as networks
from petface.models import checkpoints, layouts
from petface.models.architecture import Architecture, build_classifier
from petface.models.checkpoints import CheckpointError
from tests import reference_networks as reference

# All of chinchilla's heads, a zero-class one among them; the names of each class, in index order.
NAMES = {"color1": ("White", "Black, or so", "'Beige'"), "color2": (), "gender": ("female", "male")}
HEADS = reference.linear_heads(color1=3, color2=0, gender=2)
KNOWN = {head: names for head, names in NAMES.items() if names}
TABLES = {head: {name: k for k, name in enumerate(names)} for head, names in NAMES.items()}


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """Where a checkpoint of 45 MB goes; deleted after the test."""
    path = tmp_path / "chinchilla_best.pt"
    yield path
    path.unlink(missing_ok=True)


def stored_layouts() -> dict[str, dict[str, Any]]:
    """One checkpoint in each layout: other names of the body, the heads and the vocabularies."""
    stored = reference.stored
    return {
        "feature_infos": {
            "model_state_dict": stored(HEADS, "backbone.", "heads.{}.1."),
            "feature_infos": [
                {"name": head, "classes": list(names), "num_classes": len(names)}
                for head, names in NAMES.items()
            ],
            "species": "chinchilla",
        },
        "head_vocabs": {
            "state_dict": reference.data_parallel(stored(HEADS, "backbone.#")),
            "head_vocabs": TABLES,
            "epoch": 9,
        },
        "heads_meta": {
            "model": stored(HEADS, "body.#", "heads.{}.0."),
            "heads_meta": {
                head: {"num_classes": len(names), "idx_to_class": dict(enumerate(names))}
                for head, names in NAMES.items()
            },
        },
        "vocabs and heads": {
            "model": stored(HEADS),
            "vocabs": {head: list(names) for head, names in NAMES.items()},
            "heads": list(NAMES),
        },
    }


@pytest.mark.parametrize("name", stored_layouts())
def test_newer_layouts(name: str, file: Path) -> None:
    model = Stage2Model.load_for_species(
        "chinchilla", reference.write(file, stored_layouts()[name]), "cpu"
    )
    assert isinstance(model.network.model, networks.ChinchillaMultiHeadResNet18)
    assert model.vocabularies == KNOWN
    assert set(model.vocabulary_sources.values()) == {"checkpoint"}
    assert model.network.preprocessing == Preprocessing(224, "stretch", None, None)
    assert_same_logits(model)


def assert_same_logits(model: Stage2Model, heads: reference.Heads | None = None) -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = reference.reference_logits(images, heads or HEADS)
    with torch.inference_mode():
        found = dict(zip(model.heads, model.network.model(images), strict=True))
    assert list(found) == [head for head, logits in expected.items() if logits.shape[1]]
    for head, logits in found.items():
        torch.testing.assert_close(logits, expected[head])


@pytest.mark.parametrize(
    ("body", "head", "wrapped"), [("", "head_{}.", False), ("backbone.#", "head_{}.fc.", True)]
)
def test_legacy_layout(body: str, head: str, wrapped: bool, file: Path) -> None:
    heads = reference.linear_heads(breed=4, gender=2)
    state = reference.stored(heads, body, head)
    content = {"model": reference.data_parallel(state), "epoch": 3} if wrapped else state
    model = Stage2Model.load_for_species("chimp", reference.write(file, content), "cpu")
    assert isinstance(model.network.model, networks.GenericMultiHeadResNet18)
    assert model.vocabularies == {
        "breed": ("P. t. ellioti", "P. t. schweinfurthii", "P. t. troglodytes", "P. t. verus"),
        "gender": ("female", "male"),
    }
    assert model.vocabulary_sources == {"breed": "built-in", "gender": "gender"}
    assert_same_logits(model, heads)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read heads and vocabularies only: build nothing, so that a body need not be there."""
    monkeypatch.setattr(checkpoints, "fill", lambda _path, model, _state: model)
    for kind in ("ChinchillaMultiHeadResNet18", "GenericMultiHeadResNet18"):
        monkeypatch.setattr(networks, kind, lambda sizes, _architecture: tuple(sizes))


def read(path: Path, species: str, sizes: dict[str, int], **content: Any):
    state = {}
    for head, size in sizes.items():
        state[f"head_{head}.weight"] = torch.zeros(size, 512)
        state[f"head_{head}.bias"] = torch.zeros(size)
    return layouts.read_stage2(reference.write(path, {"model": state, **content}), species)


@pytest.mark.usefixtures("no_network")
def test_heads_are_renamed_filtered_and_ordered(file: Path) -> None:
    sizes = {"gender": 2, "attr2": 3, "species": 13, "color1": 2, "breed": 4}
    found = read(file, "chinchilla", sizes, vocabs={"attr2": list("abc")})
    assert found.model == ("color1", "color2", "gender")  # chinchilla has no breed
    assert found.heads["color2"] == tuple("abc")
    assert found.sources == {"color1": "index", "color2": "checkpoint", "gender": "gender"}
    with pytest.raises(CheckpointError, match="no head for cat"):
        read(file, "cat", {"breed": 0, "species": 13})
    # a species that PetFace does not describe keeps every known head
    assert read(file, "yak", sizes).model == ("breed", "color", "color1", "gender")


OWN = {"head_vocabs": {"breed": list("wxyz"), "gender": ["m", "f"]}}
MF = {"vocabs": {"gender": ["m", "f"]}}  # what it names nothing for falls back alone
GENDER = {"heads_meta": {"Gender": {"classes": [], "num_classes": 2}, "Breed": list("abc")}}


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("species", "sizes", "content", "names", "sources"),
    [
        ("cat", {"attr2": 3}, {"attr2_vocab": list("abc")}, {"breed": "abc"}, ["checkpoint"]),
        ("dog", {"attr2": 3}, {"head_vocabs": {"attr2": list("abc")}}, {"breed": "abc"}, None),
        ("parakeet", {"Attr2": 3}, {}, {"breed": "xyz"}, ["annotations"]),
        ("javasparrow", {"attr2": 3, "color1": 2}, {}, {"color": "012", "color1": "pq"}, None),
        ("hamster", {"breed": 2, "attr2": 2}, {}, {"breed": "01", "color1": "pq"}, None),
        ("dog", {"Breed": 3, "Gender": 2}, GENDER, {"breed": "abc"}, ["checkpoint", "gender"]),
        ("chimp", {"breed": 5}, {"breed_vocab": list("abcde")}, {"breed": "abcde"}, ["checkpoint"]),
        ("chimp", {"breed": 3}, {}, {"breed": "xyz"}, ["annotations"]),
        ("chimp", {"breed": 5}, {}, {"breed": "01234"}, ["index"]),
        ("dog", {"breed": 4}, {}, {"breed": "0123"}, ["index"]),
        ("cat", {"gender": 1}, {}, {"gender": "0"}, ["index"]),
        (
            "chimp",
            {"breed": 4, "gender": 2},
            OWN,
            {"breed": "wxyz", "gender": "mf"},
            ["checkpoint"] * 2,
        ),
        ("chimp", {"breed": 4, "gender": 2}, MF, {"gender": "mf"}, ["built-in", "checkpoint"]),
        ("cat", {"Color1": 2}, {"vocabs": {"color1": list("ab")}}, {"color1": "ab"}, None),
        ("cat", {"color1": 2}, {"feature_infos": {"Color1": list("ab")}}, {"color1": "ab"}, None),
        (
            "cat",
            {"breed": 3},
            {"vocabs": {"breed": 3}, "heads": {"breed": list("abc")}},
            {"breed": "abc"},
            None,
        ),
        ("cat", {"breed": 4, "gender": 2}, {}, {"breed": "0123"}, ["index", "gender"]),
    ],
)
def test_layouts_of_others_give_the_right_names(
    file: Path, species: str, sizes: dict, content: dict, names: dict, sources: list | None
) -> None:
    """The checkpoint, the annotation file where its number fits, female and male, numbers."""
    read(file, species, sizes, **content)
    labels = {"breed": tuple("xyz"), "color1": tuple("pq")}
    found = layouts.read_stage2(file, species, lambda: labels)
    for head, listed in names.items():
        assert found.heads[head] == tuple(listed)
    if "gender" in found.heads.keys() - names.keys():
        assert found.heads["gender"] == ("female", "male")
    if sources:
        assert list(found.sources.values()) == sources
    said = " ".join(found.notes)
    assert ("is read as" in said) == any(head.lower() == "attr2" for head in sizes)
    assert ("answers are numbers" in said) == ("index" in found.sources.values())


@pytest.mark.usefixtures("no_network")
def test_a_head_that_is_dropped_is_said_and_two_of_one_feature_are_refused(file: Path) -> None:
    read(file, "dog", {"breed": 3, "color1": 2})
    assert (
        "left out, no head of a dog with classes: color1" in layouts.read_stage2(file, "dog").notes
    )
    with pytest.raises(CheckpointError, match="two heads of one feature"):
        read(file, "dog", {"breed": 3, "attr2": 3})


@pytest.mark.usefixtures("no_network")
def test_calibration_goes_by_the_names_of_the_heads(file: Path) -> None:
    sizes, entry = {"attr2": 3, "gender": 2}, {"threshold": 0.75, "num": 9}
    for temperature in (2, 0.5):
        table = {"attr2": {**entry, "temperature": temperature}}
        found = read(file, "chinchilla", sizes, calibration=table)
        assert found.calibration == {"color1": HeadCalibration(temperature, 0.75, None)}
        assert found.temperatures == (temperature, 1.0)
    assert read(file, "chinchilla", sizes).calibration == {}


def test_stage1_gives_the_logits_of_a_plain_resnet(file: Path) -> None:
    state = reference.classifier(3, favourite=1)
    table = {"dog": 2, "cat": 0, "a, b": 1}  # not in the order of the indices
    rule = Preprocessing(32, "letterbox", (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    content = {"model": state, "class_to_index": table, "preprocessing": rule.to_dict()}
    older = {"guard": {"mean": torch.zeros(1), "threshold": None}}  # no longer read
    checkpoints.save(file, {**content, **older})
    model = Stage1Model(file, "cpu")
    assert model.classes == ("cat", "a, b", "dog")
    assert model.network.preprocessing == rule
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        found = model.network.model(images)
    heads = {"fc": (state["fc.weight"], state["fc.bias"])}
    torch.testing.assert_close(found, reference.reference_logits(images, heads)["fc"])


def test_what_is_saved_comes_back(file: Path) -> None:
    content = {"model": {"w": torch.arange(3)}, "lists": [[1, 2.5], None], "text": "naïve"}
    checkpoints.save(file, content)
    found = checkpoints.load(file)
    assert torch.equal(found.pop("model")["w"], torch.arange(3))
    assert found == {"format": checkpoints.FORMAT, "lists": [[1, 2.5], None], "text": "naïve"}


FULL = {"attention": "se", "hidden": 6, "dropout": 0.3, "bodies": 2}
BUILT = [
    Architecture("resnet34"),
    Architecture("efficientnet_b0", hidden=6),
    Architecture("mobilenet_v2", attention="se", dropout=0.2),
    Architecture("mobilenet_v3_small", **FULL),
]


def photos() -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (3, 32, 32, 3), generator=draw, dtype=torch.uint8)


def answered(model: torch.nn.Module) -> tuple[torch.Tensor, ...]:
    with torch.inference_mode():
        out = model.eval()(photos().permute(0, 3, 1, 2) / 255)
    return (out,) if isinstance(out, torch.Tensor) else out


@pytest.mark.parametrize("kind", ["species", "specialist"])
@pytest.mark.parametrize("architecture", BUILT, ids=str)
def test_a_network_of_any_architecture_comes_back(
    architecture: Architecture, kind: str, file: Path
) -> None:
    """From the checkpoint bit for bit; ready to predict, with BatchNorm folded, nearly so."""
    torch.manual_seed(0)
    content: dict[str, Any] = {
        **architecture.stored(),
        "preprocessing": Preprocessing(32).to_dict(),
    }
    assert ("architecture" in content) == (not architecture.is_plain)
    if kind == "species":
        model = build_classifier(architecture, 3)
        content |= {"class_to_index": {"cat": 0, "dog": 1, "yak": 2}}
    else:
        model = networks._MultiHeadModel({"gender": 2, "color1": 3}, architecture)
        vocabularies = {"gender": ["female", "male"], "color1": list("abc")}
        content |= {"species": "chinchilla", "head_vocabs": vocabularies}
    checkpoints.save(file, {**content, "model": model.state_dict()})
    expected = answered(model)
    if kind == "species":
        found = checkpoints.read_stage1(file)
        ready: Any = Stage1Model(file, "cpu")
        label = ready.predict(photos()[0].numpy()).label
        assert label == ("cat", "dog", "yak")[int(expected[0][0].argmax())]
    else:
        found = layouts.read_stage2(file, "chinchilla")
        ready = Stage2Model.load_for_species("chinchilla", file, "cpu")
        expected = expected[::-1]  # in the order of the features: colour, gender
        assert found.model.head_sizes == {"color1": 3, "gender": 2}
        assert set(found.sources.values()) == {"checkpoint"}
        assert set(ready.predict(photos()[0].numpy())) == {"color1", "gender"}
    assert found.architecture == found.model.architecture == architecture
    pixels = ready.network.answer_pixels(photos())
    for one, other, wanted in zip(answered(found.model), pixels, expected, strict=True):
        assert torch.equal(one, wanted)
        torch.testing.assert_close(other, wanted, rtol=1e-4, atol=1e-4)
