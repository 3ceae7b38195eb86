"""The fast augmentation against the exact one and per-pixel arithmetic; crops against scipy."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torchvision.transforms.v2 import functional as TF

from petface.errors import UserError
from petface.training.augment import (
    BASE,
    NONE,
    TAIL,
    AugmentParameters,
    AugmentRegime,
    augment,
    augment_batch,
    augment_fast,
    draw_parameters,
)
from tests.training.augment.test_exact import (
    COLOURS,
    generator,
    nothing,
    pictures,
    spread,
    torchvision_affine,
)

NO_COLOUR = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
WAYS = [augment, augment_fast]


def photos(num: int = 100, height: int = 40, width: int = 52) -> torch.Tensor:
    """Smooth random colours: neighbouring pixels are alike, as in a photo."""
    coarse = torch.rand((num, 3, 6, 7), generator=generator(4)) * 1.4 - 0.2
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return (fine.clamp(0, 1) * 255).to(torch.uint8)


def drawn(num: int, regime: AugmentRegime, seed: int = 3) -> AugmentParameters:
    return draw_parameters(torch.ones(num, dtype=torch.bool), NONE, regime, generator(seed))


def one_of(parameters: AugmentParameters, rows: slice) -> AugmentParameters:
    return AugmentParameters(
        **{f.name: getattr(parameters, f.name)[rows] for f in fields(NONE_ROW)}
    )


NONE_ROW = nothing(1)


@pytest.mark.parametrize("shape", [(40, 52), (33, 20), (1, 7)])
def test_without_colours_fast_is_torchvision_too(shape):
    images = pictures(24, *shape)
    p = drawn(24, replace(TAIL, erase_p=0.0, **NO_COLOUR))
    assert p.flip.any() and not p.flip.all()
    found = augment_fast(images, p)
    for i, image in enumerate(images):
        wanted = image.flip(-1) if p.flip[i] else image
        wanted = torchvision_affine(wanted / 255, p, i)
        torch.testing.assert_close(found[i], wanted, atol=5e-5, rtol=0)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_one_colour_operation_alone_is_torchvisions(name):
    images = pictures()
    function, low, high = COLOURS[name]
    factors = spread(len(images), low, high)
    found = augment_fast(images, replace(nothing(len(images)), **{name: factors}))
    for i, image in enumerate(images):
        wanted = function(image / 255, float(factors[i]))
        torch.testing.assert_close(found[i], wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("turns", [-0.5, -1 / 3, -0.1, 0.05, 1 / 3])
def test_hue_turns_about_the_grey_axis(turns):
    images = pictures(6, 8, 9)
    found = augment_fast(images, replace(nothing(6), hue=torch.full((6,), turns)))
    x, axis = (images / 255).permute(0, 2, 3, 1).double(), torch.ones(3).double() / math.sqrt(3)
    along = (x @ axis)[..., None] * axis  # what stays
    across = x - along
    around = torch.linalg.cross(axis.expand_as(across), across)
    angle = 2 * math.pi * turns
    wanted = along + math.cos(angle) * across + math.sin(angle) * around
    wanted = wanted.clamp(0, 1).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_a_third_of_a_turn_exchanges_the_channels_as_hsv_does():
    images = pictures()
    p = replace(nothing(24), hue=torch.full((24,), 1 / 3))
    wanted = torch.stack([TF.adjust_hue(image / 255, 1 / 3) for image in images])
    torch.testing.assert_close(augment_fast(images, p), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("regime, most_mean, most", [(BASE, 0.009, 0.13), (TAIL, 0.018, 0.32)])
def test_how_far_fast_is_from_exact(regime, most_mean, most):
    """On the scale 0..1: hue is another formula, and contrast does not clamp before saturation."""
    images = photos(200)
    p = drawn(200, regime)
    difference = (augment(images, p) - augment_fast(images, p)).abs()
    assert difference.mean() < most_mean and difference.max() < most
    p = replace(p, hue=torch.zeros(200))
    assert (augment(images, p) - augment_fast(images, p)).abs().mean() < most_mean / 5


def test_fast_erases_the_same_boxes_and_no_change_is_exact():
    images = pictures()
    boxes = drawn(24, AugmentRegime(erase_p=1.0, erase_area_max_frac=0.5))
    assert torch.equal(augment_fast(images, boxes), augment(images, boxes))
    assert not torch.equal(augment_fast(images, boxes), images / 255)
    assert torch.equal(augment_fast(images, nothing(24)), images / 255)


@pytest.mark.parametrize("size_px", [24, 300])
def test_in_fast_mode_an_image_does_not_depend_on_its_neighbours(size_px):
    images = pictures(9, size_px, size_px)
    p = draw_parameters(torch.arange(9) % 2 == 0, NONE, TAIL, generator(5))
    together = augment_fast(images, p)
    for i in range(9):
        alone = augment_fast(images[i : i + 1], one_of(p, slice(i, i + 1)))[0]
        torch.testing.assert_close(alone, together[i], atol=3e-5, rtol=0)


def test_fast_is_deterministic_and_in_range_in_every_dtype():
    images, is_tail = pictures(), torch.arange(24) % 2 == 0
    first = augment_batch(images, is_tail, BASE, TAIL, generator(7), mode="fast")
    again = augment_batch(images, is_tail, BASE, TAIL, generator(7), mode="fast")
    other = augment_batch(images, is_tail, BASE, TAIL, generator(8), mode="fast")
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.min() >= 0 and first.max() <= 1
    half = augment_batch(images, is_tail, BASE, TAIL, generator(7), torch.bfloat16, mode="fast")
    assert torch.equal(half, first.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = augment_batch(images, is_tail, BASE, TAIL, generator(7), mode="fast")
    assert torch.equal(inside, first)
    last = images.contiguous(memory_format=torch.channels_last)
    found = augment_batch(last, is_tail, BASE, TAIL, generator(7), mode="fast")
    torch.testing.assert_close(found, first, atol=1e-6, rtol=0)


def crop_by_scipy(image: torch.Tensor, box: list[float]) -> torch.Tensor:
    """Enlarge a box (fractions) of (3, H, W) to the whole: bilinear, borders repeated."""
    _, height, width = image.shape
    left, top, right, bottom = box
    x = (left + (np.arange(width) + 0.5) / width * (right - left)) * width - 0.5
    y = (top + (np.arange(height) + 0.5) / height * (bottom - top)) * height - 0.5
    places = np.meshgrid(y, x, indexing="ij")
    planes = [map_coordinates(c, places, order=1, mode="nearest") for c in image.double().numpy()]
    return torch.from_numpy(np.stack(planes)).float() / 255


@pytest.mark.parametrize("way", WAYS)
def test_a_crop_is_enlarged_as_scipy_does_it(way):
    images = pictures(20)
    p = drawn(20, AugmentRegime(crop_area_min_frac=0.1, crop_aspect_max=2.0, flip_p=0.5))
    found = way(images, p)
    for i, image in enumerate(images):
        flipped = image.flip(-1) if p.flip[i] else image
        wanted = crop_by_scipy(flipped, p.crop_box_frac[i].tolist())
        torch.testing.assert_close(found[i], wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("way", WAYS)
def test_a_crop_of_whole_pixels_is_torchvisions_inside(way):
    """At its border torchvision repeats the box's own pixels where ours sees the neighbours."""
    image = pictures(8)[6:7]
    box = torch.tensor([[8 / 52, 6 / 40, 34 / 52, 26 / 40]])  # half of both sides
    found = way(image, replace(nothing(1), crop_box_frac=box))[0]
    wanted = TF.resized_crop(image[0] / 255, 6, 8, 20, 26, [40, 52], antialias=False)
    torch.testing.assert_close(found[:, 1:-1, 1:-1], wanted[:, 1:-1, 1:-1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("way", WAYS)
def test_what_moves_after_a_crop_moves_in_the_enlarged_image(way):
    """On linear ramps two bilinear resamplings are exact, so they equal the one that is done."""
    down, across = torch.meshgrid(torch.arange(40), torch.arange(52), indexing="ij")
    ramps = torch.stack((2 * across + 3 * down, 255 - 4 * across, 255 - 6 * down)).to(torch.uint8)
    box = torch.tensor([[0.2, 0.15, 0.75, 0.9]])
    images, regime = ramps.expand(12, 3, 40, 52), AugmentRegime(rotate_deg=20, translate_frac=0.1)
    p = replace(drawn(12, regime), crop_box_frac=box.expand(12, 4))
    found = way(images, p)
    for i in range(12):
        wanted = torchvision_affine(crop_by_scipy(ramps, box[0].tolist()), p, i)
        whole = torchvision_affine(torch.ones(3, 40, 52), p, i) == 1  # not outside the crop
        assert whole.float().mean() > 0.5
        torch.testing.assert_close(found[i][whole], wanted[whole], atol=1e-4, rtol=0)


@pytest.mark.parametrize("way", WAYS)
def test_a_crop_beside_uncropped_images_leaves_those_alone(way):
    images = pictures(10)
    p = drawn(10, TAIL)
    box = p.crop_box_frac.clone()
    assert torch.equal(box, torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(10, 4))
    box[3] = torch.tensor([0.2, 0.1, 0.7, 0.9])
    found, before = way(images, replace(p, crop_box_frac=box)), way(images, p)
    others = torch.arange(10) != 3
    torch.testing.assert_close(found[others], before[others], atol=1e-6, rtol=0)
    assert (found[3] - before[3]).abs().max() > 0.1


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


@pytest.mark.parametrize("wrong", [{"crop_area_min_frac": 0.0}, {"crop_aspect_max": 0.5}])
def test_a_crop_out_of_range_is_refused_by_name(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        AugmentRegime(**wrong)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fast_on_cuda_gives_the_same_as_the_cpu():
    images = pictures(64, 64, 64)
    p = drawn(64, replace(TAIL, crop_area_min_frac=0.3))
    found = augment_fast(images.cuda(), p).cpu()
    torch.testing.assert_close(found, augment_fast(images, p), atol=2e-4, rtol=0)
