"""Several bodies in one network against each of them alone."""

from __future__ import annotations

import pytest
import torch

from petface.models import backbones, multi_body
from petface.models.architecture import Architecture, build_body, build_classifier
from petface.models.multi_head import _MultiHeadModel

NAME = "mobilenet_v3_small"
TWO = Architecture(NAME, bodies=2)


def images() -> torch.Tensor:
    return torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(1))


def alone(state: dict[str, torch.Tensor]) -> torch.nn.Module:
    body = backbones.build_body(NAME).eval()
    body.load_state_dict(state)
    return body


def test_features_stand_in_a_row_before_one_head() -> None:
    network = build_classifier(TWO, 5).eval()
    first, second = map(alone, multi_body.states_of_bodies(bodies_alone(network)))
    with torch.inference_mode():
        features = torch.cat([first(images()), second(images())], dim=1)
        expected = features @ network.head.weight.T + network.head.bias
        torch.testing.assert_close(network(images()), expected)
    assert features.shape == (3, TWO.width) and not torch.equal(
        features[:, :576], features[:, 576:]
    )


def bodies_alone(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: t for key, t in network.state_dict().items() if not key.startswith("head.")}


def test_every_head_of_a_specialist_sees_all_bodies() -> None:
    model = _MultiHeadModel({"breed": 4, "gender": 2}, TWO).eval()
    first, second = map(alone, multi_body.states_of_bodies(model.body.state_dict()))
    with torch.inference_mode():
        features = torch.cat([first(images()), second(images())], dim=1)
        for output, name in zip(model(images()), model.head_names, strict=True):
            torch.testing.assert_close(output, model.heads[name](features))


def test_maps_are_joined_by_stage() -> None:
    network = build_classifier(TWO, 5).eval()
    first, second = map(alone, multi_body.states_of_bodies(bodies_alone(network)))
    with torch.inference_mode():
        logits, maps = multi_body.forward_with_maps(network, images())
        assert torch.equal(logits, network(images()))
        parts = [backbones.forward_with_maps(body, images())[1] for body in (first, second)]
    assert tuple(stage.shape[1] for stage in maps) == TWO.map_channels
    for stage, one, two in zip(maps, *parts, strict=True):
        torch.testing.assert_close(stage, torch.cat([one, two], dim=1))


def test_a_single_body_is_its_own_list() -> None:
    body = build_body(Architecture(NAME))
    assert multi_body.bodies_of(body) == [body]
    state = {"features.0.weight": torch.ones(1), "bodies": torch.ones(1)}
    assert multi_body.states_of_bodies(state) == [state]


def test_the_state_of_each_body_keeps_the_order_of_numbers() -> None:
    state = {f"bodies.{k}.conv1.weight": torch.tensor(k) for k in (10, 2, 0)}
    found = multi_body.states_of_bodies({**state, "head.weight": torch.ones(1)})
    assert [int(one["conv1.weight"]) for one in found] == [0, 2, 10]


def test_the_stage_of_a_parameter_is_that_of_its_body() -> None:
    with torch.device("meta"):
        network = build_body(TWO)
    for name, _ in network.named_parameters():
        _, _, own = name.split(".", 2)
        assert multi_body.stage_of(NAME, name) == backbones.stage_of(NAME, own)
    with pytest.raises(AssertionError, match="head"):
        multi_body.stage_of(NAME, "head.weight")
