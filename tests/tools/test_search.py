"""The search on a made-up figure and on real runs; without Optuna it says what is missing."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from petface.errors import SettingsError
from tests.conftest import TINY_STAGE1
from tests.tools.test_sweep import preset_of
from tools import search

ROOT = Path(__file__).parent.parent.parent


class Fixed:
    """A trial that draws the low end of what is asked, and keeps the questions."""

    def __init__(self):
        self.asked = []

    def suggest_int(self, name, low, high):
        self.asked.append((name, low, high))
        return low

    def suggest_float(self, name, low, high, log):
        self.asked.append((name, low, high, log))
        return low

    def suggest_categorical(self, name, choices):
        self.asked.append((name, choices))
        return choices[-1]


def test_ranges_choices_and_values_are_told_apart():
    trial = Fixed()
    words = ("EPOCHS=3..9", "LR=1e-4..0.01", "LABEL_SMOOTHING=0..0.2", "MIX=none,both")
    drawn = [search.parse_choice(word).draw(trial) for word in words]
    assert drawn == ["3", "0.0001", "0.0", "both"]
    assert trial.asked == [
        ("EPOCHS", 3, 9),
        ("LR", 1e-4, 0.01, True),
        ("LABEL_SMOOTHING", 0.0, 0.2, False),
        ("MIX", ["none", "both"]),
    ]
    assert search.parse_choice("LR=0.1") is None and search.parse_choice("WEIGHTS=a.b/c.pt") is None


@pytest.mark.parametrize("word", ["LR=0.1..0.01", "LR=1..1", "LR=a..b", "LR=0.1..inf", "LR=.."])
def test_impossible_ranges_are_refused(word):
    with pytest.raises(SettingsError, match=r"range"):
        search.parse_choice(word)


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tools.search", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_search_goes_on_where_it_was_stopped_and_names_the_best(tree, tmp_path):
    pytest.importorskip("optuna")
    preset = preset_of(tmp_path, "stage1", [*tree.flags, *TINY_STAGE1])
    out = tmp_path / "out"
    words = ("EPOCHS=2", "LR=1e-4..1e-2", "MIX=none,both", "--out", out)
    first = run(preset, *words, "--trials", 1)
    assert first.returncode == 0, first.stderr
    done = run(preset, *words, "--trials", 3)
    assert done.returncode == 0, done.stderr
    assert "1 trials so far, 2 to go" in done.stdout
    with (out / "trials.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["trial"] for row in rows] == ["0", "1", "2"]
    values = [float(row["value"]) for row in rows if row["state"] == "COMPLETE"]
    assert f"{max(values):.4f}" in done.stdout and "python -m tools.sweep" in done.stdout
    with (out / "tiny/trial0/metrics.csv").open(newline="") as handle:
        seen = [float(row["val_accuracy_frac"]) for row in csv.DictReader(handle)]
    assert float(rows[0]["value"]) == pytest.approx(max(seen))


def test_mistakes_are_said_in_a_line(tmp_path):
    pytest.importorskip("optuna")
    for words, message in (
        (["configs/stage1/demo.toml"], "nothing to search"),
        (["configs/stage1/demo.toml", "LRR=1e-4..1e-2"], "unknown flag --lrr"),
        (["LR=1e-4..1e-2"], "give one preset"),
    ):
        done = run(*words, "--out", tmp_path / "out")
        assert done.returncode and message in done.stderr and "Traceback" not in done.stderr


def test_without_optuna_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(Exception, match=r"\.\[search\]"):
        search._optuna()
