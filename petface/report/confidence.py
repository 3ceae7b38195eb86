"""How far each head's confidence can be believed, as one picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from petface.drawing import figure_maker, save_png, tidy
from petface.reliability import coverage_curve, reliability_bins, softmax, usable_rows

_MAX_BINS = 15
_ROWS_PER_BIN = 20  # fewer bins for a small part: an interval as high as the panel says nothing
_MAX_DRAWN = 1000  # steps of a curve
_MIN_DRAWN = 10  # the accuracy of fewer answers than this jumps up and down and is not drawn


def draw_confidence(
    heads: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike, Mapping[str, Any]]], path: Path
) -> bool:
    """Draw a row per head into a PNG: reliability before and after, accuracy over coverage.

    `heads[name]` is (test logits (N, K), test labels (N,), what `calibrate_head` gave). False where
    no head has a known label in the test part, and, with a line that says how to install it, where
    matplotlib is missing.
    """
    make_figure = figure_maker(path)
    if make_figure is None:
        return False
    rows = {}
    for name, (logits, labels, calibration) in heads.items():
        z, y, _ = usable_rows(logits, labels)
        if len(y):
            rows[name] = (z, y, calibration)
    if not rows:
        return False
    figure = make_figure(figsize=(12, 4.1 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), 3, squeeze=False)
    for axes, (name, (z, y, calibration)) in zip(panels, rows.items(), strict=True):
        temperature = calibration["temperature"]
        _draw_reliability(axes[0], z, y, 1.0, f"{name}: as trained")
        confidence, correct = _draw_reliability(
            axes[1], z, y, temperature, f"{name}: at temperature {temperature:.2f}"
        )
        _draw_coverage(axes[2], confidence, correct, calibration, f"{name}: {len(y):,} photos")
    for axis in panels.flat:
        tidy(axis)
        axis.set(xlim=(0, 1.02), ylim=(0, 1.02))
        axis.legend(frameon=False, fontsize=8, loc="best")
    save_png(figure, path, 110)
    return True


def _draw_reliability(
    axis: Any, z: np.ndarray, y: np.ndarray, temperature: float, title: str
) -> tuple[np.ndarray, np.ndarray]:
    """Draw accuracy over confidence; give both, a number per photo."""
    p = softmax(z, temperature)
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == y
    bins = reliability_bins(confidence, correct, min(_MAX_BINS, 1 + len(y) // _ROWS_PER_BIN))
    axis.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="as sure as right")
    axis.vlines(bins.confidence, bins.low, bins.high, color="C0", alpha=0.5)
    axis.plot(bins.confidence, bins.accuracy, "o-", color="C0", markersize=4, label="photos")
    axis.set(title=title, xlabel="confidence", ylabel="share right, 95 % interval")
    return confidence, correct


def _draw_coverage(
    axis: Any, confidence: np.ndarray, correct: np.ndarray, fitted: Mapping[str, Any], title: str
) -> None:
    """Draw the share right over the share of photos that are answered."""
    _, coverage, accuracy = coverage_curve(confidence, correct)
    steps = np.flatnonzero(coverage * len(confidence) >= min(_MIN_DRAWN, len(confidence)))
    shown = steps[np.linspace(0, len(steps) - 1, min(len(steps), _MAX_DRAWN)).astype(int)]
    axis.plot(coverage[shown], accuracy[shown], color="C0", label="any threshold")
    axis.axhline(
        fitted["wanted_accuracy"], color="0.6", linewidth=1, linestyle="--", label="wanted"
    )
    threshold = fitted["threshold"]
    answered = confidence >= (np.inf if threshold is None else threshold)
    if answered.any():
        label = f"threshold {threshold:.3f}"
        axis.plot(answered.mean(), correct[answered].mean(), "o", color="C3", label=label)
    else:
        title += ", none answered"
    axis.set(title=title, xlabel="share answered", ylabel="share right of these")
