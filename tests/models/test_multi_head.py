"""The specialist's network: order of heads, what is trainable, what BatchNorm does when frozen."""

from __future__ import annotations

import pytest
import torch

from petface.models import multi_head
from petface.models.architecture import Architecture

SIZES = {"breed": 3, "color1": 0, "gender": 2}


@pytest.fixture(scope="module")
def model() -> multi_head._MultiHeadModel:
    return multi_head.ChinchillaMultiHeadResNet18(SIZES)


def trainable(model: multi_head._MultiHeadModel, *stages: str) -> set[str]:
    multi_head.unfreeze(model, stages)
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_a_head_has_its_one_class_and_a_specialist_at_least_one_head(model) -> None:
    one = multi_head.GenericMultiHeadResNet18({"gender": 1, "breed": 0})
    assert model.head_names == ("breed", "gender")
    assert one.head_sizes == {"gender": 1} and one.heads["gender"].weight.shape == (1, 512)
    with pytest.raises(AssertionError):
        multi_head.GenericMultiHeadResNet18({"gender": 0})


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
        model = multi_head._MultiHeadModel({"breed": 4, "gender": 2}, wide)
        plain = multi_head._MultiHeadModel({"breed": 4}, Architecture(name))
    heads = trainable(model)
    assert len(heads) == 2 * 4 and all(name.startswith("heads.") for name in heads)
    both = trainable(model, "layer4", "layer3") - heads
    alone = trainable(plain, "layer4", "layer3") - trainable(plain)
    assert len(both) == 3 * (len(alone) + 4)  # attention has two layers
    assert trainable(model, "all") == {name for name, _ in model.named_parameters()}


def test_frozen_batch_norm_keeps_its_statistics_and_what_is_before_records_nothing(model) -> None:
    multi_head.unfreeze(model, ("layer4",))
    multi_head.train_mode(model)
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
    multi_head.unfreeze(model, ("all",))
    multi_head.train_mode(model.eval())
    assert all(module.training for module in model.modules())
    multi_head.train_mode(model, freeze_batchnorm=True)
    still = {module for module in model.modules() if not module.training}
    assert still == {m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)}
