"""Charts: what is drawn and named, and that a page can hold several."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from petface.report import charts


def axes_of(panel):
    axes = Figure().subplots()
    panel(axes)
    return axes


HISTORY = pd.DataFrame({
    "phase": [1, 1, 2, 2], "epoch": [1, 2, 3, 4], "train_loss": [1, 1 / 2, 1 / 3, 1 / 4],
    "val_loss": np.nan, "val_accuracy_frac": [0.2, 0.4, 0.6, 0.8], "learning_rate": 0.1,
})  # fmt: skip


def test_training_curves_over_whole_epochs():
    loss, accuracy, rate = map(axes_of, charts.training(HISTORY))
    drawn = loss.get_lines()[0]
    np.testing.assert_array_equal(drawn.get_xdata(), [1, 2, 3, 4])
    np.testing.assert_allclose(drawn.get_ydata(), [1, 1 / 2, 1 / 3, 1 / 4])
    np.testing.assert_allclose(accuracy.get_lines()[0].get_ydata(), [20, 40, 60, 80])
    names = [text.get_text() for text in loss.get_legend().get_texts()]
    assert names == ["train", "next phase"]  # val loss has no number: not drawn, not named
    assert accuracy.get_legend_handles_labels()[1] == ["accuracy", "next phase"]
    assert loss.get_lines()[1].get_xdata()[0] == 2.5
    for axes in (loss, accuracy, rate):
        assert isinstance(axes.xaxis.get_major_locator(), MaxNLocator)
        assert all(tick == int(tick) for tick in axes.get_xticks())
        assert axes.get_xlabel() == "epoch" and axes.get_ylabel()
    for axes in map(axes_of, charts.training(HISTORY[:1])):  # a single epoch too
        assert all(tick == int(tick) for tick in axes.get_xticks())
    assert charts.training(pd.DataFrame()) == []


def test_a_legend_names_only_what_is_drawn():
    fitted = {"head": "breed", "reliability": [[0.5, 0.4, 9, 0.2, 0.6]], "curve": [[1.0, 0.4, 0.1]]}
    reliability, coverage = map(axes_of, charts.confidence(fitted))
    assert [t.get_text() for t in reliability.get_legend().get_texts()] == ["ideal", "calibrated"]
    assert reliability.get_legend().get_title().get_text() == "breed: reliability"
    assert coverage.get_legend_handles_labels()[1] == ["any threshold"]
    fitted |= {"wanted_accuracy": 0.9, "accuracy_of_answered": 0.95, "coverage": 0.25}
    _, coverage = map(axes_of, charts.confidence(fitted))
    assert coverage.get_legend_handles_labels()[1][1:] == ["wanted", "chosen threshold"]
    assert [line[0] for line in coverage.get_lines()[2].get_data()] == [25, 95]


def test_a_confusion_matrix_names_its_classes_and_colours_mistakes():
    counts = np.array([[3, 1, 0], [0, 0, 0], [0, 0, 5]])
    drawn = charts.confusion("breed", ["a<b>", "\u202eevil", "x" * 60], counts)
    texts = re.findall(r"<text[^>]*>(.*?)</text>", drawn)
    assert texts.count("a&lt;b&gt;") == 2 and texts.count(r"\u202eevil") == 2
    assert texts.count("x" * 27 + "…") == 2 and {"3", "1", "5", "true", "predicted"} <= set(texts)
    assert "0" not in texts
    assert drawn.count(f"fill: {charts.BLUE}") == 2 and drawn.count(f"fill: {charts.ORANGE}") == 1
    assert charts.confusion("none", ["a"], np.zeros((1, 1), int)) == ""
    many = np.diag(np.arange(1, charts.MAX_CLASSES + 3))
    drawn = charts.confusion("breed", [f"class {k}" for k in range(len(many))], many)
    assert f"{charts.MAX_CLASSES} of {len(many)} classes" in drawn
    assert "class 41" in drawn and ">class 1<" not in drawn  # the rarest are left out


@pytest.mark.parametrize("reference", ["majority_baseline", ""])
def test_intervals_are_drawn_in_percent(reference):
    rows = [
        {"species": "cat", "accuracy": 0.5, "interval_95": [0.4, 0.6], "majority_baseline": 0.3},
        {"species": "none", "accuracy": None},
        {"species": "dog", "accuracy": 0.75},
    ]
    columns = f"species accuracy interval_95 {reference}"
    drawn = charts.intervals("breed", rows, columns, "accuracy, %")
    assert ">cat<" in drawn and ">dog<" in drawn and ">none<" not in drawn
    assert ("majority baseline" in drawn) == bool(reference)
    assert ">species<" in drawn and ">accuracy, %<" in drawn  # what the axes mean
    assert charts.intervals("breed", rows[1:2], columns, "accuracy, %") == ""


def test_two_charts_stand_in_one_page():
    one, other = (charts.svg(charts.training(HISTORY)[k]) for k in (0, 1))
    ids = [*re.findall(r' id="([^"]*)"', one), *re.findall(r' id="([^"]*)"', other)]
    assert ids and len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]*)\)", one)) <= set(ids)
    for drawn in (one, other):
        assert "currentColor" in drawn and charts.INK not in drawn
        assert "<style" not in drawn and "<metadata" not in drawn and "://" not in drawn
