"""What the trainers' constants become."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import stage2_resnet_multi as stage2
import train_resnet_minority_aug_dynamic as stage1
from petface.data.loading import Batch
from petface.models.architecture import Architecture, build_classifier
from petface.models.multi_head import _MultiHeadModel, unfreeze
from petface.settings import read_settings
from petface.training import losses, recipe
from petface.training.augment.mixing import Mixing

CPU = torch.device("cpu")


def settings(*flags, module=stage1):
    return read_settings(module, list(map(str, flags)))


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2"])
def test_the_body_takes_its_factor_and_every_parameter_is_in_one_group(backbone):
    model = build_classifier(Architecture(backbone), 3)
    plain = recipe.make_optimizer(settings(), model, 0.1)
    assert len(plain.param_groups) == 1
    head, body = recipe.make_optimizer(settings("--body-lr-factor", 0.1), model, 0.1).param_groups
    assert [tuple(p.shape) for p in head["params"]] == [(3, head["params"][0].shape[1]), (3,)]
    assert (body["lr_factor"], "lr_factor" in head) == (0.1, False)
    assert len(head["params"]) + len(body["params"]) == len(list(model.parameters()))


def test_frozen_parameters_are_in_no_group_and_a_head_alone_is_one_group():
    model = _MultiHeadModel({"breed": 3, "gender": 2})
    s = settings("--body-lr-factor", 0.1, module=stage2)
    unfreeze(model, ("heads",))
    (head,) = recipe.make_optimizer(s, model, 0.1).param_groups
    assert len(head["params"]) == 4
    unfreeze(model, ("layer4",))
    groups = recipe.make_optimizer(s, model, 0.1).param_groups
    assert sum(len(g["params"]) for g in groups) == sum(p.requires_grad for p in model.parameters())


def test_mixing_and_averaging_are_off_until_they_are_asked_for():
    assert recipe.make_mixing(settings(), []).kind == "none"
    s = settings("--mix", "both", "--mix-probability", 0.8, "--mix-alpha", 0.4)
    assert recipe.make_mixing(s, [1.0, 2.0]) == Mixing("both", 0.8, 0.4)
    s = settings("--mix", "cutmix", "--mix-probability", 0.8, "--mix-adapts")
    assert recipe.make_mixing(s, [1.0, 2.0]).probability == pytest.approx(0.48)
    model = torch.nn.Linear(2, 2)
    assert recipe.make_average(settings(), model) is None
    average = recipe.make_average(settings("--ema-decay", 0.9), model)
    assert average is not None and average.decay == 0.9 and average.model is not model


def test_a_specialists_loss_has_the_weights_gamma_and_adjustments_of_its_settings():
    sizes = {"breed": 3, "gender": 2}
    labels = {"breed": np.array([0, 0, 0, 1, 2, -1]), "gender": np.array([0, 1, 1, -1, -1, -1])}
    outputs = torch.randn(6, 3), torch.randn(6, 2)
    batch = Batch(
        0, np.arange(6), torch.empty(0), {h: torch.from_numpy(v) for h, v in labels.items()},
        torch.zeros(6, dtype=torch.bool),
    )  # fmt: skip
    s = settings("--label-smoothing", 0.1, "--logit-adjustment", 1.0, module=stage2)
    weights, loss = recipe.specialist_loss(s, sizes, labels, CPU)
    counts = {"breed": np.array([3, 1, 1]), "gender": np.array([1, 2])}
    for head, count in counts.items():
        torch.testing.assert_close(weights[head], losses.inverse_frequency_weights(count))
    wanted = sum(
        losses.masked_focal_loss(
            logits + losses.logit_adjustment(counts[head], 1.0),
            batch.labels[head],
            2.5 if head == "breed" else 0.0,  # breed stands without colours
            weights[head],
            0.1,
        )
        for head, logits in zip(sizes, outputs, strict=True)
    )
    torch.testing.assert_close(loss(outputs, batch), wanted)
    weights, _ = recipe.specialist_loss(
        settings("--class-weights", "none", module=stage2), sizes, labels, CPU
    )
    assert weights == {"breed": None, "gender": None}
