"""A sweep as a user runs it: several seeds and folds, taken up again, compared and refused."""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from petface import files
from petface.analysis.sweeps import SweepRun, write_sweep
from petface.errors import UserError
from tests.conftest import TINY_STAGE1, TINY_STAGE2
from tools import sweep as tool

ROOT = Path(__file__).parent.parent.parent


def sweep(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.sweep", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )


def preset_of(folder: Path, stage: str, flags: list[object]) -> Path:
    """Write flags as a preset: a list behind a flag is a list."""
    table: dict[str, list[object]] = {}
    for word in flags:
        if str(word).startswith("--"):
            name = str(word)[2:].upper().replace("-", "_")
            table[name] = []
        else:
            table[name].append(word if isinstance(word, int | float) else str(word))
    lists = {"PHASE_EPOCHS", "PHASE_STAGES", "PHASE_LR", "PHASE_PATIENCE"}
    lines = [
        f"{name} = {json.dumps(values if name in lists else values[0] if values else True)}"
        for name, values in table.items()
    ]
    path = folder / "configs" / stage / "tiny.toml"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.mark.slow
def test_stage_1_with_two_seeds_is_taken_up_compared_and_refused(tree, tmp_path):
    preset = preset_of(tmp_path, "stage1", [*tree.flags, *TINY_STAGE1])
    out = tmp_path / "sweep"
    command = (preset, "EPOCHS=1", "--seeds", 1, 2, "--out", out)
    first = sweep(preset, "EPOCHS=1", "--seeds", 1, "--out", out)
    assert first.returncode == 0, first.stderr + first.stdout
    best = out / "tiny/seed1/best.pt"
    written = best.stat().st_mtime_ns
    done = sweep(*command)
    assert done.returncode == 0, done.stderr
    assert "2 runs, 1 of them finished before" in done.stdout
    assert best.stat().st_mtime_ns == written
    assert "best by val balanced accuracy: tiny. Chosen by the validation part" in done.stdout
    runs = rows_of(out / "runs.csv")
    assert [row["variant"] for row in runs] == ["seed1", "seed2"]
    for row in runs:
        final = json.loads((out / "tiny" / row["variant"] / "final.json").read_text())
        assert float(row["test_accuracy"]) == pytest.approx(final["test_accuracy"], abs=1e-4)
    (summary,) = rows_of(out / "summary.csv")
    values = [float(row["test_balanced_accuracy"]) for row in runs]
    assert summary["runs"] == "2"
    assert float(summary["test_balanced_accuracy_mean"]) == pytest.approx(
        statistics.mean(values), abs=1e-4
    )
    assert (out / "accuracy_time.png").read_bytes()[:4] == b"\x89PNG"

    other = sweep(preset, "EPOCHS=2", "--seeds", 1, "--out", out)
    assert other.returncode == 1 and "Traceback" not in other.stderr
    assert "trained with other settings (EPOCHS: 1 -> 2)" in other.stderr
    assert best.stat().st_mtime_ns == written


@pytest.mark.slow
def test_specialists_over_folds_two_at_once(tree, stage1_run, tmp_path):
    flags = [*tree.flags, *TINY_STAGE2, "--weights", stage1_run.folder / "best.pt"]
    preset = preset_of(tmp_path, "stage2", [*flags, "--species", "cat"])
    out = tmp_path / "sweep"
    done = sweep(preset, "--folds", 2, "--seeds", 3, "--out", out, "--jobs", 2)
    assert done.returncode == 0, done.stderr + done.stdout
    runs = rows_of(out / "runs.csv")
    assert [(r["variant"], r["species"]) for r in runs] == [
        ("fold1_seed3", "cat"),
        ("fold2_seed3", "cat"),
    ]
    tested = [
        line.split(",")[1]
        for path in sorted((out / "folds/stage2_resnet_multi_tiny").glob("*.csv"))
        for line in path.read_text().splitlines()
        if line.startswith("cat,") and line.endswith(",test")
    ]
    assert sorted(tested) == [f"{number:06d}" for number in range(16)]  # each cat once


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a preset"),
        (["configs/eval/demo.toml"], "lies in no folder of presets (stage1, stage2)"),
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

    def fake(_, __, run):
        trained.append(run.variant)
        if run.variant == "seed2" and len(trained) < 3:
            return 1
        run.settings.write(run.folder / "settings.toml")
        final = {"val_accuracy": 0.5, "test_accuracy": 0.25, "train_minutes": 1.0}
        files.write_json(run.folder / "final.json", final)
        return 0

    monkeypatch.setattr(tool, "train", fake)
    command = ["sweep", "configs/stage1/demo.toml", "LR=0.5", "--out", str(tmp_path), "--seeds"]
    monkeypatch.setattr(sys, "argv", [*command, "1", "2"])
    monkeypatch.chdir(ROOT)
    assert tool.main() == 1
    assert f"not finished: {tmp_path / 'demo/seed2'}" in capsys.readouterr().err
    assert tool.main() == 0
    assert trained == ["seed1", "seed2", "seed2"]
    assert "2 runs, 1 of them finished before" in capsys.readouterr().out
    assert [row["variant"] for row in rows_of(tmp_path / "runs.csv")] == ["seed1", "seed2"]
    monkeypatch.setattr(sys, "argv", [*command[:2], "LR=0.25", *command[3:], "1"])
    with pytest.raises(UserError, match=r"trained with other settings \(LR: 0.5 -> 0.25\)"):
        tool.main()


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_the_others_are_compared(tree, tmp_path):
    preset = preset_of(tmp_path, "stage1", [*tree.flags, *TINY_STAGE1])
    broken = preset.with_name("broken.toml")
    broken.write_text(preset.read_text().replace("tiny", "x") + 'WEIGHTS = "nowhere.pt"\n')
    out = tmp_path / "sweep"
    done = sweep(preset, broken, "EPOCHS=1", "--seeds", 1, "--out", out)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"not finished: {out / 'broken/seed1'}" in done.stderr
    assert "nowhere.pt: no such file" in done.stdout
    assert [row["preset"] for row in rows_of(out / "runs.csv")] == ["tiny"]


def test_a_pack_is_made_once_before_runs_that_begin_together(tree, tmp_path, monkeypatch):
    own = tree.copy(tmp_path / "own")
    preset = preset_of(tmp_path, "stage1", [*own.flags, *TINY_STAGE1, "--pack", "auto"])
    seen = []
    monkeypatch.setattr(
        tool, "train", lambda *_: seen.append(list(own.root.glob("pack*.bin"))) or 1
    )
    for jobs in ("1", "2"):
        words = ["sweep", str(preset), "--out", str(tmp_path / jobs), "--jobs", jobs]
        monkeypatch.setattr(sys, "argv", words)
        assert tool.main() == 1
    assert [len(packs) for packs in seen] == [0, 0, 0, 1, 1, 1]


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
    assert alone["val_balanced_accuracy_std"] == "0.0000"
