"""The picture of confidence: complete, the same every time, nothing cut, and never needed."""

from __future__ import annotations

import sys
from itertools import combinations

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from petface.calibration import calibrate_head, describe_calibration
from petface.report.confidence import draw_confidence
from tests.test_reliability import draw


def heads() -> dict:
    """An overconfident head, and one too small to answer at all."""
    made = {}
    for name, n, num_classes in (("breed", 1200, 30), ("gender", 8, 2)):
        logits, labels = draw(n, 2 * n, num_classes, spread=5)
        logits *= 2
        labels[::9] = -1
        made[name] = (logits[n:], labels[n:], calibrate_head(logits[:n], labels[:n]))
    return made


def capture(monkeypatch) -> list[Figure]:
    """Keep the figures that are saved, to look into them."""
    kept, save = [], Figure.savefig

    def savefig(figure, *arguments, **options):
        kept.append(figure)
        return save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return kept


def test_every_head_has_its_row_and_the_figures_in_it_are_right(tmp_path, monkeypatch) -> None:
    figures = capture(monkeypatch)
    drawn = heads()
    assert draw_confidence(drawn, tmp_path / "confidence.png")
    with Image.open(tmp_path / "confidence.png") as image:
        assert image.format == "PNG" and image.width > image.height > 800
    axes = np.array(figures[0].axes).reshape(2, 3)
    titles = [[axis.get_title() for axis in row] for row in axes]
    temperature = drawn["breed"][2]["temperature"]
    assert titles[0][1] == f"breed: at temperature {temperature:.2f}" and temperature > 1.5
    assert titles[1][2].endswith("none answered")

    seen = describe_calibration("breed", *drawn["breed"])
    lines = {line.get_label(): line for line in axes[0, 2].get_lines()}
    (dot,) = [line for label, line in lines.items() if label.startswith("threshold")]
    assert dot.get_xydata().tolist() == [[seen["coverage"], seen["accuracy"]]]
    curve = lines["any threshold"].get_xydata()
    assert curve[-1, 0] == 1.0 and len(curve) <= 1000
    gaps = []  # of the bins to the diagonal
    for axis in axes[0, :2]:
        points = axis.get_lines()[1].get_xydata()
        gaps.append(np.abs(points[:, 0] - points[:, 1]).mean())
    assert gaps[0] > 0.1 > 0.05 > gaps[1]


def test_no_text_is_cut_or_lies_on_another(tmp_path, monkeypatch) -> None:
    figures = capture(monkeypatch)
    draw_confidence(heads(), tmp_path / "confidence.png")
    figure = figures[0]
    figure.draw_without_rendering()  # saving at another resolution left stale places behind
    renderer = figure.canvas.get_renderer()
    boxes = []
    for axis in figure.axes:
        texts = [axis.title, axis.xaxis.label, axis.yaxis.label]
        ticks = axis.get_xticklabels() + axis.get_yticklabels()
        texts += [t for t in ticks if max(t.get_position()) <= 1.0]  # the others are not drawn
        boxes += [(t.get_text(), t.get_window_extent(renderer)) for t in texts]
    assert len(boxes) > 40
    for text, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0, text
        assert box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height, text
    hidden = [(a[0], b[0]) for a, b in combinations(boxes, 2) if a[1].overlaps(b[1])]
    assert hidden == []


def test_the_same_figures_give_the_same_bytes(tmp_path) -> None:
    drawn = {"gender": heads()["gender"]}
    for name in ("a.png", "b.png"):
        assert draw_confidence(drawn, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_heads_without_a_known_label_are_left_out(tmp_path, monkeypatch) -> None:
    figures = capture(monkeypatch)
    logits, labels, fitted = heads()["gender"]
    nothing = {"color": (logits, np.full(len(logits), -1), fitted)}
    assert not draw_confidence(nothing, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    assert draw_confidence({**nothing, "gender": (logits, labels, fitted)}, tmp_path / "one.png")
    assert len(figures[0].axes) == 3


def test_without_matplotlib_the_picture_is_missed_and_said(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not draw_confidence(heads(), tmp_path / "confidence.png")
    assert "pip install" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
