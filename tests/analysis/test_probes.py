"""Probes against numpy slicing, their figures against loops; a planted shortcut is found out."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from petface.analysis import probes
from petface.data.catalog import listed_files
from petface.data.images import Preprocessing
from petface.metrics import gain_interval
from petface.models.network import Network

SIDE = 20


@pytest.fixture(scope="module")
def photos():
    draw = np.random.default_rng(0)
    return torch.from_numpy(draw.integers(1, 256, (3, 3, SIDE, SIDE), dtype=np.uint8))


def test_a_shift_mirrors_at_the_edge(photos):
    p = photos.numpy()
    expected = np.concatenate([p[..., :4][..., ::-1], p[..., :-4]], axis=3)
    np.testing.assert_array_equal(probes.shift(photos, right_frac=0.2), expected)
    expected = np.concatenate([p[:, :, 2:], p[:, :, :-3:-1]], axis=2)
    np.testing.assert_array_equal(probes.shift(photos, down_frac=-0.1), expected)


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


def test_every_probe_keeps_shape_type_and_input_and_does_what_it_is_called(photos):
    before, results = photos.clone(), set()
    for name, change in probes.PROBES.items():
        changed = change(photos)
        assert changed.shape == photos.shape and changed.dtype == torch.uint8, name
        results.add(changed.numpy().tobytes())
    assert torch.equal(photos, before)
    assert len(results | {before.numpy().tobytes()}) == 12 + 6 + 1, "two probes do the same"
    left = probes.PROBES["shift", "left 20 %"](photos)
    assert torch.equal(left, probes.shift(photos, right_frac=-0.2))
    down = probes.PROBES["shift", "down 5 %"](photos)
    assert torch.equal(down, probes.shift(photos, down_frac=0.05))
    painted = probes.PROBES["border", "outer 5 % mean colour"](photos)
    assert torch.equal(painted, probes.mask_border(photos, frac=0.05, mean_colour=True))


class BorderReader(nn.Module):
    """Tells the class by the upper rows of the photo, as a network may that learned a shortcut."""

    def forward(self, x):
        bright = x[:, :, :2].mean((1, 2, 3))
        return torch.stack([0.3 - bright, bright - 0.3], dim=1) * 20


class CentreReader(nn.Module):
    """Tells the class by the middle of the photo; others: always sure of class 2, and NaN."""

    def forward(self, x):
        bright = x[:, :, 9:11, 9:11].mean((1, 2, 3))
        first = torch.stack([0.3 - bright, bright - 0.3], dim=1) * 20
        second = torch.tensor([[0.0, 0.0, 5.0]]).expand(len(x), 3)
        return first, second, second * torch.nan


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    """Grey photos; a bright stripe at the top and a bright middle mark class 1."""
    root = tmp_path_factory.mktemp("photos")
    names = [f"{k:02d}.png" for k in range(30)]
    for k, name in enumerate(names):
        pixels = np.full((SIDE, SIDE, 3), 40, np.uint8)
        if k % 2:
            pixels[:2] = 220
            pixels[8:12, 8:12] = 220
        Image.fromarray(pixels).save(root / name)
    (root / names[7]).write_bytes(b"")
    return listed_files(root, names)


def predicted_by(model, catalog, places, num_heads=1):
    network = Network.build(model, Preprocessing(SIDE), "cpu", "fp32")
    options = {"batch_size": 8, "num_workers": 0}
    return probes.predict_under_probes(network, catalog, places, num_heads, **options)


def figures_of(model, catalog, num_heads=1):
    places = np.arange(30)
    predicted, confidence = (a[:, :, 0] for a in predicted_by(model, catalog, places, num_heads))
    kept = predicted[0] >= 0
    assert kept.tolist() == [k != 7 for k in range(30)]
    return probes.probe_figures(
        predicted[:, kept], confidence[:, kept], places[kept] % 2, places[kept]
    )


def test_a_planted_shortcut_is_exposed_and_the_middle_is_none(catalog, tmp_path):
    found = figures_of(BorderReader(), catalog)
    assert found["baseline"]["accuracy"] == 1.0 and found["baseline"]["num"] == 29
    by_name = {p["name"]: p for p in found["probes"]}
    for name in ("outer 10 % black", "outer 15 % black", "outer 10 % mean colour"):
        change, (low, high) = by_name[name]["change"], by_name[name]["interval_95"]
        assert change == pytest.approx(-14 / 29) and low < change < high < -0.2
        assert by_name[name]["agreement"] == pytest.approx(15 / 29)
    for name in ("left 10 %", "right 20 %"):
        assert by_name[name]["change"] == 0 and by_name[name]["agreement"] == 1
    probes.write_probes(tmp_path / "probes.csv", {"species": found})
    with (tmp_path / "probes.csv").open(newline="") as handle:
        table = list(csv.DictReader(handle))
    for key in ("change", "accuracy", "agreement"):
        assert [float(row[key]) for row in table] == [p[key] for p in found["probes"]]
    ends = [[float(row["low_95"]), float(row["high_95"])] for row in table]
    assert ends == [p["interval_95"] for p in found["probes"]]
    by_name = {p["name"]: p for p in figures_of(CentreReader(), catalog, 3)["probes"]}
    for name in ("outer 5 % black", "outer 15 % black", "outer 15 % mean colour"):
        assert by_name[name]["change"] == 0
    assert by_name["down 20 %"]["change"] == pytest.approx(-14 / 29)


def test_every_head_predicts_the_photos_in_their_order(catalog):
    places = np.array([3, 7, 4, 12, 1])
    predicted, confidence = predicted_by(CentreReader(), catalog, places, 3)
    assert predicted.shape == (1 + len(probes.PROBES), 5, 3) and (predicted[:, :, 2] == -1).all()
    assert predicted[0, :, 0].tolist() == [1, -1, 0, 0, 1]
    assert predicted[0, :, 1].tolist() == [2, -1, 2, 2, 2]
    np.testing.assert_allclose(confidence[0, 0, 1], np.exp(5) / (np.exp(5) + 2), rtol=1e-5)
    assert np.isnan(confidence[:, 1]).all()
    assert predicted_by(CentreReader(), catalog, places[:0], 3)[0].shape[1:] == (0, 3)


def test_figures_against_a_loop():
    draw, num = np.random.default_rng(0), 200
    num_rows, records = 1 + len(probes.PROBES), draw.integers(0, 40, num)
    true, predicted = draw.integers(0, 3, num), draw.integers(0, 3, (num_rows, num))
    predicted[0] = np.where(draw.random(num) < 0.5, true, predicted[0])
    confidence = draw.random((num_rows, num))
    found = probes.probe_figures(predicted, confidence, true, records)
    right = [[int(p == t) for p, t in zip(row, true, strict=True)] for row in predicted]
    assert found["baseline"]["accuracy"] == pytest.approx(sum(right[0]) / num)
    assert found["baseline"]["num_records"] == len(set(records.tolist()))
    for k, probe in list(enumerate(found["probes"], start=1))[::6]:
        same = sum(p == q for p, q in zip(predicted[k], predicted[0], strict=True))
        assert probe["accuracy"] == pytest.approx(sum(right[k]) / num)
        assert probe["change"] == pytest.approx((sum(right[k]) - sum(right[0])) / num)
        assert probe["agreement"] == pytest.approx(same / num)
        assert probe["confidence"] == pytest.approx(sum(confidence[k]) / num)
        gain = np.array(right[k]) - right[0]
        assert probe["interval_95"] == pytest.approx(gain_interval(gain, records))
