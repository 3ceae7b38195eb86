"""The search on a made-up figure and on real runs; without Optuna it says what is missing."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from unittest import mock

import pytest

from petface.errors import SettingsError, UserError
from tests.conftest import TINY_STAGE1
from tests.naive import rows_of
from tests.tools.test_sweep import preset_of
from tools import search


def test_ranges_choices_and_values_are_told_apart():
    trial = mock.Mock()
    trial.suggest_int.side_effect = trial.suggest_float.side_effect = lambda _, low, *__, **___: low
    trial.suggest_categorical.side_effect = lambda _, choices: choices[-1]
    words = ("EPOCHS=3..9", "LR=1e-4..0.01", "LABEL_SMOOTHING=0..0.2", "MIX=none,both")
    drawn = [search.way_to_draw(word)(trial) for word in words]
    assert drawn == ["3", "0.0001", "0.0", "both"]
    assert trial.mock_calls == [
        mock.call.suggest_int("EPOCHS", 3, 9),
        mock.call.suggest_float("LR", 1e-4, 0.01, log=True),
        mock.call.suggest_float("LABEL_SMOOTHING", 0.0, 0.2, log=False),
        mock.call.suggest_categorical("MIX", ["none", "both"]),
    ]
    assert not search.way_to_draw("LR=0.1") and not search.way_to_draw("WEIGHTS=a.b/c.pt")


@pytest.mark.parametrize("word", ["LR=0.1..0.01", "LR=1..1", "LR=a..b", "LR=0.1..inf", "LR=.."])
def test_impossible_ranges_are_refused(word):
    with pytest.raises(SettingsError, match=r"range"):
        search.way_to_draw(word)


@pytest.mark.slow
def test_a_search_goes_on_where_it_was_stopped_and_names_the_best(tree, tmp_path, script):
    pytest.importorskip("optuna")
    preset = preset_of(tmp_path, "stage1", [*tree.flags, *TINY_STAGE1])
    out = tmp_path / "out"
    words = [preset, "EPOCHS=2", "LR=1e-4..1e-2", "MIX=none,both", "--out", out, "--trials"]
    script("tools/search.py", [*words, 1]).checked()
    done = script("tools/search.py", [*words, 3]).checked()
    assert "1 trials so far, 2 to go" in done.out
    rows = rows_of(out / "trials.csv")
    assert [row["trial"] for row in rows] == ["0", "1", "2"]
    values = [float(row["value"]) for row in rows if row["state"] == "COMPLETE"]
    assert f"{max(values):.4f}" in done.out and "python -m tools.sweep" in done.out
    metrics = rows_of(out / "tiny/trial0/metrics.csv")
    best = max(float(row["val_accuracy_frac"]) for row in metrics)
    assert float(rows[0]["value"]) == pytest.approx(best)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["configs/stage1/demo.toml"], "nothing to search"),
        (["configs/stage1/demo.toml", "LRR=1e-4..1e-2"], "unknown flag --lrr"),
        (["LR=1e-4..1e-2"], "give one preset"),
    ],
)
def test_mistakes_are_said_before_anything_is_made(words, message, tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.setattr(sys, "argv", ["search", *words, "--out", str(tmp_path / "out")])
    with pytest.raises(SettingsError, match=message):
        search.main()
    assert not (tmp_path / "out").exists()


def test_without_optuna_the_way_out_is_named(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["search", "configs/stage1/demo.toml", "LR=1e-4..1e-2"])
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"\.\[search\]"):
        search.main()


@pytest.mark.parametrize(
    ("constants", "expected"),
    [
        ({"SELECT_BY": "balanced_accuracy"}, "val_balanced_accuracy_frac"),
        ({"SELECT_BY": "loss"}, "val_loss"),
        ({}, "val_loss"),  # stage 2
        ({}, "val_auc_frac"),  # identity
    ],
)
def test_what_is_searched_for_is_what_the_kept_checkpoint_is_chosen_by(
    constants, expected, tmp_path
):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/metrics.csv").write_text(f"epoch,{expected}\n1,0.5\n2,0.25\n")
    settings = SimpleNamespace(as_dict=lambda: constants)
    run = SimpleNamespace(folder=tmp_path, settings=lambda: settings)
    assert search.best_of(run) == (expected, -0.25 if expected == "val_loss" else 0.5)
