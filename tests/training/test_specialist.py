"""The text summary of a specialist against scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from petface.training.specialist import write_specialist_report

NAMES = {"breed": ("Abbysinian", "Bulldog, Olde mix", "'x", "never seen"), "gender": ("f", "m")}


def sections(text: str) -> dict[str, dict[str, list[str]]]:
    """Cut the summary into parts and heads: {part: {head: lines}}."""
    found: dict[str, dict[str, list[str]]] = {}
    for line in text.splitlines():
        if line.startswith("== "):
            heads = found.setdefault(line.split()[1], {})
        elif line and not line.startswith(" "):
            lines = heads.setdefault(line.split(":")[0], [line])
        elif line:
            lines.append(line)
    return found


def test_report(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    true, predicted = draw.choice(3, 50, p=[0.6, 0.3, 0.1]), draw.choice(3, 50)
    breed = confusion_matrix(true, predicted, labels=range(4))
    confusions = {
        "test": {"breed": breed, "gender": np.zeros((2, 2), np.int64)},
        "all": {"breed": breed * 2, "gender": np.diag([3, 4])},
    }
    write_specialist_report(tmp_path, NAMES, confusions, top_support=2)

    for part, heads in confusions.items():
        for head, confusion in heads.items():
            table = pd.read_csv(tmp_path / f"confusion_{part}_{head}.csv", index_col=0)
            np.testing.assert_array_equal(table.to_numpy(), confusion)
    assert len(list(tmp_path.iterdir())) == 5

    text = (tmp_path / "eval_summary_stage2.txt").read_text(encoding="utf-8")
    found = sections(text)
    assert list(found) == ["test", "all"] and "not held-out accuracy" in text
    assert found["test"]["gender"] == ["gender: no image with a known label"]
    head, *lines = found["test"]["breed"]
    assert head == "breed: 4 classes, 50 images with a known label"
    macro = precision_recall_fscore_support(true, predicted, average="macro", zero_division=0)
    expected = [accuracy_score(true, predicted), *macro[:3]]
    names = ["accuracy", "macro precision", "macro recall", "macro F1"]
    for name, value, line in zip(names, expected, lines[:4], strict=True):
        assert line.split() == [*name.split(), f"{value:.4f}"]
    support = np.bincount(true, minlength=4)
    commonest = np.argsort(-support)[:2]
    assert len(lines) == 5 + 2  # top_support classes alone are listed
    for index, line in zip(commonest, lines[5:], strict=True):
        recall = (predicted[true == index] == index).mean()
        assert line == f"  {support[index]:9d}  {recall:6.4f}  {NAMES['breed'][index]}"


def test_classes_without_an_image_are_not_listed(tmp_path: Path) -> None:
    names = {"breed": NAMES["breed"]}
    write_specialist_report(tmp_path, names, {"test": {"breed": np.diag([1, 5, 2, 0])}}, 10)
    text = (tmp_path / "eval_summary_stage2.txt").read_text(encoding="utf-8")
    assert "never seen" not in text
    places = [text.index(name) for name in ("Bulldog, Olde mix", "'x", "Abbysinian")]
    assert places == sorted(places)  # most images first
