"""A sweep as a user runs it: several seeds and folds, taken up again, compared and refused."""

from __future__ import annotations

import importlib
import json
import re
import statistics
import sys
from pathlib import Path

import pytest

from petface import files
from petface.analysis.sweeps import SweepRun, write_sweep
from petface.errors import UserError
from petface.settings import read_settings
from tests.conftest import TINY_STAGE1, TINY_STAGE2
from tests.naive import rows_of
from tests.scripts import REPOSITORY, assert_refused
from tools import sweep as tool

SWEEP = "tools/sweep.py"


def preset_of(folder: Path, stage: str, flags: list[object]) -> Path:
    """Write flags as a preset."""
    trainer = importlib.import_module(tool.SCRIPTS[stage])
    path = folder / "configs" / stage / "tiny.toml"
    path.parent.mkdir(parents=True)
    path.write_text(read_settings(trainer, list(map(str, flags))).as_toml(), encoding="utf-8")
    return path


@pytest.mark.slow
def test_a_sweep_is_taken_up_compared_and_refused_and_names_what_failed(tree, tmp_path, script):
    preset = preset_of(tmp_path, "stage1", [*tree.flags, *TINY_STAGE1])
    broken = preset.with_name("broken.toml")
    broken.write_text(re.sub("\nWEIGHTS = .*", '\nWEIGHTS = "nowhere.pt"', preset.read_text()))
    out = tmp_path / "sweep"
    flags = ["EPOCHS=1", "--out", out, "--seeds", 1]
    first = script(SWEEP, [preset, broken, *flags])
    assert first.code == 1 and "Traceback" not in first.err
    assert f"not finished: {out / 'broken/seed1'}" in first.err
    assert "nowhere.pt: no such file" in first.out
    assert [row["preset"] for row in rows_of(out / "runs.csv")] == ["tiny"]
    best = out / "tiny/seed1/best.pt"
    written = best.stat().st_mtime_ns
    done = script(SWEEP, [preset, *flags, 2]).checked()
    assert "2 runs, 1 of them finished before" in done.out
    assert "best by val balanced accuracy: tiny. Chosen by the validation split" in done.out
    runs = rows_of(out / "runs.csv")
    assert [row["variant"] for row in runs] == ["seed1", "seed2"]
    for row in runs:
        final = json.loads((out / "tiny" / row["variant"] / "final.json").read_text())
        assert float(row["test_accuracy"]) == pytest.approx(final["test_accuracy"], abs=1e-4)
    (summary,) = rows_of(out / "summary.csv")
    mean = statistics.mean(float(row["test_balanced_accuracy"]) for row in runs)
    assert summary["runs"] == "2"
    assert float(summary["test_balanced_accuracy_mean"]) == pytest.approx(mean, abs=1e-4)
    other = script(SWEEP, [preset, "EPOCHS=2", *flags[1:]])
    assert_refused(other, "trained with other settings (EPOCHS: 1 -> 2)")
    assert best.stat().st_mtime_ns == written


@pytest.mark.slow
def test_specialists_over_folds(tree, stage1_run, tmp_path, script):
    flags = [*tree.flags, *TINY_STAGE2, "--weights", stage1_run.folder / "best.pt"]
    preset = preset_of(tmp_path, "stage2", [*flags, "--species", "cat"])
    out = tmp_path / "sweep"
    script(SWEEP, [preset, "--folds", 2, "--seeds", 3, "--out", out]).checked()
    runs = [(row["variant"], row["species"]) for row in rows_of(out / "runs.csv")]
    assert runs == [("fold1_seed3", "cat"), ("fold2_seed3", "cat")]
    tested = [
        row["record"]
        for path in (out / "folds/stage2_resnet_multi_tiny").glob("*.csv")
        for row in rows_of(path)
        if (row["species"], row["split"]) == ("cat", "test")
    ]
    assert sorted(tested) == [f"{number:06d}" for number in range(16)]  # each cat once


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a preset"),
        (["configs/eval/demo.toml"], "lies in no folder of presets (stage1, stage2, identity)"),
        (["configs/stage1/demo.toml", "EPOCHZ=3"], "unknown flag --epochz"),
        (["configs/stage1/nothere.toml"], "there is no such preset"),
        (["configs/stage1/demo.toml", "--seeds", "1", "1"], "their runs would mix"),
    ],
)
def test_mistakes_are_said_before_anything_is_trained(arguments, message, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sweep", *arguments, "--out", str(tmp_path)])
    monkeypatch.setattr(tool, "train", lambda *_: pytest.fail("trained"))
    with pytest.raises(UserError) as told:
        tool.main()
    assert message in str(told.value)


def test_what_is_finished_is_left_alone_and_what_failed_is_named(tmp_path, monkeypatch, capsys):
    """The real plan, with a trainer that writes what a finished run has."""
    trained = []

    def fake(run):
        trained.append(run.folder.name)
        if run.folder.name == "seed2" and len(trained) < 3:
            return 1
        run.folder.mkdir(parents=True)
        (run.folder / "settings.toml").write_text(run.settings().as_toml())
        final = {"val_accuracy": 0.5, "test_accuracy": 0.25, "train_minutes": 1.0}
        files.write_json(run.folder / "final.json", final)
        return 0

    monkeypatch.setattr(tool, "train", fake)
    command = ["sweep", "configs/stage1/demo.toml", "LR=0.5", "--out", str(tmp_path), "--seeds"]
    monkeypatch.setattr(sys, "argv", [*command, "1", "2"])
    monkeypatch.chdir(REPOSITORY)
    assert tool.main() == 1
    assert f"not finished: {tmp_path / 'demo/seed2'}" in capsys.readouterr().err
    assert tool.main() == 0
    assert trained == ["seed1", "seed2", "seed2"]
    assert "2 runs, 1 of them finished before" in capsys.readouterr().out
    assert [row["variant"] for row in rows_of(tmp_path / "runs.csv")] == ["seed1", "seed2"]
    monkeypatch.setattr(sys, "argv", [*command[:2], "LR=0.25", *command[3:], "1"])
    with pytest.raises(UserError, match=r"trained with other settings \(LR: 0.5 -> 0.25\)"):
        tool.main()


def run_of(preset: str, seed: int, val: float, test: float, minutes: float = 2.0) -> SweepRun:
    final = {"val_balanced_accuracy": val, "test_balanced_accuracy": test, "val_accuracy": None}
    return SweepRun(preset, f"seed{seed}", "", {**final, "train_minutes": minutes})


def test_the_steady_preset_is_chosen_by_validation_whatever_the_test_says(tmp_path):
    runs = [run_of("wild", s, v, 0.9) for s, v in enumerate((0.9, 0.5, 0.7))]
    runs += [run_of("steady", s, v, 0.1) for s, v in enumerate((0.66, 0.65, 0.67))]
    text = write_sweep(tmp_path, runs)
    assert "best by val balanced accuracy: steady." in text
    assert text.splitlines()[1].startswith("steady") and "66.0 ± 1.0" in text
    wild, steady = rows_of(tmp_path / "summary.csv")
    assert (wild["preset"], steady["preset"]) == ("wild", "steady")
    spread = statistics.stdev((0.9, 0.5, 0.7))
    assert float(wild["val_balanced_accuracy_std"]) == pytest.approx(spread, abs=1e-4)
    assert float(wild["val_balanced_accuracy_mean"]) == pytest.approx(0.7)
    assert "val_accuracy_mean" not in wild
    write_sweep(tmp_path, runs[:1])
    (alone,) = rows_of(tmp_path / "summary.csv")
    assert alone["val_balanced_accuracy_std"] == "0.0"


def test_every_head_counts_and_a_preset_without_a_metric_is_not_best(tmp_path):
    runs = []
    for seed in range(2):
        for preset, breed, color in (("bad", 0.7, 0.3), ("good", 0.69, 0.9), ("lame", 0.95, None)):
            for species in ("cat", "chinchilla"):
                own = {"val_breed_balanced_accuracy": breed if species == "cat" else None}
                own |= {"val_color1_balanced_accuracy": color, "train_minutes": 1.0}
                runs.append(SweepRun(preset, f"seed{seed}", species, own))
    text = write_sweep(tmp_path, runs)
    assert "color1 balanced accuracy: good for cat, good for chinchilla." in text


def test_one_run_never_beats_three_by_having_no_deviation(tmp_path):
    runs = [run_of("once", 1, 0.80, 0.5)]
    runs += [run_of("thrice", seed, val, 0.5) for seed, val in enumerate((0.80, 0.82, 0.84))]
    text = write_sweep(tmp_path, runs)
    assert "best by val balanced accuracy: thrice." in text
    (line,) = (line for line in text.splitlines() if line.startswith("once"))
    assert "±" not in line
    nothing = [SweepRun("a", "seed1", "", {"train_minutes": 1.0})]
    assert "nothing to choose by" in write_sweep(tmp_path / "nothing", nothing)
