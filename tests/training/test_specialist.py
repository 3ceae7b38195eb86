"""The text summary of a specialist against scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from petface.models import checkpoints
from petface.training.specialist import head_figures, pool_species, write_specialist_report

NAMES = {"breed": ("Abbysinian", "Bulldog, Olde mix", "'x", "never seen"), "gender": ("f", "m")}


def test_report(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    true, predicted = draw.choice(3, 50, p=[0.6, 0.3, 0.1]), draw.choice(3, 50)
    breed = confusion_matrix(true, predicted, labels=range(4))
    confusions = {
        "test": {"breed": breed, "gender": np.zeros((2, 2), np.int64)},
        "all": {"breed": breed * 2, "gender": np.diag([3, 4])},
    }
    write_specialist_report(tmp_path, NAMES, confusions, top_support=2)
    text = (tmp_path / "eval_summary_stage2.txt").read_text(encoding="utf-8")
    test, every = text.split("== all ")
    assert "not held-out accuracy" in every and "gender: 2 classes, 7 images" in every
    lines = test.splitlines()
    assert lines[2] == "breed: 4 classes, 50 images with a known label"
    macro = precision_recall_fscore_support(true, predicted, average="macro", zero_division=0)
    names = ["accuracy", "macro precision", "macro recall", "macro F1"]
    expected = [accuracy_score(true, predicted), *macro[:3]]
    for name, value, line in zip(names, expected, lines[3:7], strict=True):
        assert line.split() == [*name.split(), f"{value:.4f}"]
    support = np.bincount(true, minlength=4)
    for index, line in zip(np.argsort(-support)[:2], lines[8:10], strict=True):  # the commonest
        recall = (predicted[true == index] == index).mean()
        assert line == f"  {support[index]:9d}  {recall:6.4f}  {NAMES['breed'][index]}"
    assert lines[10:12] == ["", "gender: no image with a known label"]

    write_specialist_report(tmp_path, {"breed": NAMES["breed"]}, {"test": {"breed": breed}}, 10)
    assert "never seen" not in (tmp_path / "eval_summary_stage2.txt").read_text(encoding="utf-8")


def test_what_a_head_reached_stands_beside_its_majority_baseline() -> None:
    confusion = np.array([[3, 1], [2, 0]])
    train, test = np.array([1, 1, 0, -1]), np.array([0, 1, 1])
    assert head_figures("breed", confusion[::-1], confusion, train, test) == {
        "val_breed_accuracy": 0.5,
        "val_breed_balanced_accuracy": 0.625,
        "test_breed_known": 6,
        "test_breed_accuracy": 0.5,
        "test_breed_balanced_accuracy": 0.375,
        "test_breed_majority_baseline": pytest.approx(2 / 3),
    }


def test_small_species_of_a_run_get_one_threshold_once_they_are_finished(tmp_path: Path) -> None:
    entry = {"temperature": 1.0, "threshold": None, "reason": "too few animals (12; 15 needed)",
             "wanted_accuracy": 0.9, "coverage": 0.0}  # fmt: skip
    rows = [[0.5 + animal / 100, 1.0, float(animal)] for animal in range(12) for _ in range(3)]
    for name in ("cat", "dog", "pig", "hen"):
        (tmp_path / name).mkdir()
        pool = {} if name == "pig" else {"breed": rows}
        content = {"calibration": {"breed": dict(entry)}, "pool": pool, "model": {}}
        checkpoints.save(tmp_path / name / f"{name}_best.pt", content)
        if name != "hen":
            (tmp_path / name / "final.json").write_text("{}")

    def found() -> dict[str, object]:
        paths = {path.parent.name: path for path in tmp_path.glob("*/*_best.pt")}
        return {
            n: checkpoints.load(p)["calibration"]["breed"]["threshold"] for n, p in paths.items()
        }

    pool_species(tmp_path)
    assert found() == {"cat": 0.0, "dog": 0.0, "pig": None, "hen": None}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*_best.pt")}
    pool_species(tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    (tmp_path / "hen" / "final.json").write_text("{}")
    pool_species(tmp_path)
    assert found()["hen"] == 0.0
    pool_species(tmp_path / "nothing")
