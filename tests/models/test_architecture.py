"""Networks of every architecture: what they are made of, that they learn, how they are kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from petface.errors import UserError
from petface.models.architecture import (
    MAX_BODIES,
    MAX_HIDDEN,
    Architecture,
    build_body,
    build_classifier,
    build_head,
)
from petface.models.backbones import BACKBONES, describe
from petface.models.backbones import build_body as build_one_body
from petface.models.multi_body import forward_with_maps, stage_of
from petface.models.multi_head import _MultiHeadModel, train_mode, unfreeze

VARIANTS: list[dict[str, Any]] = [
    {},
    {"attention": "se"},
    {"hidden": 8, "dropout": 0.2},
    {"bodies": 2},
]
CASES = [
    Architecture(name, **variant)
    for name in BACKBONES
    for variant in VARIANTS
    if name != "resnet50" or variant != {"bodies": 2}
]


def images(num: int = 4, side: int = 32) -> torch.Tensor:
    return torch.rand(num, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("architecture", CASES, ids=str)
def test_every_network_trains_two_steps(architecture: Architecture) -> None:
    """All its parameters move, the loss is finite, and what it learnt it answers in evaluation."""
    torch.manual_seed(0)
    model = build_classifier(architecture, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train_mode(model)
    for _ in range(2):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images()), torch.tensor([0, 1, 2, 0]))
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert still == []
    with torch.inference_mode():
        logits = model.eval()(images())
        again, maps = forward_with_maps(model, images())
    assert logits.shape == (4, 3) and torch.isfinite(logits).all()
    torch.testing.assert_close(again, logits)
    assert tuple(m.shape[1] for m in maps) == architecture.map_channels


@pytest.mark.parametrize("architecture", [Architecture("mobilenet_v3_small", "se", 8, 0.2, 2)])
def test_a_specialist_trains_in_its_thawed_stages_alone(architecture: Architecture) -> None:
    torch.manual_seed(0)
    model = _MultiHeadModel({"breed": 3, "gender": 2}, architecture)
    optimizer = torch.optim.AdamW(unfreeze(model, ("layer4",)), lr=1e-3, weight_decay=0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train_mode(model)
    for _ in range(2):
        optimizer.zero_grad()
        sum(head.logsumexp(1).sum() for head in model(images())).backward()
        optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    expected = {
        name
        for name in before
        if name.startswith("heads.")
        or stage_of(architecture.backbone, name.removeprefix("body.")) == "layer4"
    }
    assert moved == expected and len(expected) < len(before)


@pytest.mark.parametrize("name", BACKBONES)
def test_attention_keeps_all_names_and_begins_as_one_scale(name: str) -> None:
    plain, weighed = build_one_body(name).eval(), build_body(Architecture(name, "se")).eval()
    state = weighed.state_dict()
    own = set(state) - set(plain.state_dict())
    assert len(own) == 4 and len(state) == len(plain.state_dict()) + 4
    assert {stage_of(name, parameter) for parameter in own} == {"layer4"}
    plain.load_state_dict({key: t for key, t in state.items() if key not in own})
    with torch.inference_mode():
        expected = plain(images()) * torch.sigmoid(torch.tensor(3.0))
        torch.testing.assert_close(weighed(images()), expected)


def test_attention_is_squeeze_excitation() -> None:
    """Hu et al., equations 2 to 4, by hand on the map of the last stage."""
    torch.manual_seed(0)
    body = build_body(Architecture("resnet18", "se")).eval()
    block = body.layer4[-1]
    nn.init.normal_(block.fc2.weight)
    with torch.inference_mode():
        _, maps = forward_with_maps(body, images())
        x = body.maxpool(body.relu(body.bn1(body.conv1(images()))))
        u = body.layer4[1](body.layer4[0](body.layer3(body.layer2(body.layer1(x)))))
        z = u.mean(dim=(2, 3))
        w1, w2 = block.fc1.weight[:, :, 0, 0], block.fc2.weight[:, :, 0, 0]
        s = torch.sigmoid(torch.relu(z @ w1.T + block.fc1.bias) @ w2.T + block.fc2.bias)
    assert w1.shape == (32, 512)
    torch.testing.assert_close(maps[-1], u * s[:, :, None, None])


def test_heads() -> None:
    with torch.device("meta"):
        linear = build_head(Architecture(bodies=2), 5)
        dropped = build_head(Architecture(dropout=0.4), 5)
        hidden = build_head(Architecture("mobilenet_v3_small", hidden=9, dropout=0.4), 5)
    assert isinstance(linear, nn.Linear) and linear.weight.shape == (5, 1024)
    assert [type(part) for part in dropped] == [nn.Dropout, nn.Linear]
    assert [type(part) for part in hidden] == [
        nn.Dropout, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear,
    ]  # fmt: skip
    assert {part.p for part in (*dropped, *hidden) if isinstance(part, nn.Dropout)} == {0.4}
    assert {name: tuple(t.shape) for name, t in hidden.state_dict().items()} == {
        "1.weight": (9, 576), "1.bias": (9,), "4.weight": (5, 9), "4.bias": (5,),
    }  # fmt: skip


@pytest.mark.parametrize("name", BACKBONES)
def test_a_plain_network_draws_as_it_always_did(name: str) -> None:
    """The torchvision network first, then its one linear layer: seeds keep their meaning."""
    torch.manual_seed(3)
    model = build_classifier(Architecture(name), 4)
    torch.manual_seed(3)
    expected = torchvision.models.get_model(name, weights=None)
    head = nn.Linear(describe(name).num_features, 4)
    setattr(expected, describe(name).classifier, head)
    found, wanted = model.state_dict(), expected.state_dict()
    assert list(found) == list(wanted)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_an_architecture_is_kept_only_where_it_is_not_plain() -> None:
    plain, wide = Architecture("resnet34"), Architecture("resnet34", "se", 16, 0.5, 3)
    assert plain.stored() == {"backbone": "resnet34"} and plain.is_plain and not wide.is_plain
    stored = wide.stored()
    assert stored["backbone"] == "resnet34" and set(stored) == {"backbone", "architecture"}
    for one in (plain, wide):
        assert Architecture.from_stored({"format": 1, **one.stored()}) == one
        assert Architecture.from_dict(one.to_dict()) == one
    assert Architecture.from_stored({}) == Architecture("resnet18")
    assert Architecture.from_dict({"bodies": 2}) == Architecture(bodies=2)
    assert (str(plain), str(wide)) == (
        "resnet34", "resnet34, se, 3 bodies, hidden 16, dropout 0.5",
    )  # fmt: skip
    assert wide.width == 3 * 512 and wide.map_channels == (192, 384, 768, 1536)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (None, "not a table"),
        ([("bodies", 2)], "not a table"),
        ({"bodies": 2, "depth": 3}, "not a table"),
        ({1: 2}, "not a table"),
        ({"backbone": "vgg"}, "unknown backbone 'vgg'"),
        ({"backbone": ["resnet18"]}, "unknown backbone"),
        ({"attention": "cbam"}, "attention is 'cbam'; known: none, se"),
        ({"attention": None}, "attention is of type NoneType"),
        ({"hidden": -1}, "hidden is -1"),
        ({"hidden": MAX_HIDDEN + 1}, "hidden is 4097, not a whole number from 0 to 4096"),
        ({"hidden": 10**5000}, "hidden is of type int"),
        ({"hidden": 8.0}, "hidden is 8.0"),
        ({"hidden": True}, "hidden is"),
        ({"hidden": torch.ones(3, 3)}, "hidden is of type Tensor"),
        ({"bodies": 0}, "bodies is 0"),
        ({"bodies": MAX_BODIES + 1}, "bodies is 9"),
        ({"bodies": "2"}, "bodies is '2'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"dropout": float("nan")}, "dropout is nan"),
        ({"dropout": "0.5"}, "dropout is '0.5'"),
        ({"dropout": 10**5000}, "dropout is of type int"),
    ],
    ids=lambda value: str(type(value)) if value is None else "",
)
def test_nonsense_is_refused_in_one_line(values: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        Architecture.from_dict(values)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="architecture"):
        Architecture.from_stored({"format": 1, "architecture": values})


def test_backbone_and_architecture_must_agree() -> None:
    stored = Architecture("resnet34", bodies=2).stored()
    with pytest.raises(ValueError, match='of resnet34, "backbone" resnet50'):
        Architecture.from_stored({**stored, "backbone": "resnet50", "format": 1})
    with pytest.raises(UserError, match="bodies is 99"):
        Architecture(bodies=99)
