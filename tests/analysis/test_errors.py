"""Mistakes, slices and probes against loops over rows and photos; pictures of mistakes."""

import csv
import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from petface.analysis import errors
from petface.data.catalog import listed_files
from petface.data.images import Preprocessing
from petface.evaluation.details import read_evaluation
from petface.files import plain_cell
from petface.inference import gradcam
from petface.metrics import accuracy_interval, gain_interval
from petface.models.architecture import Architecture, build_classifier
from petface.models.network import Network
from tests.analysis.evaluations import make_evaluation, make_images, read_cells
from tests.inference import test_gradcam


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An evaluation without genders, and its rows."""
    folder = tmp_path_factory.mktemp("evaluation")
    heads = {"cat": ("breed",), "dog": ("breed",), "'emu": ()}
    make_evaluation(folder, make_images(num_records=120), 0.5, 1, heads_of=heads)
    return read_evaluation(folder), read_cells(folder)


def asked_rows(rows, head):
    return [k for k, r in enumerate(rows) if r["split"] == "test" and r[f"{head}_correct"] != ""]


@pytest.mark.parametrize("head", ["species", "breed"])
def test_every_wrong_answer_of_the_test_part_the_surest_first(made, head):
    evaluation, rows = made
    asked = asked_rows(rows, head)
    assert errors.asked_places(evaluation, head).tolist() == asked
    wrong = [k for k in asked if rows[k][f"{head}_correct"] == "0"]
    wrong.sort(key=lambda k: -float(rows[k][f"{head}_prob"]))
    found = errors.worst_mistakes(evaluation)
    found = found[found["head"] == head]
    assert found.index.tolist() == wrong and len(wrong) > 10
    for column, key in (("image", "image"), ("predicted", f"{head}_pred")):
        assert found[column].tolist() == [rows[k][key] for k in wrong]
    true = "species" if head == "species" else "breed_true"
    for k, p, rank in zip(wrong, found["true_probability"], found["rank"], strict=True):
        names = evaluation.class_names(head, rows[k]["species"])
        if rows[k][true] == "Unheard":
            assert math.isnan(p) and rank > len(names)
        else:
            details = evaluation.details[head][k]
            assert rank == 1 + details["top"].tolist().index(names.index(rows[k][true])) > 1
            assert p == pytest.approx(details["top_prob"][rank - 1], rel=1e-4)


def test_the_files_of_mistakes(made, tmp_path):
    evaluation, rows = made
    every = errors.worst_mistakes(evaluation)
    worst = errors.write_mistakes(tmp_path / "mistakes.csv", every, 5)
    with (tmp_path / "mistakes.csv").open(newline="", encoding="utf-8") as handle:
        table = list(csv.DictReader(handle))
    assert list(worst) == ["species", "breed"]  # heads that were never asked are left out
    by_image = {row["image"]: row for row in rows}
    for row in table:
        predicted = by_image[plain_cell(row["image"])][f"{row['head']}_pred"]
        assert plain_cell(row["predicted"]) == predicted and not row["predicted"].startswith("=")
    assert any(row["predicted"] == "'=Mix" for row in table)
    for head, entries in worst.items():
        own = [r for r in table if r["head"] == head]
        assert len(entries) == 5 and len(own) == (every["head"] == head).sum()
        for entry, row in zip(entries, own[:5], strict=True):
            cells = ["" if v is None else str(v) for v in entry.values()]
            assert cells == [plain_cell(v) for v in row.values()]


@pytest.mark.parametrize("head", ["species", "breed"])
def test_slices_by_training_photos_of_the_label(made, head):
    rows, result = made[1], errors.make_slices(made[0])
    assert list(result) == ["species", "breed"]  # heads that were not asked have none
    true = "species" if head == "species" else "breed_true"
    trained = Counter((r["species"], r[true]) for r in rows if r["split"] == "train")
    of_row = {k: trained[rows[k]["species"], rows[k][true]] for k in asked_rows(rows, head)}
    sizes = sorted(trained[key] for key in {(rows[k]["species"], rows[k][true]) for k in of_row})
    low, high = sizes[-(-len(sizes) // 3) - 1], sizes[-(-2 * len(sizes) // 3) - 1]
    ends = {f"up to {low}": low, f"up to {high}": high, f"above {high}": math.inf}
    bins = result[head]["training_photos_of_label"]["bins"]
    every, start = np.mean([rows[k][f"{head}_correct"] == "1" for k in of_row]), -1
    for entry, (name, end) in zip(bins, ends.items(), strict=True):
        places = [k for k, num in of_row.items() if start < num <= end]
        animals = np.array([hash((rows[k]["species"], rows[k]["record"])) for k in places])
        right = np.array([rows[k][f"{head}_correct"] == "1" for k in places])
        assert (entry["bin"], entry["num"]) == (name, len(places))
        assert entry["num_records"] == len(set(animals.tolist()))
        assert entry["accuracy"] == pytest.approx(right.mean())
        interval = accuracy_interval(right, animals)  # None of fewer than ten
        assert entry["interval_95"] == (interval and pytest.approx(interval))
        lowest, highest = interval or (0, 1)
        assert entry["stands_out"] == (not lowest <= every <= highest)
        start = end


def test_a_bin_stands_out_where_its_interval_says_so():
    correct = np.array([1.0] * 60 + [0.0] * 15 + [1.0] * 15)
    cut = pd.Categorical(np.repeat(["easy", "hard"], [60, 30]))
    bins = errors.bin_figures(correct, np.arange(90), cut)
    assert [b["stands_out"] for b in bins] == [True, True]
    few = errors.bin_figures(correct, np.arange(90) % 9, cut)
    assert [(b["interval_95"], b["stands_out"]) for b in few] == [(None, False)] * 2
    correct = np.array([1.0] * 12 + [0.0] * 8 + [1.0] * 80)
    cut = pd.Categorical(np.repeat(["1 small", "2 rest"], [12, 88]))
    small, _ = errors.bin_figures(correct, np.arange(100), cut)
    assert small["accuracy"] == 1 and not small["stands_out"]  # 12 of 12 beside 92 %


# ---- Grad-CAM ----


def test_the_maps_of_mistakes_are_those_of_each_photo_alone(tmp_path):
    """Photo 3 cannot be read; the truth of photo 4 is no class."""
    torch.manual_seed(0)
    network = test_gradcam.network_of(build_classifier(Architecture(), 3), 16)
    for number, pixels in enumerate(test_gradcam.photos(6, 16)):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"")
    catalog = listed_files(tmp_path, [f"{number}.png" for number in range(6)])
    columns = {
        "species": ["cat", "cat", "cat", "cat", "dog"], "head": "breed",
        "predicted": "Other", "probability": 0.75,
        "true": ["Plain", "Tabby", "Plain", "Unheard", "Plain"],
        "true_probability": [0.25, 0.25, 0.25, np.nan, 0.25],
        "image": "a very long name " * 20 + "two\nlines \u202eright to left",
    }  # fmt: skip
    mistakes = pd.DataFrame(columns, index=[2, 1, 3, 4, 0])
    other = mistakes.assign(head="gender")
    work = errors.Work(catalog, pd.DataFrame(), np.arange(6), pd.concat([other, mistakes]))
    classes = ["Plain", "Tabby", "Other"]
    found = errors.explain(work, network, "breed", 0, classes, "cat")
    assert {place: len(own) for place, own in found.items()} == {2: 3, 1: 3, 4: 2}
    assert set(errors.explain(work, network, "breed", 0, classes, None)) == {2, 1, 4, 0}
    layer, _ = gradcam.finest_useful_layer(network)
    photo = test_gradcam.photos(6, 16)[1]
    answer, truth = (test_gradcam.gradcam_of(network, photo, 0, number, layer) for number in (2, 1))
    expected = [photo, gradcam.overlay(photo, answer), gradcam.overlay(photo, truth)]
    for picture, wanted in zip(found[1], expected, strict=True):
        np.testing.assert_allclose(picture, wanted, atol=1)
    errors.draw_mistakes(tmp_path / "sheet.png", mistakes, found)
    side = errors.PICTURE_PX
    with Image.open(tmp_path / "sheet.png") as sheet:
        drawn = np.asarray(sheet)
    assert drawn.shape[0] == 3 * side and (drawn[:side, 3 * side :] < 128).any()
    for row, place in enumerate((2, 1)):
        small = Image.fromarray(test_gradcam.photos(6, 16)[place]).resize((side, side))
        np.testing.assert_array_equal(drawn[row * side + 64, 64], np.asarray(small)[64, 64])
    assert (drawn[2 * side :, 2 * side : 3 * side] == 255).all()  # no map, and no text over it
    errors.draw_mistakes(tmp_path / "none.png", mistakes, {})
    assert not (tmp_path / "none.png").exists()


# ---- Probes ----


SIDE = 20


@pytest.fixture(scope="module")
def photos():
    draw = np.random.default_rng(0)
    return torch.from_numpy(draw.integers(1, 256, (3, 3, SIDE, SIDE), dtype=np.uint8))


def test_a_shift_mirrors_at_the_edge(photos):
    p = photos.numpy()
    expected = np.concatenate([p[..., :4][..., ::-1], p[..., :-4]], axis=3)
    np.testing.assert_array_equal(errors.shift(photos, right_frac=0.2), expected)
    expected = np.concatenate([p[:, :, 2:], p[:, :, :-3:-1]], axis=2)
    np.testing.assert_array_equal(errors.shift(photos, down_frac=-0.1), expected)


def test_masks_are_exact(photos):
    p = photos.numpy()
    inside = np.zeros((SIDE, SIDE), bool)
    inside[3:-3, 3:-3] = True
    masked = errors.mask_border(photos, frac=0.15).numpy()
    np.testing.assert_array_equal(masked, np.where(inside, p, 0))
    coloured = errors.mask_border(photos, frac=0.15, mean_colour=True).numpy()
    np.testing.assert_array_equal(coloured[..., inside], p[..., inside])
    for photo in range(3):
        for channel in range(3):
            colour = np.rint(p[photo, channel][inside].astype(np.float64).mean())
            assert (coloured[photo, channel][~inside] == colour).all()


def test_every_probe_keeps_shape_type_and_input_and_does_what_it_is_called(photos):
    before, results = photos.clone(), set()
    for name, change in errors.PROBES.items():
        changed = change(photos)
        assert changed.shape == photos.shape and changed.dtype == torch.uint8, name
        results.add(changed.numpy().tobytes())
    assert torch.equal(photos, before)
    assert len(results | {before.numpy().tobytes()}) == 12 + 6 + 1, "two probes do the same"
    left = errors.PROBES["shift", "left 20 %"](photos)
    assert torch.equal(left, errors.shift(photos, right_frac=-0.2))
    down = errors.PROBES["shift", "down 5 %"](photos)
    assert torch.equal(down, errors.shift(photos, down_frac=0.05))
    painted = errors.PROBES["border", "outer 5 % mean colour"](photos)
    assert torch.equal(painted, errors.mask_border(photos, frac=0.05, mean_colour=True))


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
    return errors.predict_under_probes(network, catalog, places, num_heads, **options)


def figures_of(model, catalog, num_heads=1):
    places = np.arange(30)
    predicted = predicted_by(model, catalog, places, num_heads)[:, :, 0]
    kept = predicted[0] >= 0
    assert kept.tolist() == [k != 7 for k in range(30)]
    return errors.probe_figures(predicted[:, kept], places[kept] % 2, places[kept])


def test_a_planted_shortcut_is_exposed_and_the_middle_is_none(catalog):
    found = figures_of(BorderReader(), catalog)
    assert found["baseline"]["accuracy"] == 1.0 and found["baseline"]["num"] == 29
    by_name = {p["name"]: p for p in found["probes"]}
    for name in ("outer 10 % black", "outer 15 % black", "outer 10 % mean colour"):
        change, (low, high) = by_name[name]["change"], by_name[name]["interval_95"]
        assert change == pytest.approx(-14 / 29) and low < change < high < -0.2
        assert by_name[name]["agreement"] == pytest.approx(15 / 29)
    assert by_name["left 10 %"]["change"] == 0 and by_name["left 10 %"]["agreement"] == 1
    by_name = {p["name"]: p for p in figures_of(CentreReader(), catalog, 3)["probes"]}
    assert by_name["outer 15 % black"]["change"] == 0
    assert by_name["down 20 %"]["change"] == pytest.approx(-14 / 29)


def test_every_head_predicts_the_photos_in_their_order(catalog):
    places = np.array([3, 7, 4, 12, 1])
    predicted = predicted_by(CentreReader(), catalog, places, 3)
    assert predicted.shape == (1 + len(errors.PROBES), 5, 3) and (predicted[:, :, 2] == -1).all()
    assert predicted[0, :, 0].tolist() == [1, -1, 0, 0, 1]
    assert predicted[0, :, 1].tolist() == [2, -1, 2, 2, 2]
    assert (predicted[:, 1] == -1).all()
    assert predicted_by(CentreReader(), catalog, places[:0], 3).shape[1:] == (0, 3)


def test_figures_against_a_loop():
    draw, num = np.random.default_rng(0), 200
    num_rows, records = 1 + len(errors.PROBES), draw.integers(0, 40, num)
    true, predicted = draw.integers(0, 3, num), draw.integers(0, 3, (num_rows, num))
    predicted[0] = np.where(draw.random(num) < 0.5, true, predicted[0])
    found = errors.probe_figures(predicted, true, records)
    right = [[int(p == t) for p, t in zip(row, true, strict=True)] for row in predicted]
    assert found["baseline"] == {"num": num, "accuracy": sum(right[0]) / num}
    for k, probe in list(enumerate(found["probes"], start=1))[::6]:
        gain = np.array(right[k]) - right[0]
        assert probe["change"] == pytest.approx(sum(gain) / num)
        same = sum(a == b for a, b in zip(predicted[k], predicted[0], strict=True))
        assert probe["agreement"] == pytest.approx(same / num)
        assert probe["interval_95"] == pytest.approx(gain_interval(gain, records))
