"""The details of an evaluation against loops, and read back from files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from petface import files
from petface.errors import UserError
from petface.evaluation.details import (
    DETAILS,
    DETAILS_FILE,
    HEADS,
    MODELS,
    NOT_A_CLASS,
    PER_IMAGE,
    PER_IMAGE_COLUMNS,
    class_numbers,
    describe_answers,
    read_evaluation,
)


@pytest.mark.parametrize("num_classes", [2, 5, 8])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.5])
def test_each_answer_equals_a_loop(num_classes: int, temperature: float) -> None:
    draw = np.random.default_rng(num_classes)
    z = draw.normal(0, 3, (40, num_classes)).astype(np.float32)
    z[20:] = np.rint(z[20:])  # with ties
    y = draw.integers(NOT_A_CLASS, num_classes, 40)
    found = describe_answers(z, y, temperature)
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
            assert entry["rank"] == (num_classes + 1 if k == NOT_A_CLASS else 0)
            assert all(np.isnan(entry[name]) for name in ("nll", "brier", "raw_nll", "raw_brier"))
            continue
        assert entry["rank"] == 1 + best.index(k)
        for prefix, q in (("", p), ("raw_", raw)):
            squares = sum((v - (c == k)) ** 2 for c, v in enumerate(q))
            assert entry[f"{prefix}nll"] == pytest.approx(-math.log(q[k]), rel=1e-5, abs=1e-6)
            assert entry[f"{prefix}brier"] == pytest.approx(squares, rel=1e-5, abs=1e-6)


def test_answers_that_are_not_finite_stay_empty() -> None:
    z = np.array([[1.0, np.nan], [0.0, 1.0], [np.inf, 0.0]])
    found = describe_answers(z, np.array([0, 1, 0]), 1.0)
    assert found["top"][:, 0].tolist() == [-1, 1, -1] and found["rank"].tolist() == [0, 1, 0]
    assert np.isnan(found["top_prob"][[0, 2]]).all() and np.isnan(found["nll"][[0, 2]]).all()


def test_extreme_logits_lose_nothing() -> None:
    found = describe_answers(np.array([[1e4, 0.0], [0.0, 1e4]]), np.array([1, 1]), 1.0)
    assert found["nll"].tolist() == [1e4, 0.0] and found["brier"].tolist() == [2.0, 0.0]


def test_labels_become_numbers() -> None:
    found = class_numbers(["b", "", "a", "new"], ("a", "b"))
    assert found.tolist() == [1, -1, 0, NOT_A_CLASS]


def make_evaluation(folder: Path, num: int = 3) -> None:
    row = dict.fromkeys(PER_IMAGE_COLUMNS, "") | {"species": "cat", "record": "000007"}
    rows = [row | {"image": f"cat/000007/=é\n{n}.png"} for n in range(num)]
    files.write_csv(folder / PER_IMAGE, PER_IMAGE_COLUMNS, [r.values() for r in rows])
    np.save(folder / DETAILS_FILE, np.zeros(num, DETAILS))
    heads = {"breed": ["Persian", "Manx"]}
    models = {
        "stage1": {"heads": {"species": ["cat", "dog"]}, "calibration": {}},
        "specialists": {"cat": {"heads": heads, "calibration": {"breed": {"temperature": 1.5}}}},
    }
    files.write_json(folder / MODELS, models)


def test_an_evaluation_is_read_back(tmp_path: Path) -> None:
    make_evaluation(tmp_path)
    found = read_evaluation(tmp_path)
    assert len(found.rows) == len(found.details) == 3 and found.details.dtype.names == HEADS
    assert found.class_names("species", "dog") == ["cat", "dog"]
    assert found.class_names("breed", "cat") == ["Persian", "Manx"]
    assert found.class_names("breed", "dog") == found.class_names("gender", "cat") == []
    assert found.fitted("breed", "cat") == {"temperature": 1.5}
    assert found.fitted("species", "cat") == found.fitted("breed", "dog") == {}
    assert found.image_names(np.array([2, 0])) == ["cat/000007/=é\n2.png", "cat/000007/=é\n0.png"]


def test_missing_or_foreign_files_are_named(tmp_path: Path) -> None:
    for name in (PER_IMAGE, DETAILS_FILE, MODELS):
        make_evaluation(tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(UserError, match=rf"holds no {name}; run: .*evaluate"):
            read_evaluation(tmp_path)
    make_evaluation(tmp_path)
    np.save(tmp_path / DETAILS_FILE, np.zeros(4, DETAILS))
    with pytest.raises(UserError, match="does not belong to the table"):
        read_evaluation(tmp_path)
