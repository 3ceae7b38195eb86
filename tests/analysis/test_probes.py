"""Probes against numpy slicing and hand-made photos."""

import numpy as np
import pytest
import torch

from petface.analysis import probes

SIDE = 20


@pytest.fixture(scope="module")
def photos():
    draw = np.random.default_rng(0)
    return torch.from_numpy(draw.integers(1, 256, (3, 3, SIDE, SIDE), dtype=np.uint8))


@pytest.mark.parametrize("frac", [0.05, 0.10, 0.20])
def test_a_shift_is_slicing(photos, frac):
    k, p = round(frac * SIDE), photos.numpy()
    expected = np.zeros_like(p)
    expected[:, :, k:] = p[:, :, :-k]
    np.testing.assert_array_equal(probes.shift(photos, down_frac=frac), expected)
    expected = np.zeros_like(p)
    expected[..., :-k] = p[..., k:]
    np.testing.assert_array_equal(probes.shift(photos, right_frac=-frac), expected)


def test_a_reflected_shift_mirrors_at_the_edge(photos):
    p = photos.numpy()
    expected = np.concatenate([p[..., :4][..., ::-1], p[..., :-4]], axis=3)
    np.testing.assert_array_equal(probes.shift(photos, right_frac=0.2, reflect=True), expected)
    expected = np.concatenate([p[:, :, 2:], p[:, :, :-3:-1]], axis=2)
    np.testing.assert_array_equal(probes.shift(photos, down_frac=-0.1, reflect=True), expected)


def test_a_flip_is_reversed_columns(photos):
    np.testing.assert_array_equal(probes.flip(photos), photos.numpy()[..., ::-1])


def test_masks_are_exact(photos):
    p = photos.numpy()
    inside = np.zeros((SIDE, SIDE), bool)
    inside[3:-3, 3:-3] = True
    masked = probes.mask_border(photos, frac=0.15).numpy()
    np.testing.assert_array_equal(masked, np.where(inside, p, 0))
    coloured = probes.mask_border(photos, frac=0.15, mean_colour=True).numpy()
    np.testing.assert_array_equal(coloured[..., inside], p[..., inside])
    for photo in range(3):
        for channel in range(3):
            colour = np.rint(p[photo, channel][inside].astype(np.float64).mean())
            assert (coloured[photo, channel][~inside] == colour).all()
    centre = probes.mask_centre(photos, frac=0.5).numpy()
    hole = np.zeros((SIDE, SIDE), bool)
    hole[5:15, 5:15] = True
    np.testing.assert_array_equal(centre, np.where(hole, 0, p))


def test_grey_is_the_luma(photos):
    r, g, b = photos.numpy().astype(np.float64).transpose(1, 0, 2, 3)
    expected = 0.299 * r + 0.587 * g + 0.114 * b
    found = probes.grey(photos).numpy()
    assert (found == found[:, :1]).all()
    np.testing.assert_allclose(found[:, 0], expected, atol=0.51)


def test_turning_and_scaling_about_the_centre(photos):
    np.testing.assert_array_equal(probes.turn_and_scale(photos), photos)
    p = photos.numpy()
    np.testing.assert_array_equal(  # counter-clockwise, as numpy turns rows and columns
        probes.turn_and_scale(photos, degrees=90), np.rot90(p, axes=(2, 3))
    )
    half = probes.turn_and_scale(photos, factor=0.5).numpy()
    assert not half[:, :, :4].any() and not half[..., -4:].any() and half[:, :, 6:14, 6:14].all()
    filled = probes.turn_and_scale(photos, factor=0.5, reflect=True).numpy()
    assert filled.all()
    dot = torch.zeros(1, 3, 21, 21, dtype=torch.uint8)
    dot[:, :, 10, 14] = 255  # 4 px right of the centre moves to 8
    doubled = probes.turn_and_scale(dot, factor=2.0)[0, 0]
    assert divmod(int(doubled.argmax()), 21) == (10, 18)


def test_every_probe_keeps_shape_type_and_input(photos):
    before = photos.clone()
    found = probes.all_probes()
    names = [(probe.group, probe.name) for probe in found]
    assert len(set(names)) == len(names)
    results = []
    for probe in found:
        changed = probe.apply(photos)
        assert changed.shape == photos.shape and changed.dtype == torch.uint8, probe.name
        assert torch.equal(changed, probe.apply(photos)), f"{probe.name}: not deterministic"
        assert not torch.equal(changed, photos), f"{probe.name}: changes nothing"
        results.append(changed.numpy().tobytes())
    assert len(set(results)) == len(results), "two probes do the same"
    assert torch.equal(photos, before)
    wanted = {"shift, black": 12, "shift, reflected": 12, "border": 6, "centre (control)": 1}
    groups = [probe.group for probe in found]
    assert {name: groups.count(name) for name in wanted} == wanted
    by_name = {p.name: p for p in found}
    expected = probes.shift(photos, right_frac=-0.2)
    assert torch.equal(by_name["left 20 %"].apply(photos), probes.shift(
        photos, right_frac=-0.2, reflect=True))  # fmt: skip
    assert torch.equal(found[groups.index("shift, black") + 8].apply(photos), expected)
