"""The details of an evaluation against loops, and read back from files."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pandas as pd
import pytest

from petface.errors import UserError
from petface.evaluation import details
from tests.evaluation.made_evaluation import CLASSES, SPECIES, fitted


@pytest.mark.parametrize("num_classes", [2, 5, 8])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.5])
def test_each_answer_equals_a_loop(num_classes, temperature):
    draw = np.random.default_rng(num_classes)
    z = draw.normal(0, 3, (40, num_classes)).astype(np.float32)
    z[20:] = np.rint(z[20:])  # with ties
    y = draw.integers(details.NOT_A_CLASS, num_classes, 40)
    found = details.describe_answers(z, y, temperature)
    for row, logits in enumerate(z.astype(float).tolist()):
        p = [math.exp(v / temperature) for v in logits]
        p = [v / sum(p) for v in p]
        raw = [math.exp(v) for v in logits]
        raw = [v / sum(raw) for v in raw]
        best = sorted(range(num_classes), key=lambda k: -logits[k])  # noqa: B023
        entry = found[row]
        kept = min(5, num_classes)
        assert entry["top"].tolist() == (best[:kept] + [-1] * 5)[:5]
        assert entry["top_prob"][:kept] == pytest.approx([p[k] for k in best[:kept]], rel=1e-6)
        assert np.isnan(entry["top_prob"][kept:]).all()
        assert entry["raw_prob"] == pytest.approx(max(raw), rel=1e-6)
        k = int(y[row])
        if k < 0:
            assert entry["rank"] == (num_classes + 1 if k == details.NOT_A_CLASS else 0)
            assert np.isnan(entry["nll"]) and np.isnan(entry["brier"])
            continue
        assert entry["rank"] == 1 + best.index(k)
        squares = sum((v - (c == k)) ** 2 for c, v in enumerate(p))
        assert entry["nll"] == pytest.approx(-math.log(p[k]), rel=1e-5, abs=1e-6)
        assert entry["brier"] == pytest.approx(squares, rel=1e-5, abs=1e-6)


def test_answers_that_are_not_finite_stay_empty_and_extreme_ones_lose_nothing():
    z = np.array([[1.0, np.nan], [0.0, 1.0], [np.inf, 0.0], [1e4, 0.0], [0.0, 1e4]])
    found = details.describe_answers(z, np.array([0, 1, 0, 1, 1]), 1.0)
    assert found["top"][:, 0].tolist() == [-1, 1, -1, 0, 1]
    assert found["rank"].tolist() == [0, 1, 0, 2, 1]
    assert np.isnan(found["top_prob"][[0, 2]]).all() and np.isnan(found["nll"][[0, 2]]).all()
    assert found["nll"].tolist()[3:] == [1e4, 0.0] and found["brier"].tolist()[3:] == [2.0, 0.0]


def test_labels_become_numbers():
    found = details.class_numbers(["b", "", "a", "new"], ("a", "b"))
    assert found.tolist() == [1, -1, 0, details.NOT_A_CLASS]


def test_an_evaluation_is_read_back(folder, photos):
    found = details.read_evaluation(folder)
    assert len(found.rows) == len(found.details) == len(photos)
    assert found.details.dtype.names == details.HEADS
    assert list(found.rows["record"]) == [photo["record"] for photo in photos]  # 000007, not 7
    assert found.class_names("species", "dog") == SPECIES
    assert found.class_names("breed", "dog") == CLASSES["dog"]["breed"]
    assert found.class_names("breed", "'ibex") == found.class_names("gender", "dog") == []
    assert found.fitted("breed", "cat") == fitted("breed", "cat")
    assert found.fitted("color2", "ünicorn") == found.fitted("breed", "'ibex") == {}


def test_images_are_named_as_they_are_called_not_as_their_cells_are(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    rows = pd.read_csv(folder / details.PER_IMAGE, dtype=str, keep_default_na=False)
    rows["image"] = [f"'=é\n{n}.png" for n in range(len(rows))]
    rows.to_csv(tmp_path / details.PER_IMAGE, index=False)
    found = details.read_evaluation(tmp_path).image_names(np.array([2, 0]))
    assert found == ["=é\n2.png", "=é\n0.png"]


def test_missing_or_foreign_files_are_named(folder, tmp_path):
    for name in (details.PER_IMAGE, details.DETAILS_FILE, details.MODELS):
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        (tmp_path / name).unlink()
        with pytest.raises(UserError, match=rf"holds no {name}; run: .*evaluate"):
            details.read_evaluation(tmp_path)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / details.MODELS).write_text('{"stage1": {}, "specialists": {"cat": 3}}')
    with pytest.raises(UserError, match="does not describe the networks"):
        details.read_evaluation(tmp_path)
    np.save(tmp_path / details.DETAILS_FILE, np.zeros(4, details.DETAILS))
    with pytest.raises(UserError, match="does not fit the table .*; evaluate again"):
        details.read_evaluation(tmp_path)
    (tmp_path / details.PER_IMAGE).write_text("image,species\n")
    with pytest.raises(UserError, match=f"{details.PER_IMAGE} is no table .*; .*--force"):
        details.read_evaluation(tmp_path)
