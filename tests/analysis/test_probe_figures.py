"""Figures of probes against loops; a network with a planted shortcut is found out."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from petface.analysis import probe_figures
from petface.analysis.probes import all_probes
from petface.data.catalog import listed_files
from petface.data.images import Preprocessing
from petface.models.network import Network

SIDE = 20


class BorderReader(nn.Module):
    """Tells the class by the upper rows of the photo, as a network may that learned a shortcut."""

    def forward(self, x):
        bright = x[:, :, :2].mean((1, 2, 3))
        return torch.stack([0.3 - bright, bright - 0.3], dim=1) * 20


class CentreReader(nn.Module):
    """Tells the class by the middle of the photo; a second head is always sure of class 2."""

    def forward(self, x):
        bright = x[:, :, 9:11, 9:11].mean((1, 2, 3))
        first = torch.stack([0.3 - bright, bright - 0.3], dim=1) * 20
        return first, torch.tensor([[0.0, 0.0, 5.0]]).expand(len(x), 3)


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


def asked(model, catalog, places, **options):
    network = Network.build(model, Preprocessing(SIDE), "cpu", "fp32")
    return probe_figures.ask(network, catalog, places, all_probes(), batch_size=8, **options)


def figures_of(model, catalog):
    places = np.arange(30)
    answers = asked(model, catalog, places)
    assert answers.readable.tolist() == [k != 7 for k in range(30)]
    kept = answers.readable
    names = [(probe.name, probe.group) for probe in all_probes()]
    return probe_figures.probe_figures(
        names, answers.predicted[:, kept, 0], answers.confidence[:, kept, 0],
        places[kept] % 2, places[kept],
    )  # fmt: skip


def test_a_planted_shortcut_is_exposed_by_the_border_mask(catalog):
    found = figures_of(BorderReader(), catalog)
    assert found["baseline"]["accuracy"] == 1.0 and found["baseline"]["num"] == 29
    by_name = {p["name"]: p for p in found["probes"]}
    for name in ("outer 10 % black", "outer 15 % black", "outer 10 % mean colour"):
        change, (low, high) = by_name[name]["change"], by_name[name]["interval_95"]
        assert change == pytest.approx(-14 / 29) and low < change < high < -0.2
        assert by_name[name]["agreement"] == pytest.approx(15 / 29)
    for name in ("inner 50 % black", "mirrored"):
        assert by_name[name]["change"] == 0 and by_name[name]["agreement"] == 1


def test_a_network_that_looks_at_the_middle_passes_and_fails_the_control(catalog):
    by_name = {p["name"]: p for p in figures_of(CentreReader(), catalog)["probes"]}
    for name in ("outer 5 % black", "outer 15 % black", "outer 15 % mean colour", "mirrored"):
        assert by_name[name]["change"] == 0
    assert by_name["inner 50 % black"]["change"] == pytest.approx(-14 / 29)


def test_every_head_is_asked_about_the_photos_in_their_order(catalog):
    places = np.array([3, 7, 4, 12, 1])
    answers = asked(CentreReader(), catalog, places)
    assert answers.predicted.shape == (1 + len(all_probes()), 5, 2)
    assert answers.predicted[0, :, 0].tolist() == [1, -1, 0, 0, 1]
    assert answers.predicted[0, :, 1].tolist() == [2, -1, 2, 2, 2]
    np.testing.assert_allclose(answers.confidence[0, 0, 1], np.exp(5) / (np.exp(5) + 2), rtol=1e-5)
    assert np.isnan(answers.confidence[:, 1]).all()
    nobody = asked(CentreReader(), catalog, places[:0])
    assert nobody.predicted.shape == (1 + len(all_probes()), 0, 2) and not len(nobody.readable)


def test_figures_against_a_loop():
    draw = np.random.default_rng(0)
    num, records = 200, draw.integers(0, 40, 200)
    true, predicted = draw.integers(0, 3, num), draw.integers(0, 3, (3, num))
    predicted[0] = np.where(draw.random(num) < 0.5, true, predicted[0])
    confidence = draw.random((3, num))
    names = [("a", "one"), ("b", "two")]
    found = probe_figures.probe_figures(names, predicted, confidence, true, records)
    right = [[int(p == t) for p, t in zip(row, true, strict=True)] for row in predicted]
    base = sum(right[0]) / num
    assert found["baseline"]["accuracy"] == pytest.approx(base)
    assert found["baseline"]["num_records"] == len(set(records.tolist()))
    for k, probe in enumerate(found["probes"], start=1):
        same = sum(p == q for p, q in zip(predicted[k], predicted[0], strict=True))
        assert (probe["name"], probe["group"]) == names[k - 1]
        assert probe["accuracy"] == pytest.approx(sum(right[k]) / num)
        assert probe["change"] == pytest.approx(sum(right[k]) / num - base)
        assert probe["agreement"] == pytest.approx(same / num)
        assert probe["confidence"] == pytest.approx(sum(confidence[k]) / num)
        low, high = naive_interval(right[k], right[0], records.tolist())
        assert probe["interval_95"] == pytest.approx([low, high], abs=0.02)


def naive_interval(after, before, records):
    """Draw records with replacement; the difference of all their photos."""
    own = {}
    for a, b, record in zip(after, before, records, strict=True):
        own.setdefault(record, []).append(a - b)
    groups, draw, found = list(own.values()), np.random.default_rng(5), []
    for _ in range(4000):
        chosen = [d for k in draw.integers(0, len(groups), len(groups)) for d in groups[k]]
        found.append(sum(chosen) / len(chosen))
    return np.quantile(found, 0.025), np.quantile(found, 0.975)


def test_few_records_have_no_interval():
    right = np.ones(30, bool)
    assert probe_figures.paired_interval(right, ~right, np.arange(30) % 9) is None
    assert probe_figures.paired_interval(right, ~right, np.arange(30) % 10) == [1, 1]


def test_the_table_and_the_picture(catalog, tmp_path):
    found = {"species": figures_of(BorderReader(), catalog)}
    probe_figures.write_probes(tmp_path / "probes.csv", found)
    with (tmp_path / "probes.csv").open(newline="") as handle:
        table = list(csv.DictReader(handle))
    changes = [p["change"] for p in found["species"]["probes"]]
    assert [float(row["change"]) for row in table] == pytest.approx(changes)
    pytest.importorskip("matplotlib")
    assert probe_figures.draw_probes("species", found["species"], tmp_path / "p.png")
    assert Image.open(tmp_path / "p.png").size[0] > 500
