"""Backbones against torchvision's own networks; the weights policy without any network."""

from __future__ import annotations

import socket
from typing import get_args

import pytest
import torch
import torchvision

from petface.errors import UserError
from petface.models import backbones
from petface.models.architecture import Architecture, build_classifier


def classifier(name: str, num_classes: int) -> torch.nn.Module:
    return build_classifier(Architecture(name), num_classes)


@pytest.mark.parametrize("name", backbones.BACKBONES)
def test_classifier_and_body_are_torchvisions(name: str) -> None:
    network = classifier(name, 3).eval()
    reference = torchvision.models.get_model(name, num_classes=3)
    if "resnet" not in name:  # a single linear layer in place of dropout and others
        reference.classifier = torch.nn.Linear(backbones.describe(name).num_features, 3)
    reference.load_state_dict(network.state_dict())
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(network(images), reference.eval()(images))

        body = backbones.build_body(name)
        backbones.fill_body(body, name, network.state_dict())
        features = body.eval()(images)
        assert features.shape == (2, backbones.describe(name).num_features)
        last = getattr(network, backbones.describe(name).classifier)
        torch.testing.assert_close(last(features), network(images))


@pytest.mark.parametrize("name", backbones.BACKBONES)
def test_the_maps_come_from_the_same_pass(name: str) -> None:
    """Against hooks on the last module of each stage."""
    network = classifier(name, 3).eval()
    images, seen = torch.rand(2, 3, 40, 40), []
    for stage in backbones.STAGE_NAMES[1:]:
        module = backbones.stage_end(network, stage)
        module.register_forward_hook(lambda _module, _inputs, out: seen.append(out))
    with torch.inference_mode():
        expected = network(images)
        hooked, seen = seen, []
        logits, maps = backbones.forward_with_maps(network, images)
        assert torch.equal(logits, expected)
        assert len(maps) == 4
        for stage, value in zip(maps, hooked, strict=True):
            assert torch.equal(stage, value)
        assert tuple(stage.shape[1] for stage in maps) == backbones.describe(name).map_channels
        means = backbones.stage_means(maps)
        torch.testing.assert_close(means, torch.cat([h.flatten(2).mean(2) for h in hooked], dim=1))


@pytest.mark.parametrize("name", backbones.BACKBONES)
def test_every_parameter_is_in_exactly_one_stage(name: str) -> None:
    with torch.device("meta"):
        body = backbones.build_body(name)
    stages = [backbones.stage_of(name, parameter) for parameter, _ in body.named_parameters()]
    assert set(stages) == set(backbones.STAGE_NAMES)
    order = [backbones.STAGE_NAMES.index(stage) for stage in stages]
    assert order == sorted(order)  # parameters come in the order of the stages
    with pytest.raises(AssertionError, match="nowhere"):
        backbones.stage_of(name, "nowhere.weight")


@pytest.mark.parametrize("name", backbones.BACKBONES)
def test_each_stage_halves_the_sides_of_its_maps(name: str) -> None:
    """Strides 4, 8, 16 and 32; and the stage of the parameters of its last module is its own."""
    body = backbones.build_body(name).eval()
    with torch.inference_mode():
        maps = backbones.forward_with_maps(body, torch.rand(1, 3, 64, 64))[1]
    assert [stage.shape[2] for stage in maps] == [16, 8, 4, 2]
    names = {id(module): prefix for prefix, module in body.named_modules()}
    for stage in backbones.STAGE_NAMES:
        prefix = names[id(backbones.stage_end(body, stage))]
        own = [p for p, _ in body.named_parameters() if p.startswith(prefix + ".")]
        assert own and {backbones.stage_of(name, p) for p in own} == {stage}


def test_the_names_that_settings_offer_are_those_that_are_known() -> None:
    assert set(get_args(backbones.BackboneName)) == set(backbones.BACKBONES)


def test_fill_body_leaves_the_classifier_and_refuses_what_does_not_fit() -> None:
    with torch.device("meta"):
        other = classifier("resnet18", 9)
    network = classifier("resnet18", 2)
    before = network.fc.weight.clone()
    state = {name: torch.full(t.shape, 0.5) for name, t in other.state_dict().items()}
    backbones.fill_body(network, "resnet18", state)
    assert torch.equal(network.fc.weight, before)
    assert (network.layer4[1].conv2.weight == 0.5).all()
    assert (network.bn1.running_mean == 0.5).all()

    for spoil in (
        {k: v for k, v in state.items() if k != "layer3.0.bn1.running_var"},
        {**state, "layer9.weight": torch.zeros(1)},
        {**state, "conv1.weight": torch.zeros(64, 1, 7, 7)},
    ):
        with pytest.raises(RuntimeError, match=r"layer3\.0\.bn1|layer9|conv1"):
            backbones.fill_body(network, "resnet18", spoil)


def test_unknown_backbone_is_refused_with_the_list() -> None:
    with pytest.raises(UserError, match=r"'vgg'.*resnet18, resnet34.*mobilenet_v2"):
        backbones.describe("vgg")


def test_weights_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    body = torch.nn.Linear(1, 1)
    patience = []

    def unreachable(*_: object, **__: object) -> None:
        patience.append(socket.getdefaulttimeout())
        raise OSError("network is unreachable")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights.DEFAULT, "get_state_dict", unreachable)
    with pytest.raises(UserError, match=r"unreachable.*PRETRAINED.*WEIGHTS"):
        backbones.load_torchvision_weights(body, "resnet18", "require")
    before = socket.getdefaulttimeout()
    told = backbones.load_torchvision_weights(body, "resnet18", "auto")
    assert told.startswith("random") and "unreachable" in told
    assert patience == [20.0, 20.0] and socket.getdefaulttimeout() == before


def test_weights_that_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {k: v.fill_(0.25) for k, v in torchvision.models.resnet18().state_dict().items()}
    monkeypatch.setattr(
        torchvision.models.ResNet18_Weights.DEFAULT, "get_state_dict", lambda **_: given
    )
    body = backbones.build_body("resnet18")
    told = backbones.load_torchvision_weights(body, "resnet18", "require")
    assert told == "torchvision ResNet18_Weights.IMAGENET1K_V1"
    assert all((p == 0.25).all() for p in body.parameters())
