"""Random crops against scipy, torchvision and the distribution that was asked for."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torchvision.transforms.v2 import functional as TF

from petface.training.augment.exact import augment
from petface.training.augment.regimes import (
    NONE,
    TAIL,
    AugmentParameters,
    AugmentRegime,
    draw_parameters,
)
from tests.training.augment.test_exact import (
    generator,
    nothing,
    pictures,
    torchvision_affine,
)


def drawn(num: int, regime: AugmentRegime, seed: int = 3) -> AugmentParameters:
    return draw_parameters(torch.ones(num, dtype=torch.bool), NONE, regime, generator(seed))


def crop_by_scipy(image: torch.Tensor, box: list[float]) -> torch.Tensor:
    """Enlarge a box (fractions) of (3, H, W) to the whole: bilinear, borders repeated."""
    _, height, width = image.shape
    left, top, right, bottom = box
    x = (left + (np.arange(width) + 0.5) / width * (right - left)) * width - 0.5
    y = (top + (np.arange(height) + 0.5) / height * (bottom - top)) * height - 0.5
    places = np.meshgrid(y, x, indexing="ij")
    planes = [map_coordinates(c, places, order=1, mode="nearest") for c in image.double().numpy()]
    return torch.from_numpy(np.stack(planes)).float() / 255


def test_a_crop_is_enlarged_as_scipy_does_it():
    images = pictures(20)
    p = drawn(20, AugmentRegime(crop_area_min_frac=0.1, crop_aspect_max=2.0, flip_p=0.5))
    found = augment(images, p)
    for i, image in enumerate(images):
        flipped = image.flip(-1) if p.flip[i] else image
        wanted = crop_by_scipy(flipped, p.crop_box_frac[i].tolist())
        torch.testing.assert_close(found[i], wanted, atol=1e-4, rtol=0)


def test_a_crop_of_whole_pixels_is_torchvisions_inside():
    """At its border torchvision repeats the box's own pixels where ours sees the neighbours."""
    image = pictures(8)[6:7]
    box = torch.tensor([[8 / 52, 6 / 40, 34 / 52, 26 / 40]])  # half of both sides
    found = augment(image, replace(nothing(1), crop_box_frac=box))[0]
    wanted = TF.resized_crop(image[0] / 255, 6, 8, 20, 26, [40, 52], antialias=False)
    torch.testing.assert_close(found[:, 1:-1, 1:-1], wanted[:, 1:-1, 1:-1], atol=1e-5, rtol=0)


def test_what_moves_after_a_crop_moves_in_the_enlarged_image():
    """On linear ramps two bilinear resamplings are exact, so they equal the one that is done."""
    down, across = torch.meshgrid(torch.arange(40), torch.arange(52), indexing="ij")
    ramps = torch.stack((2 * across + 3 * down, 255 - 4 * across, 255 - 6 * down)).to(torch.uint8)
    box = torch.tensor([[0.2, 0.15, 0.75, 0.9]])
    images, regime = ramps.expand(12, 3, 40, 52), AugmentRegime(rotate_deg=20, translate_frac=0.1)
    p = replace(drawn(12, regime), crop_box_frac=box.expand(12, 4))
    found = augment(images, p)
    for i in range(12):
        wanted = torchvision_affine(crop_by_scipy(ramps, box[0].tolist()), p, i)
        whole = torchvision_affine(torch.ones(3, 40, 52), p, i) == 1  # not outside the crop
        assert whole.float().mean() > 0.5
        torch.testing.assert_close(found[i][whole], wanted[whole], atol=1e-4, rtol=0)


def test_crops_have_the_drawn_areas_and_ratios():
    p = drawn(4000, AugmentRegime(crop_area_min_frac=0.2, crop_aspect_max=4 / 3))
    left, top, right, bottom = p.crop_box_frac.unbind(1)
    assert min(left.min(), top.min()) >= 0 and max(right.max(), bottom.max()) <= 1 + 1e-6
    area, ratio = (right - left) * (bottom - top), (right - left) / (bottom - top)
    assert area.min() == pytest.approx(0.2, abs=0.01) and area.max() == pytest.approx(1, abs=0.01)
    assert area.mean() == pytest.approx(0.6, abs=0.02)
    assert ratio.min() == pytest.approx(3 / 4, abs=0.01)
    assert ratio.max() == pytest.approx(4 / 3, abs=0.01)
    assert ratio.log().mean() == pytest.approx(0, abs=0.02)
    before = drawn(4000, TAIL)
    cropped = drawn(4000, replace(TAIL, crop_area_min_frac=0.2))
    for field in fields(before):  # a crop takes no draw from the others
        if field.name != "crop_box_frac":
            assert torch.equal(getattr(before, field.name), getattr(cropped, field.name))


def test_a_cropped_image_in_a_mixed_batch_is_what_it_is_alone():
    """The boxes touch the border, where cropped images and the others are resampled differently."""
    images, p = pictures(6), drawn(6, AugmentRegime(rotate_deg=10.0, translate_frac=0.1))
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.6], [0.0, 0.0, 1.0, 1.0]]).repeat(3, 1)
    p = replace(p, crop_box_frac=boxes)
    together = augment(images, p)
    for i in range(6):
        torch.testing.assert_close(augment(images[i : i + 1], p[i : i + 1])[0], together[i])
