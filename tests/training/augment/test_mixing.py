"""mixup and CutMix against loops over images and pixels."""

from __future__ import annotations

import pytest
import torch

from petface.training.augment.mixing import Mixing, cutmix, draw_mix, mixup

IMAGES = torch.rand((40, 3, 11, 14), generator=torch.Generator().manual_seed(1))
PARTNER = torch.randperm(40, generator=torch.Generator().manual_seed(2))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mix_batch(images, mixing, draw):
    mix = draw_mix(len(images), mixing, draw, images.device)
    return mix and mix(images)


def test_mixup_blends_each_image_with_its_partner():
    mixed = mixup(IMAGES, PARTNER, 0.3)
    for i in range(40):
        wanted = 0.3 * IMAGES[i] + 0.7 * IMAGES[PARTNER[i]]
        torch.testing.assert_close(mixed.images[i], wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("centre", [(0.5, 0.5), (0.0, 1.0), (0.9, 0.2)])
@pytest.mark.parametrize("wanted", [0.0, 0.4, 0.9, 1.0])
def test_cutmix_replaces_one_rectangle_and_counts_its_pixels(centre, wanted):
    mixed = cutmix(IMAGES, PARTNER, wanted, centre)
    half = [(1 - wanted) ** 0.5 * side / 2 for side in (11, 14)]
    kept = 0
    for y in range(11):
        for x in range(14):
            pixels = mixed.images[:, :, y, x]
            is_own = torch.equal(pixels, IMAGES[:, :, y, x])
            assert is_own or torch.equal(pixels, IMAGES[PARTNER, :, y, x])
            kept += is_own
            away = abs(y + 0.5 - centre[0] * 11) - half[0], abs(x + 0.5 - centre[1] * 14) - half[1]
            if max(away) < -0.5 or max(away) > 0.5:  # not at the rounded border
                assert is_own == (max(away) > 0)
    assert mixed.share == pytest.approx(kept / (11 * 14), abs=1e-6)


def test_shares_follow_the_beta_distribution():
    few = IMAGES[:2, :, :1, :1]
    for alpha in (0.2, 1.0, 3.0):
        mixing = Mixing("mixup", 1.0, alpha)
        found = [mix_batch(few, mixing, generator(seed)) for seed in range(3000)]
        share = torch.tensor([mixed.share for mixed in found if mixed])
        assert len(share) == 3000 and share.mean() == pytest.approx(0.5, abs=0.02)
        assert share.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)  # of Beta(a, a)


def test_as_many_batches_are_mixed_as_was_asked_for_and_both_ways_come_up():
    mixing = Mixing("both", 0.6)
    found = [mix_batch(IMAGES[:4], mixing, generator(seed)) for seed in range(1000)]
    assert sum(mixed is not None for mixed in found) == pytest.approx(600, abs=50)
    blended = 0
    for mixed in found:
        if mixed and mixed.partner.tolist() == [1, 2, 3, 0] and 0.1 < mixed.share < 0.9:
            is_own = torch.isclose(mixed.images, IMAGES[:4])
            is_partner = torch.isclose(mixed.images, IMAGES[[1, 2, 3, 0]])
            blended += not (is_own | is_partner).all()
    assert 3 < blended < 25
    assert mix_batch(IMAGES, Mixing("both", 0.0), generator()) is None
    assert mix_batch(IMAGES, Mixing("none", 1.0), generator()) is None


@pytest.mark.parametrize("kind", ["mixup", "cutmix", "both"])
def test_a_seed_gives_the_same_mix_and_the_input_stays(kind):
    before, mixing = IMAGES.clone(), Mixing(kind, 1.0, 0.5)
    one, same, other = (mix_batch(IMAGES, mixing, generator(s)) for s in (3, 3, 4))
    assert one and same and other and torch.equal(IMAGES, before)
    assert torch.equal(one.images, same.images) and one.share == same.share
    assert not torch.equal(one.images, other.images)
    half = mix_batch(IMAGES.bfloat16(), mixing, generator(3))
    assert half and half.images.dtype == torch.bfloat16 and half.share == one.share


@pytest.mark.parametrize("kind", ["mixup", "cutmix", "both"])
def test_processes_with_other_numbers_of_images_draw_the_same_way(kind):
    mixing = Mixing(kind, 0.7)
    for seed in range(30):
        one, other = (mix_batch(IMAGES[:n], mixing, generator(seed)) for n in (7, 40))
        assert (one is None) == (other is None)
        assert one is None or other is None or one.share == other.share


@pytest.mark.parametrize(
    ("losses", "share"),
    [
        ([], 0.5),
        ([3.0, 2.0], 0.3),
        ([3.0, 2.0, 2.0], 0.5),  # not lower: more
        ([2.0, 3.0, 4.0, 5.0, 6.0], 1.0),
        ([9.0 - k for k in range(9)], 0.0),
        ([2.0, float("nan"), 1.0], 0.5),
    ],
)
def test_more_is_mixed_while_the_validation_loss_rises_and_less_while_it_falls(losses, share):
    after = Mixing("both", 0.8, adapts=True).after(losses)
    assert after.probability == pytest.approx(0.8 * share) and after.kind == "both"
    assert Mixing("both", 0.8).after(losses) == Mixing("both", 0.8)
