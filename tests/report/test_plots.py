"""Charts, dots and heat maps: places on the drawing against a hand calculation."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from petface.metrics import read_confusion, write_confusion
from petface.report.dots import Change, Dot, changes, dots, stacked
from petface.report.heat_map import draw_confusion, top_pairs
from petface.report.plots import HEIGHT, WIDTH, Frame, Line, chart, sparkline, ticks
from tests.report.page_checks import Checker


def whole(drawn):
    found = Checker()
    found.feed(drawn)
    assert found.faults == [] and found.stack == []
    return found


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 2.7, [0, 0.5, 1, 1.5, 2, 2.5]),
        (1, 20, [5, 10, 15, 20]),
        (-3, 3, [-2, 0, 2]),
        (5, 5, [5]),
        (0, math.inf, [0]),
    ],
)
def test_ticks_are_few_and_round(low, high, expected):
    found = ticks(low, high)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("low", [0.0, -7.3, 1e-9, 3e8])
@pytest.mark.parametrize("span", [1e-7, 0.3, 1.0, 47.0, 1e12])
def test_ticks_lie_inside_whatever_the_span(low, span):
    found = ticks(low, low + span)
    slack = 1e-6 * span
    assert 1 <= len(found) <= 6
    assert all(low - slack <= value <= low + span + slack for value in found)


def test_a_chart_puts_points_where_they_belong():
    frame = Frame("x", "y", (0, 10), (0, 1))
    drawn = chart("title", [Line("line", [(0, 0), (5, 0.5), (10, 1)])], frame)
    whole(drawn)
    way = re.search(r'<path class=line d="M([^"]+)"', drawn)[1]
    (x0, y0), (x1, y1), (x2, y2) = (map(float, p.split()) for p in way.split("L"))
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.11) and y1 == pytest.approx(
        (y0 + y2) / 2, abs=0.11
    )
    assert 0 < x0 < x2 < WIDTH and 0 < y2 < y0 < HEIGHT


def test_a_chart_leaves_out_what_is_no_number_and_is_empty_without_points():
    line = Line("line", [(0, None), (1, math.nan), (2, math.inf), (3, 1.0), (4,), "x", (5, 2.0)])
    drawn = chart("title", [line], Frame("x", "y"))
    assert len(re.search(r'class=line d="M([^"]+)"', drawn)[1].split("L")) == 2
    assert chart("title", [Line("line", [(0, None)])], Frame("x", "y")) == ""
    assert chart("title", [], Frame("x", "y")) == ""
    whole(chart("t", [Line("one", [(1, 1)])], Frame("x", "y")))  # one point has no span
    long = chart("t", [Line("l", [(k, k) for k in range(10_000)])], Frame("x", "y"))
    assert len(long) < 12_000


def test_texts_of_charts_are_escaped():
    drawn = chart('<b>"', [Line("<i>", [(0, 0)])], Frame("<x>", "&y", x_names=["<svg>"]))
    found = whole(drawn)
    assert not {"b", "x"} & set(found.tags) and found.tags.count("svg") == 1
    found = whole(dots([Dot("<b>", 0.5)], baseline="<u>x") + changes([Change("<b>", 0.1)]))
    assert "<b>" in found.texts
    found = whole(stacked({"<q>": (0.5, 0.5)}, ("<q>", "b"), ("red", "blue")))
    assert found.texts.count("<q>") == 2


def test_dots_stand_at_their_share_and_say_it():
    drawn = dots([Dot("cat", 0.25, [0.2, 0.4], 0.1, 40), Dot("dog", None), Dot("rat", "x")])
    assert drawn.count("class=track") == 1
    assert '<b style="left:25.00%">' in drawn and "left:20.00%;width:20.00%" in drawn
    assert "left:10.00%" in drawn and "25.0 % (20.0 - 40.0)" in drawn and "40 photos" in drawn
    assert (
        dots([Dot("dog", None)]) == "" and stacked({"a": (0.5, None)}, ("a", "b"), ("", "")) == ""
    )


def test_changes_grow_from_the_middle():
    drawn = changes([Change("shift", -0.1, [-0.2, 0.0]), Change("scale", 0.05)])
    assert "left:25.00%;width:25.00%" in drawn  # -0.1 of -0.2 .. 0.2
    assert "left:50.00%;width:12.50%" in drawn
    assert "left:0.00%;width:50.00%" in drawn and "-10.0 (-20.0 to +0.0)" in drawn
    whole(drawn)


def test_a_sparkline_needs_two_values():
    assert sparkline([0.5]) == "" and sparkline([None, math.nan]) == ""
    points = re.search(r'points="([^"]+)"', sparkline([0.0, None, 1.0]))[1].split()
    assert [tuple(map(float, p.split(","))) for p in points] == [(2, 18), (88, 2)]


def test_a_heat_map_draws_a_cell_per_count(tmp_path):
    counts = np.array([[3, 1, 0], [0, 0, 0], [0, 2, 5]])
    names = ["=a", "<b>", "c" * 60]
    write_confusion(tmp_path / "t.csv", counts, names)
    read_names, read_counts = read_confusion(tmp_path / "t.csv")
    assert read_names == names and (read_counts == counts).all()
    drawn = draw_confusion("breed", names, counts)
    found = whole(drawn)
    cells = sum(way.count("M") for way in re.findall(r'<path d="([^"]+)"', drawn))
    assert cells == 4 and sum(t in ("3", "1", "2", "5") for t in found.texts) >= 4
    assert "<b> 2" in found.texts and "b" not in found.tags
    assert draw_confusion("breed", names, counts * 0) == ""


def test_many_classes_become_the_commonest_pairs():
    counts = np.diag(np.full(61, 9))
    counts[3, 7], counts[60, 0] = 4, 5
    names = [f"class {k}" for k in range(61)]
    found = whole(draw_confusion("breed", names, counts))
    assert "svg" not in found.tags
    assert found.rows[1:] == [["class 60", "class 0", "5", "14"], ["class 3", "class 7", "4", "13"]]
    assert "None" in top_pairs(names, np.diag(np.ones(61, int)))
