"""Names of weights and forms of vocabularies, on tensors of a few numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision

from petface.models import layouts

HEAD = {"heads.breed.weight": torch.ones(2, 4), "heads.breed.bias": torch.zeros(2)}


def vocabularies(**content: Any) -> dict[str, tuple[str, ...]]:
    return layouts.read(HEAD, content).vocabularies


@pytest.mark.parametrize("key", ["head_vocabs", "feature_infos", "heads_meta", "vocabs"])
@pytest.mark.parametrize(
    "entry",
    [
        ["b", "a, c"],
        ("b", "a, c"),
        {"a, c": 1, "b": 0},
        {"1": "a, c", "0": "b"},
        {"classes": ["b", "a, c"], "num_classes": 2},
        {"class_names": ["b", "a, c"]},
        {"labels": ("b", "a, c")},
        {"vocab": {"b": 0, "a, c": 1}},
        {"class_to_idx": {"a, c": 1, "b": 0}, "num_classes": 2},
        {"idx_to_class": {1: "a, c", 0: "b"}, "out_features": 2},
        {"num_classes": 2, "b": 0, "a, c": 1},
    ],
    ids=repr,
)
def test_every_form_of_a_vocabulary_gives_names_in_index_order(key: str, entry: Any) -> None:
    assert vocabularies(**{key: {"breed": entry}}) == {"breed": ("b", "a, c")}


def test_a_list_of_heads_and_more_than_ten_classes() -> None:
    for name in ("name", "feature"):
        entries = [{name: "breed", "classes": ["b", "a"]}, {name: "gender", "classes": []}]
        assert vocabularies(feature_infos=entries) == {"breed": ("b", "a"), "gender": ()}
    table = {str(index): f"class {index}" for index in range(12)}
    assert vocabularies(vocabs={"breed": table})["breed"] == tuple(table.values())
    assert vocabularies(heads=["breed"]) == {}


@pytest.mark.parametrize(
    "entry", [None, 2, {"num_classes": 2}, {"num_classes": 2, "in_features": 512}, {"column": "x"}]
)
def test_sizes_alone_are_no_vocabulary(entry: Any) -> None:
    assert vocabularies(heads_meta={"breed": entry}) == {}


@pytest.mark.parametrize("entry", [{"a": 0, "b": 2}, {"a": 1, "b": 2}, {"a": 0, "b": 0}, {1: "a"}])
def test_numbers_with_holes_are_refused(entry: dict[Any, Any]) -> None:
    with pytest.raises(ValueError, match="number"):
        vocabularies(head_vocabs={"breed": entry})
    with pytest.raises(ValueError, match='"vocabs" is a str'):
        vocabularies(vocabs="breed")


@pytest.mark.parametrize(
    "pattern",
    ["heads.{}.", "head_{}.", "heads.{}.0.", "heads.{}.1.", "head_{}.fc.", "heads.{}.linear."],
)
@pytest.mark.parametrize("head", ["breed", "color1", "attr2"])
def test_every_name_of_a_head(pattern: str, head: str) -> None:
    weight, bias = torch.ones(3, 4), torch.zeros(3)
    name = pattern.format(head)
    found = layouts.read({name + "weight": weight, name + "bias": bias}, {})
    assert list(found.heads) == [head] and not found.body
    assert found.heads[head]["weight"] is weight and found.heads[head]["bias"] is bias
    assert found.size_of(head) == 3


@pytest.mark.parametrize("prefix", ["", "body.", "backbone.", "encoder.", "trunk.", "base."])
def test_every_prefix_of_a_resnet_body(prefix: str) -> None:
    names = [name for name in torchvision.models.resnet18().state_dict() if name[:3] != "fc."]
    state = {prefix + name: torch.tensor(place) for place, name in enumerate(names)}
    found = layouts.read({**HEAD, **state}, {})
    assert found.body == {name: torch.tensor(place) for place, name in enumerate(names)}


@pytest.mark.parametrize("prefix", ["body.", "backbone.", "features."])
def test_a_resnet_kept_as_sequential(prefix: str) -> None:
    resnet = torchvision.models.resnet18()
    numbered = torch.nn.Sequential(*list(resnet.children())[:-1])
    named = {id(t): n for n, t in resnet.state_dict(keep_vars=True).items()}
    state = {prefix + n: t for n, t in numbered.state_dict(keep_vars=True).items()}
    found = layouts.read({**HEAD, **state}, {})
    assert {name: id(t) for name, t in found.body.items()} == {
        name: place for place, name in named.items() if name[:3] != "fc."
    }


def test_mobilenet_names_are_kept() -> None:
    names = [n for n in torchvision.models.mobilenet_v2().state_dict() if n[:8] == "features"]
    for prefix in ("", "body."):
        found = layouts.read({**HEAD, **{prefix + n: torch.zeros(1) for n in names}}, {})
        assert list(found.body) == names


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"fc.weight": torch.ones(2, 4)}, "holds no head"),
        ({"heads.breed.weight": torch.ones(2, 4)}, "breed lacks"),
        ({**HEAD, "heads.breed.bias": torch.zeros(3)}, "breed lacks a weight or a bias, or they"),
        (
            {f"heads.breed.{i}.{kind}": torch.ones(2) for i in (0, 3) for kind in ("weight",)},
            "more than one layer",
        ),
    ],
)
def test_heads_that_cannot_be_read(state: dict[str, torch.Tensor], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        layouts.read(state, {})


def test_our_own_names_with_heads_of_several_layers() -> None:
    state = {
        "body.bodies.0.conv1.weight": torch.zeros(1),
        "heads.breed.1.weight": torch.zeros(5, 4),
        "heads.breed.1.bias": torch.zeros(5),
        "heads.breed.4.weight": torch.zeros(2, 5),
        "heads.breed.4.bias": torch.zeros(2),
        "heads.gender.weight": torch.zeros(3, 4),
        "heads.gender.bias": torch.zeros(3),
    }
    found = layouts.read_own(state, {"head_vocabs": {"breed": ["b", "a"]}})
    assert list(found.body) == ["bodies.0.conv1.weight"]
    assert found.vocabularies == {"breed": ("b", "a")}
    assert list(found.heads["breed"]) == ["1.weight", "1.bias", "4.weight", "4.bias"]
    assert (found.size_of("breed"), found.size_of("gender")) == (2, 3)
    with pytest.raises(ValueError, match="holds no head"):
        layouts.read_own({"body.fc.weight": torch.ones(2, 4), "heads.x": torch.ones(1)}, {})
    without = layouts.read_own({"heads.breed.1.weight": torch.zeros(5, 4)}, {})
    assert without.size_of("breed") == 0
