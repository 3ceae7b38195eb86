"""Batched augmentation against torchvision's functions and scipy, one image at a time."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from petface.data.images import normalise
from petface.training.augment import exact
from petface.training.augment.exact import augment
from petface.training.augment.regimes import (
    BASE,
    NONE,
    TAIL,
    AugmentParameters,
    AugmentRegime,
    draw_parameters,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(num: int = 24, height: int = 40, width: int = 52, seed: int = 1) -> torch.Tensor:
    """Random pixels, and what colour arithmetic stumbles on: grey, black, white, pure colours."""
    images = torch.randint(0, 256, (num, 3, height, width), generator=generator(seed))
    images[0] = images[0, :1]  # grey
    images[1] = 0
    images[2] = 255
    corners = torch.cartesian_prod(*[torch.tensor([0, 255])] * 3)  # (8, 3) black, blue ... white
    images[3] = corners.T.repeat(1, height * width // 8 + 1)[:, : height * width].view(
        3, height, -1
    )
    images[4] = images[4] // 64 * 64  # many ties between channels
    return images.to(torch.uint8)


def nothing(num: int) -> AugmentParameters:
    return draw_parameters(torch.zeros(num, dtype=torch.bool), NONE, NONE, generator())


def spread(num: int, low: float, high: float) -> torch.Tensor:
    return torch.linspace(low, high, num)


def torchvision_affine(image: torch.Tensor, p: AugmentParameters, i: int) -> torch.Tensor:
    height, width = image.shape[-2:]
    shift = [float(p.translate_x_frac[i]) * width, float(p.translate_y_frac[i]) * height]
    bilinear = InterpolationMode.BILINEAR
    angle, scale, shear = (float(v[i]) for v in (p.angle_deg, p.scale, p.shear_deg))
    return TF.affine(image, angle, shift, scale, [shear, 0.0], interpolation=bilinear)


COLOURS = {
    "brightness": (TF.adjust_brightness, 0.0, 2.0),
    "contrast": (TF.adjust_contrast, 0.0, 2.0),
    "saturation": (TF.adjust_saturation, 0.0, 2.0),
    "hue": (TF.adjust_hue, -0.5, 0.5),
    "blur_px": (lambda x, px: TF.gaussian_blur(x, 9, px) if px else x, 0.1, 2.0),
}


@pytest.mark.parametrize("name", COLOURS)
def test_colour_equals_torchvision(name):
    images = pictures()
    function, low, high = COLOURS[name]
    factors = spread(len(images), low, high)
    found = augment(images, replace(nothing(len(images)), **{name: factors}))
    for i, image in enumerate(images):
        wanted = function(image / 255, float(factors[i]))
        torch.testing.assert_close(found[i], wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(40, 52), (33, 20), (1, 7)])
def test_affine_equals_torchvision(shape):
    images = pictures(24, *shape)
    num = len(images)
    parameters = replace(
        nothing(num),
        angle_deg=spread(num, -180, 180),
        translate_x_frac=spread(num, 0.3, -0.2),
        translate_y_frac=spread(num, -0.1, 0.4),
        scale=spread(num, 0.5, 1.7),
        shear_deg=spread(num, 35, -40),
    )
    found = augment(images, parameters)
    for i, image in enumerate(images):
        # A sampling position may differ by 1e-5 px, and neighbouring pixels here differ by up to 1.
        wanted = torchvision_affine(image / 255, parameters, i)
        torch.testing.assert_close(found[i], wanted, atol=5e-5, rtol=0)


def test_whole_chain_equals_torchvision_in_the_same_order():
    images = pictures(64)
    is_tail = torch.arange(len(images)) % 2 == 1
    regimes = (replace(regime, erase_p=0.0, blur_p=0.5) for regime in (BASE, TAIL))
    parameters = draw_parameters(is_tail, *regimes, generator(3))
    for drawn in (parameters.flip, parameters.blur_px > 0):
        assert drawn.any() and not drawn.all()
    found = augment(images, parameters)
    for i, image in enumerate(images):
        wanted = image / 255
        wanted = wanted.flip(-1) if parameters.flip[i] else wanted
        wanted = torchvision_affine(wanted, parameters, i)
        for name, (function, _, _) in COLOURS.items():
            wanted = function(wanted, float(getattr(parameters, name)[i]))
        torch.testing.assert_close(found[i], wanted, atol=2e-4, rtol=0)


@pytest.mark.parametrize("size_px", [24, 300])
def test_an_image_does_not_depend_on_its_neighbours_and_no_change_is_exactly_the_pixels(size_px):
    images, is_tail = pictures(9, size_px, size_px), torch.arange(9) % 2 == 0
    parameters = draw_parameters(is_tail, NONE, TAIL, generator(5))
    together = augment(images, parameters)
    assert torch.equal(together[~is_tail], images[~is_tail] / 255)
    assert not torch.isclose(together[is_tail], images[is_tail] / 255).all()
    assert torch.equal(augment(images, nothing(9)), images / 255)
    for i in range(len(images)):
        alone = augment(images[i : i + 1], parameters[i : i + 1])[0]
        torch.testing.assert_close(alone, together[i], atol=1e-6, rtol=0)


def test_parameters_of_an_image_do_not_depend_on_the_regimes_of_the_others():
    one = draw_parameters(torch.tensor([True, False, False]), BASE, TAIL, generator(2))
    other = draw_parameters(torch.tensor([True, True, True]), BASE, TAIL, generator(2))
    for field in fields(one):
        assert torch.equal(getattr(one, field.name)[0], getattr(other, field.name)[0]), field.name
    assert one.angle_deg[1] * 1.2 == pytest.approx(float(other.angle_deg[1]))  # 10 and 12 degrees


def test_drawn_ranges_are_those_of_each_regime():
    is_tail = torch.arange(4000) % 2 == 1
    base, tail = (replace(r, scale_min=0.8, scale_max=1.2) for r in (BASE, TAIL))
    p = draw_parameters(is_tail, base, tail, generator())
    for regime, rows in ((base, ~is_tail), (tail, is_tail)):
        ranges = {
            "angle_deg": (0, regime.rotate_deg),  # middle, and how far to both sides
            "translate_x_frac": (0, regime.translate_frac),
            "translate_y_frac": (0, regime.translate_frac),
            "scale": (1, regime.scale_max - 1),
            "shear_deg": (0, regime.shear_deg),
            "brightness": (1, regime.brightness),
            "contrast": (1, regime.contrast),
            "saturation": (1, regime.saturation),
            "hue": (0, regime.hue),
        }
        for name, (middle, most) in ranges.items():
            low, high = middle - most, middle + most
            values, slack = getattr(p, name)[rows], (high - low) * 0.01
            assert low - 1e-6 <= values.min() <= low + slack, name
            assert high - slack <= values.max() <= high + 1e-6, name
            assert values.mean() == pytest.approx(middle, abs=most * 0.06), name
        assert p.flip[rows].float().mean() == pytest.approx(regime.flip_p, abs=0.04)
        erased = (p.erase_box_frac[rows, 3] > 0).float().mean()
        assert erased == pytest.approx(regime.erase_p, abs=0.04)
    drawn = torch.stack([getattr(p, name) for name in ranges])
    off_diagonal = torch.corrcoef(drawn[:, is_tail]) - torch.eye(len(drawn))
    assert off_diagonal.abs().max() < 0.1  # no draw is used for two quantities


@pytest.mark.parametrize("area_max", [0.05, 0.3, 1.0])
def test_erasing_blackens_one_rectangle_of_the_drawn_area(area_max):
    regime = AugmentRegime(erase_p=1.0, erase_area_max_frac=area_max)
    num, height, width = 200, 60, 40
    white = torch.full((num, 3, height, width), 255, dtype=torch.uint8)
    p = draw_parameters(torch.zeros(num, dtype=torch.bool), regime, NONE, generator())
    box = p.erase_box_frac
    assert (box >= 0).all() and (box <= 1 + 1e-6).all()
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    assert 0.1 * area_max - 1e-6 <= area.min() <= 0.2 * area_max
    assert 0.9 * area_max <= area.max() <= area_max + 1e-6
    black = augment(white, p) == 0
    assert torch.equal(black[:, 0], black[:, 1]) and torch.equal(black[:, 0], black[:, 2])
    left, top, right, bottom = box.view(num, 4, 1).unbind(1)
    across, down = (torch.arange(width) + 0.5) / width, (torch.arange(height) + 0.5) / height
    columns, rows = (left <= across) & (across < right), (top <= down) & (down < bottom)
    assert torch.equal(black[:, 0], rows[:, :, None] & columns[:, None])  # by their centres


def test_normalise():
    images = pictures() / 255
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    torch.testing.assert_close(normalise(images, mean, std), TF.normalize(images, mean, std))
    assert normalise(images, None, None) is images
    half = normalise(images.bfloat16(), mean, std)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), TF.normalize(images, mean, std), atol=0.03, rtol=0)


def test_an_export_leaves_no_statistics_without_numbers_behind():
    """What an export traces is made of tensors that have a shape alone."""

    class Normalised(torch.nn.Module):
        def forward(self, x):
            return normalise(x, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))

    images, network = pictures() / 255, Normalised()
    exported = torch.export.export(network, (images,)).module()
    for found in (network(images), exported(images)):
        expected = TF.normalize(images, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        torch.testing.assert_close(found, expected)


def test_the_memory_format_and_autocast_change_nothing_and_the_input_stays():
    images = pictures()
    before, strided = images.clone(), images.contiguous(memory_format=torch.channels_last)
    parameters = draw_parameters(torch.ones(24, dtype=torch.bool), BASE, TAIL, generator(7))
    wanted = augment(images, parameters)
    assert torch.equal(images, before) and wanted.min() >= 0 and wanted.max() <= 1
    torch.testing.assert_close(augment(strided, parameters), wanted, atol=1e-6, rtol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(augment(images, parameters), wanted)
    assert augment(images[:0], parameters[:0]).shape == (0, 3, 40, 52)
    rows = exact.Table.of(parameters, 40, 52, images.device).rows
    fixed = exact._on_gpu.function(images, rows, torch.Tensor.float, True)
    assert torch.equal(fixed, wanted)  # as on a GPU: every operation done to every image


@pytest.mark.parametrize(
    "wrong",
    [{"hue": -0.1}, {"scale_min": 1.2, "scale_max": 1.1}, {"crop_area_min_frac": 0.0}],
    ids=repr,
)
def test_an_impossible_regime_is_a_programmers_error(wrong):
    with pytest.raises(AssertionError):
        AugmentRegime(**wrong)


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_same_as_the_cpu():
    images = pictures(64, 64, 64)
    parameters = draw_parameters(torch.arange(64) % 2 == 0, BASE, TAIL, generator())
    found = augment(images.cuda(), parameters).cpu()
    torch.testing.assert_close(found, augment(images, parameters), atol=2e-4, rtol=0)
