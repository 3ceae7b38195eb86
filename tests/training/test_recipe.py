"""What both trainers build: optimizer groups and losses, against hand-made ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from petface.data.loading import Batch
from petface.models.architecture import Architecture, _MultiHeadModel, build_classifier, unfreeze
from petface.training import losses
from petface.training.phases import make_optimizer
from petface.training.recipe import WeightAverage, focal_gammas, heads_loss
from petface.training.sampling import class_weights

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


def test_an_average_of_a_model_without_counters_follows_good_steps_alone():
    model = torch.nn.Linear(2, 1, bias=False)
    average = WeightAverage(model, 0.9)
    before = model.weight.detach().clone()
    torch.nn.init.zeros_(model.weight)
    average.update(model, torch.tensor(0.0))
    assert torch.equal(average.model.weight, before)
    average.update(model, torch.tensor(1.0))
    torch.testing.assert_close(average.model.weight, 0.1 * before)


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


def test_the_log_shares_of_the_classes_are_added_to_the_logits():
    """Balanced softmax (tau 1) by its formula: p_k = share_k exp(z_k) / sum share exp(z)."""
    shown, labels = np.array([80.0, 15.0, 5.0]), np.array([0, 1, 2, 2])
    batch = batch_of({"species": labels})
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    weighed = torch.from_numpy(shown / shown.sum()).float() * logits.exp()
    p = (weighed / weighed.sum(1, keepdim=True))[torch.arange(4), torch.from_numpy(labels)]
    head = {"species": shown}, {"species": 0.0}, CPU
    weights, loss = heads_loss(*head, logit_adjustment=1.0)
    torch.testing.assert_close(loss((logits,), batch), [-p.log().mean()])
    assert weights == {"species": None}
    # by how often the sampler shows a class, where that is not how often it occurs
    even = {"species": np.ones(3)}, {"species": 0.0}, CPU
    _, as_shown = heads_loss(*even, logit_adjustment=1.0, shown={"species": shown})
    torch.testing.assert_close(as_shown((logits,), batch), [-p.log().mean()])
    _, plain = heads_loss(*head, label_smoothing=0.1)
    wanted = F.cross_entropy(logits, torch.from_numpy(labels), label_smoothing=0.1)
    torch.testing.assert_close(plain((logits,), batch), [wanted])


@pytest.mark.parametrize(
    ("heads", "gammas"),
    [
        (("breed", "gender"), (2.5, 0.0)),
        (("color1", "gender"), (2.0, 0.0)),
        (("breed", "color2"), (2.0, 2.0)),  # one colour among them is enough
        (("color", "breed", "gender"), (2.0, 2.0, 0.0)),
    ],
)
def test_a_specialists_loss_has_the_weights_gammas_and_adjustments_of_its_heads(heads, gammas):
    found = focal_gammas(heads, with_color=2.0, without_color=2.5)
    assert found == dict(zip(heads, gammas, strict=True))
    draw = np.random.default_rng(0)
    sizes = {head: 2 if head == "gender" else 3 for head in heads}
    labels = {head: draw.integers(-1, size, 12) for head, size in sizes.items()}
    shown = {head: np.bincount(labels[head] + 1)[1:] for head in heads}
    outputs = tuple(torch.randn(12, size) for size in sizes.values())
    options = {"label_smoothing": 0.1, "logit_adjustment": 1.0}
    alphas, clip = dict.fromkeys(heads, 0.7) | {"gender": 1.0}, (0.2, 8.0)
    alphas = {head: alphas[head] for head in heads}
    weights, loss = heads_loss(shown, found, CPU, weight_alphas=alphas, weight_clip=clip, **options)
    wanted = []
    for head, gamma, logits in zip(heads, gammas, outputs, strict=True):
        expected = class_weights(shown[head], 1.0 if head == "gender" else 0.7, clip)
        torch.testing.assert_close(weights[head], torch.from_numpy(expected).float())
        logits = logits + losses.logit_adjustment(shown[head], 1.0)
        true = torch.from_numpy(labels[head])
        wanted.append(losses.masked_focal_loss(logits, true, gamma, weights[head], 0.1))
    torch.testing.assert_close(loss(outputs, batch_of(labels)), wanted)
