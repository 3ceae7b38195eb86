"""Bodies against torchvision's own networks and each alone; what networks are made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops import SqueezeExcitation

from petface.models import backbones
from petface.models.architecture import (
    Architecture,
    ChinchillaMultiHeadResNet18,
    GenericMultiHeadResNet18,
    _MultiHeadModel,
    bodies_of,
    build_body,
    build_classifier,
    build_head,
    forward_with_maps,
    stage_of,
    states_of_bodies,
    train_mode,
    unfreeze,
)
from petface.models.backbones import BACKBONES, STAGE_NAMES, describe, fill_body

SMALL = "mobilenet_v3_small"
TWO = Architecture(SMALL, bodies=2)
CASES = [
    *map(Architecture, BACKBONES),
    Architecture("resnet18", "se"),
    Architecture("efficientnet_b0", hidden=8, dropout=0.2),
    Architecture(SMALL, "se", 8, 0.2, 2, "both", True),
    Architecture("mobilenet_v2", pooling="both"),
]


def images(num: int = 4, side: int = 32) -> torch.Tensor:
    return torch.rand(num, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("architecture", CASES, ids=str)
def test_every_network_trains_in_all_its_parameters(architecture: Architecture) -> None:
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
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []


@pytest.mark.parametrize("name", BACKBONES)
def test_a_plain_network_is_torchvisions_and_draws_as_it_does(name: str) -> None:
    """The torchvision network first, then its one linear layer: seeds keep their meaning."""
    torch.manual_seed(3)
    model = build_classifier(Architecture(name), 4)
    torch.manual_seed(3)
    expected = torchvision.models.get_model(name, weights=None)
    setattr(expected, describe(name).classifier, nn.Linear(describe(name).num_features, 4))
    found, wanted = model.state_dict(), expected.state_dict()
    assert list(found) == list(wanted)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    body = backbones.build_body(name)
    fill_body(body, name, found)
    with torch.inference_mode():
        logits = model.eval()(images())
        torch.testing.assert_close(logits, expected.eval()(images()))
        head = getattr(model, describe(name).classifier)
        torch.testing.assert_close(head(body.eval()(images())), logits)


@pytest.mark.parametrize("name", BACKBONES)
def test_maps_come_from_the_same_pass_and_their_sides_halve(name: str) -> None:
    """Against hooks on the last module of each stage; strides 4, 8, 16 and 32."""
    network, seen = build_classifier(Architecture(name), 3).eval(), []
    for stage in STAGE_NAMES[1:]:
        end = backbones.stage_end(network, stage)
        end.register_forward_hook(lambda _module, _inputs, out: seen.append(out))
    with torch.inference_mode():
        expected, hooked = network(images(2, 64)), list(seen)
        logits, maps = forward_with_maps(network, images(2, 64))
    assert torch.equal(logits, expected)
    assert all(torch.equal(one, other) for one, other in zip(maps, hooked, strict=True))
    assert tuple(stage.shape[1] for stage in maps) == describe(name).map_channels
    assert [stage.shape[2] for stage in maps] == [16, 8, 4, 2]


@pytest.mark.parametrize("name", BACKBONES)
def test_every_parameter_is_in_exactly_one_stage(name: str) -> None:
    with torch.device("meta"):
        body, two = backbones.build_body(name), build_body(Architecture(name, bodies=2))
    stages = [stage_of(name, parameter) for parameter, _ in body.named_parameters()]
    order = [STAGE_NAMES.index(stage) for stage in stages]
    assert set(stages) == set(STAGE_NAMES) and order == sorted(order)
    assert [stage_of(name, parameter) for parameter, _ in two.named_parameters()] == stages * 2
    for stage in STAGE_NAMES:  # that of the parameters of its last module
        end = backbones.stage_end(body, stage)
        (prefix,) = (p for p, module in body.named_modules() if module is end)
        own = [p for p, _ in body.named_parameters() if p.startswith(prefix + ".")]
        assert own and {stage_of(name, p) for p in own} == {stage}
    with pytest.raises(AssertionError, match="nowhere"):
        stage_of(name, "nowhere.weight")


@pytest.mark.parametrize("name", BACKBONES)
def test_attention_is_squeeze_excitation_keeps_all_names_and_begins_as_one_scale(name: str) -> None:
    plain, weighed = backbones.build_body(name).eval(), build_body(Architecture(name, "se")).eval()
    state = weighed.state_dict()
    own = set(state) - set(plain.state_dict())
    assert len(own) == 4 and len(state) == len(plain.state_dict()) + 4
    assert {stage_of(name, parameter) for parameter in own} == {"layer4"}
    plain.load_state_dict({key: t for key, t in state.items() if key not in own})
    block = [module for module in weighed.modules() if isinstance(module, SqueezeExcitation)][-1]
    with torch.inference_mode():
        expected = plain(images()) * torch.sigmoid(torch.tensor(3.0))
        torch.testing.assert_close(weighed(images()), expected)
        # Hu et al., equations 2 to 4, by hand on the map of the last stage
        nn.init.normal_(block.fc2.weight)
        _, (*_, u) = forward_with_maps(plain, images())
        _, (*_, found) = forward_with_maps(weighed, images())
        w1, w2 = block.fc1.weight[:, :, 0, 0], block.fc2.weight[:, :, 0, 0]
        z = torch.relu(u.mean(dim=(2, 3)) @ w1.T + block.fc1.bias)
        s = torch.sigmoid(z @ w2.T + block.fc2.bias)
    assert len(w1) == u.shape[1] // 16
    torch.testing.assert_close(found, u * s[:, :, None, None])


def test_bodies_stand_side_by_side_before_every_head() -> None:
    """Against each body alone: features, maps and the heads of both stages."""
    assert "2 bodies" in str(TWO) and str(Architecture(SMALL)) == SMALL
    classifier: Any = build_classifier(TWO, 5).eval()
    specialist = _MultiHeadModel({"breed": 4, "gender": 2}, TWO).eval()
    specialist.body.load_state_dict(
        {k: t for k, t in classifier.state_dict().items() if not k.startswith("head.")}
    )
    alone = [backbones.build_body(SMALL).eval() for _ in range(2)]
    states = states_of_bodies(specialist.body.state_dict())
    for body, state in zip(alone, states, strict=True):
        body.load_state_dict(state)
    with torch.inference_mode():
        parts = [backbones.forward_with_maps(body, images()) for body in alone]
        features = torch.cat([part[0] for part in parts], dim=1)
        logits, maps = forward_with_maps(classifier, images())
        torch.testing.assert_close(logits, classifier.head(features))
        torch.testing.assert_close(classifier(images()), classifier.head(features))
        for output, name in zip(specialist(images()), specialist.head_names, strict=True):
            torch.testing.assert_close(output, specialist.heads[name](features))
    assert features.shape[1] == TWO.width and not torch.equal(*(part[0] for part in parts))
    assert tuple(stage.shape[1] for stage in maps) == TWO.map_channels
    for stage, one, other in zip(maps, *(part[1] for part in parts), strict=True):
        torch.testing.assert_close(stage, torch.cat([one, other], dim=1))


def test_bodies_and_their_states_come_apart_in_the_order_of_numbers() -> None:
    body = build_body(Architecture(SMALL))
    assert bodies_of(body) == [body]
    state = {"features.0.weight": torch.ones(1), "bodies": torch.ones(1)}
    assert states_of_bodies(state) == [state]
    state = {f"bodies.{k}.conv1.weight": torch.tensor(k) for k in (10, 2, 0)}
    found = states_of_bodies({**state, "head.weight": torch.ones(1)})
    assert [int(one["conv1.weight"]) for one in found] == [0, 2, 10]


def test_heads() -> None:
    with torch.device("meta"):
        linear = build_head(Architecture(bodies=2), 5)
        dropped: Any = build_head(Architecture(dropout=0.4), 5)
        hidden: Any = build_head(Architecture(SMALL, hidden=9, dropout=0.4), 5)
    assert isinstance(linear, nn.Linear) and linear.weight.shape == (5, 1024)
    assert [type(part) for part in dropped] == [nn.Dropout, nn.Linear]
    kinds = [nn.Dropout, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert [type(part) for part in hidden] == kinds
    assert {part.p for part in (*dropped, *hidden) if isinstance(part, nn.Dropout)} == {0.4}
    assert hidden[1].weight.shape == (9, 576) and hidden[4].weight.shape == (5, 9)


def test_a_head_with_batchnorm_normalises_a_batch_and_takes_a_single_photo() -> None:
    norm, *_ = head = build_head(Architecture(batchnorm=True), 5)
    x = 3 + 2 * torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    expected = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x), expected)
    torch.testing.assert_close(norm.running_mean, 0.1 * x.mean(0))
    assert head(x[:1]).shape == (1, 5) and torch.equal(norm(x[:1]), norm.eval()(x[:1]))


@pytest.mark.parametrize("name", BACKBONES)
def test_both_poolings_give_the_average_and_the_maximum_of_each_map(name: str) -> None:
    body = build_body(Architecture(name, pooling="both")).eval()
    with torch.inference_mode():
        features, (*_, last) = forward_with_maps(body, images(2, 64))
        assert torch.equal(features, body(images(2, 64)))
    expected = torch.cat([last.mean((2, 3)), last.flatten(2).max(2).values], dim=1)
    torch.testing.assert_close(features, expected)


def test_an_architecture_is_kept_only_where_it_is_not_plain() -> None:
    plain, wide = Architecture("resnet34"), Architecture("resnet34", "se", 16, 0.5, 3)
    assert plain.stored() == {"backbone": "resnet34"} and plain.is_plain and not wide.is_plain
    assert set(wide.stored()) == {"backbone", "architecture"}
    for one in (plain, wide):
        assert Architecture.from_stored({"format": 1, **one.stored()}) == one
    for foreign in ({}, {"architecture": "resnet"}, {"architecture": {"bodies": 2}}):
        assert Architecture.from_stored(foreign) == Architecture("resnet18")
    assert str(wide) == "resnet34, se, 3 bodies, hidden 16, dropout 0.5"
    with pytest.raises(ValueError, match='of resnet34, "backbone" resnet50'):
        Architecture.from_stored({**wide.stored(), "backbone": "resnet50", "format": 1})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (None, "not a table"),
        ({"bodies": 2, "depth": 3}, "not a table"),
        ({"backbone": "vgg"}, "unknown backbone 'vgg'; known: resnet18, resnet34"),
        ({"backbone": ["resnet18"]}, "unknown backbone"),
        ({"attention": "cbam"}, "attention is 'cbam'; known: none, se"),
        ({"attention": None}, "attention is of type NoneType"),
        ({"hidden": -1}, "hidden is -1"),
        ({"hidden": 4097}, "hidden is 4097, not a whole number from 0 to 4096"),
        ({"hidden": 10**5000}, "hidden is of type int"),
        ({"hidden": True}, "hidden is"),
        ({"hidden": torch.ones(3, 3)}, "hidden is of type Tensor"),
        ({"bodies": 0}, "bodies is 0"),
        ({"bodies": 9}, "bodies is 9"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": float("nan")}, "dropout is nan"),
        ({"dropout": "0.5"}, "dropout is '0.5'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_nonsense_is_refused_in_one_line(values: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f'"architecture": .*{words}') as caught:
        Architecture.from_stored({"format": 1, "architecture": values})
    assert "\n" not in str(caught.value)


SIZES = {"breed": 3, "color1": 0, "gender": 2}


@pytest.fixture(scope="module")
def model() -> _MultiHeadModel:
    return ChinchillaMultiHeadResNet18(SIZES)


def trainable(model: _MultiHeadModel, *stages: str) -> set[str]:
    unfreeze(model, stages)
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_a_head_has_its_one_class_and_a_specialist_at_least_one_head(model) -> None:
    one = GenericMultiHeadResNet18({"gender": 1, "breed": 0})
    assert model.head_names == ("breed", "gender")
    assert one.head_sizes == {"gender": 1} and one.heads["gender"].weight.shape == (1, 512)
    with pytest.raises(AssertionError):
        GenericMultiHeadResNet18({"gender": 0})


@pytest.mark.parametrize(
    ("stages", "prefixes"),
    [
        ((), ("heads.",)),
        (("layer4",), ("heads.", "body.layer4.")),
        (("stem", "layer1"), ("heads.", "body.conv1.", "body.bn1.", "body.layer1.")),
        (("all",), ("heads.", "body.")),
    ],
)
def test_unfreeze(model, stages: tuple[str, ...], prefixes: tuple[str, ...]) -> None:
    expected = {name for name, _ in model.named_parameters() if name.startswith(prefixes)}
    assert trainable(model, *stages) == expected


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_stages_are_thawed_in_every_body_with_their_attention(name: str) -> None:
    with torch.device("meta"):
        wide = Architecture(name, attention="se", hidden=7, dropout=0.5, bodies=3)
        model = _MultiHeadModel({"breed": 4, "gender": 2}, wide)
        plain = _MultiHeadModel({"breed": 4}, Architecture(name))
    heads = trainable(model)
    assert len(heads) == 2 * 4 and all(name.startswith("heads.") for name in heads)
    both = trainable(model, "layer4", "layer3") - heads
    alone = trainable(plain, "layer4", "layer3") - trainable(plain)
    assert len(both) == 3 * (len(alone) + 4)  # attention has two layers
    assert trainable(model, "all") == {name for name, _ in model.named_parameters()}


def test_frozen_batch_norm_keeps_its_statistics_and_what_is_before_records_nothing(model) -> None:
    unfreeze(model, ("layer4",))
    train_mode(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recorded = {}
    for name, stage in model.body.named_children():
        stage.register_forward_hook(lambda *io, n=name: recorded.update({n: io[2].requires_grad}))
    model(torch.rand(4, 3, 32, 32) * 9)
    moved = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert moved and all(name.startswith("body.layer4.") for name in moved)
    assert any("running_mean" in name for name in moved)
    assert not recorded["conv1"] and not recorded["layer3"] and recorded["layer4"]


def test_unfrozen_batch_norm_learns_unless_it_is_to_stay(model) -> None:
    unfreeze(model, ("all",))
    train_mode(model.eval())
    assert all(module.training for module in model.modules())
    train_mode(model, freeze_batchnorm=True)
    still = {module for module in model.modules() if not module.training}
    assert still == {m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)}
