"""What both trainers build: optimizer groups and losses, against hand-made ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from petface.data.loading import Batch
from petface.models.architecture import Architecture, build_classifier
from petface.models.multi_head import _MultiHeadModel, unfreeze
from petface.training import losses
from petface.training.recipe import make_optimizer, species_loss
from petface.training.specialist import specialist_loss

CPU = torch.device("cpu")


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2"])
def test_the_body_takes_its_factor_and_every_parameter_is_in_one_group(backbone):
    model = build_classifier(Architecture(backbone), 3)
    (group,) = make_optimizer(model, 0.1, weight_decay=0.02).param_groups
    assert (group["lr"], group["weight_decay"]) == (0.1, 0.02)
    head, body = make_optimizer(model, 0.1, weight_decay=0.02, body_lr_factor=0.1).param_groups
    assert [tuple(p.shape) for p in head["params"]] == [(3, head["params"][0].shape[1]), (3,)]
    assert (body["lr_factor"], "lr_factor" in head) == (0.1, False)
    assert len(head["params"]) + len(body["params"]) == len(list(model.parameters()))


def test_frozen_parameters_are_in_no_group_and_a_head_alone_is_one_group():
    model = _MultiHeadModel({"breed": 3, "gender": 2})
    unfreeze(model, ("heads",))
    (head,) = make_optimizer(model, 0.1, weight_decay=0.0, body_lr_factor=0.1).param_groups
    assert len(head["params"]) == 4
    unfreeze(model, ("layer4",))
    groups = make_optimizer(model, 0.1, weight_decay=0.0, body_lr_factor=0.1).param_groups
    assert sum(len(g["params"]) for g in groups) == sum(p.requires_grad for p in model.parameters())


def batch_of(labels):
    targets = {head: torch.from_numpy(label) for head, label in labels.items()}
    num = len(next(iter(labels.values())))
    return Batch(0, np.arange(num), torch.empty(0), targets, torch.zeros(num, dtype=torch.bool))


def test_the_loss_of_stage_1_adds_the_log_shares_of_the_classes_to_the_logits():
    """Balanced softmax (tau 1) by its formula: p_k = share_k exp(z_k) / sum share exp(z)."""
    shown, labels = np.array([80.0, 15.0, 5.0]), np.array([0, 1, 2, 2])
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    weighed = torch.from_numpy(shown / shown.sum()).float() * logits.exp()
    p = (weighed / weighed.sum(1, keepdim=True))[torch.arange(4), torch.from_numpy(labels)]
    loss = species_loss(shown, CPU, logit_adjustment=1.0)
    torch.testing.assert_close(loss((logits,), batch_of({"species": labels})), -p.log().mean())
    plain = species_loss(shown, CPU, label_smoothing=0.1)((logits,), batch_of({"species": labels}))
    wanted = F.cross_entropy(logits, torch.from_numpy(labels), label_smoothing=0.1)
    torch.testing.assert_close(plain, wanted)


@pytest.mark.parametrize(
    ("heads", "gamma"),
    [
        (("breed", "gender"), 2.5),
        (("color1", "gender"), 2.0),
        (("breed", "color2"), 2.0),  # one colour among them is enough
        (("color", "breed", "gender"), 2.0),
    ],
)
def test_a_specialists_loss_has_the_weights_gamma_and_adjustments_of_its_heads(heads, gamma):
    draw = np.random.default_rng(0)
    sizes = {head: 2 if head == "gender" else 3 for head in heads}
    labels = {head: draw.integers(-1, size, 12) for head, size in sizes.items()}
    outputs = tuple(torch.randn(12, size) for size in sizes.values())
    options = {"gamma_with_color": 2.0, "gamma_without_color": 2.5, "label_smoothing": 0.1}
    weights, loss = specialist_loss(sizes, labels, CPU, **options, logit_adjustment=1.0)
    wanted = torch.zeros(())
    for (head, size), logits in zip(sizes.items(), outputs, strict=True):
        counts = np.bincount(labels[head][labels[head] >= 0], minlength=size)
        torch.testing.assert_close(weights[head], losses.inverse_frequency_weights(counts))
        wanted = wanted + losses.masked_focal_loss(
            logits + losses.logit_adjustment(counts, 1.0),
            torch.from_numpy(labels[head]),
            0.0 if head == "gender" else gamma,
            weights[head],
            0.1,
        )
    torch.testing.assert_close(loss(outputs, batch_of(labels)), wanted)
    weights, _ = specialist_loss(sizes, labels, CPU, **options, weighted=False)
    assert set(weights.values()) == {None}
