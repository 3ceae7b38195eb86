"""mixup and CutMix against loops over images and pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from petface.augment.mixing import Mixed, cutmix, mixed_cross_entropy, mixup


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


IMAGES = torch.rand((40, 3, 11, 14), generator=generator(1))


def test_mixup_blends_each_image_with_its_partner():
    mixed = mixup(IMAGES, 0.4, generator())
    assert sorted(mixed.partner.tolist()) == list(range(40))
    for i in range(40):
        share = float(mixed.share[i])
        wanted = share * IMAGES[i] + (1 - share) * IMAGES[mixed.partner[i]]
        torch.testing.assert_close(mixed.images[i], wanted, atol=1e-6, rtol=0)


def test_cutmix_replaces_one_rectangle_and_counts_its_pixels():
    mixed = cutmix(IMAGES, 1.0, generator())
    for i, partner in enumerate(mixed.partner.tolist()):
        kept = replaced = 0
        rows, columns = set(), set()
        for y in range(11):
            for x in range(14):
                pixel = mixed.images[i, :, y, x]
                if torch.equal(pixel, IMAGES[i, :, y, x]):
                    kept += 1
                if torch.equal(pixel, IMAGES[partner, :, y, x]) and partner != i:
                    replaced += 1
                    rows.add(y)
                    columns.add(x)
        if partner == i:
            assert kept == 11 * 14
            continue
        assert kept + replaced == 11 * 14 and replaced == len(rows) * len(columns)
        assert rows == set(range(min(rows, default=0), max(rows, default=-1) + 1))
        assert columns == set(range(min(columns, default=0), max(columns, default=-1) + 1))
        assert float(mixed.share[i]) == pytest.approx(kept / (11 * 14), abs=1e-6)


def test_shares_follow_the_beta_distribution():
    many = torch.zeros((20_000, 1, 1, 1))
    for alpha in (0.2, 1.0, 3.0):
        share = mixup(many, alpha, generator(5)).share
        assert share.mean() == pytest.approx(0.5, abs=0.01)
        assert share.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)  # of Beta(a, a)
    inside = cutmix(torch.zeros((4000, 1, 64, 64)), 1.0, generator(5))
    assert 0.5 < inside.share.mean() < 0.7  # boxes cut at the border replace less


@pytest.mark.parametrize("mix", [mixup, cutmix])
def test_a_seed_gives_the_same_mix_and_the_input_stays(mix):
    before = IMAGES.clone()
    one, same, other = (mix(IMAGES, 0.5, generator(s)) for s in (3, 3, 4))
    assert torch.equal(IMAGES, before)
    assert torch.equal(one.images, same.images) and torch.equal(one.share, same.share)
    assert not torch.equal(one.images, other.images)
    half = mix(IMAGES.bfloat16(), 0.5, generator(3))
    assert half.images.dtype == torch.bfloat16 and torch.equal(half.share, one.share)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_counts_the_known_part_of_each_pair(smoothing):
    draw = np.random.default_rng(2)
    logits = torch.from_numpy(draw.normal(size=(40, 5))).float().requires_grad_()
    labels = torch.from_numpy(draw.integers(-1, 5, 40))
    mixed = mixup(IMAGES, 0.7, generator(9))
    found = mixed_cross_entropy(logits, labels, mixed, smoothing)
    total = weight = 0.0
    for i in range(40):
        share = float(mixed.share[i])
        for label, part in ((labels[i], share), (labels[mixed.partner[i]], 1 - share)):
            if label >= 0:
                loss = F.cross_entropy(logits[i], label, label_smoothing=smoothing)
                total, weight = total + part * float(loss.detach()), weight + part
    assert float(found.detach()) == pytest.approx(total / weight, rel=1e-5)
    found.backward()
    unknown = (labels < 0) & (labels[mixed.partner] < 0)
    assert unknown.any() and logits.grad is not None
    assert torch.equal(logits.grad[unknown], torch.zeros_like(logits[unknown]))
    assert (logits.grad[~unknown].abs().sum(1) > 0).all()


def test_pairs_with_themselves_are_plain_cross_entropy_and_nothing_known_is_zero():
    logits = torch.randn((6, 4), generator=generator()).requires_grad_()
    labels = torch.tensor([0, 3, -1, 2, 1, -1])
    alone = Mixed(IMAGES[:6], torch.arange(6), torch.linspace(0, 1, 6))
    wanted = F.cross_entropy(logits, labels, ignore_index=-1)
    torch.testing.assert_close(mixed_cross_entropy(logits, labels, alone), wanted)
    nothing = mixed_cross_entropy(logits, torch.full((6,), -1), alone)
    nothing.backward()
    assert nothing == 0 and torch.equal(logits.grad, torch.zeros_like(logits))
