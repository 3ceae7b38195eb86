"""Train presets several times, with other seeds or folds, and compare them.

    python -m tools.sweep configs/stage1/tinypets.toml configs/stage1/realpets.toml
    python -m tools.sweep configs/stage2/realpets.toml --folds 5 --seeds 42
    python -m tools.sweep configs/stage1/tinypets.toml --out runs/lr LR=0.003 EPOCHS=10
    python -m tools.sweep configs/stage1/tinypets.toml+configs/stage1/tinypets_plain.toml

Each run has its own folder, OUT/<preset>/seed42 or OUT/<preset>/fold1_seed42. The same command
resumes a sweep: finished runs stay as they are, and those of other settings are refused. Writes
runs.csv (a row per run) and summary.csv (mean and standard deviation) into OUT. The best preset is
named by the validation split.
With --folds every record is in the test split of one fold; splits.csv is left alone.
"""

from __future__ import annotations

import importlib
import itertools
import os
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import petface
from petface import files
from petface.analysis.sweeps import SweepRun, write_sweep
from petface.data.dataset import fold_files
from petface.errors import ENDS_WITH_INPUT, SettingsError, UserError, outlive_reader, run_script
from petface.settings import NonNegative, Seed, Settings, read_settings

# ---- Sweep ----
SEEDS: tuple[Seed, ...] = (42, 123, 777)
FOLDS: NonNegative = 0  # 0 = the one split; else as many, by record, each with every seed
FOLD_SEED: Seed = 0  # which record is in which fold
OUT: str = "runs/sweep"

SCRIPTS = {
    "stage1": "train_resnet_minority_aug_dynamic",
    "stage2": "stage2_resnet_multi",
    "identity": "train_identity",
}
ALL_TRAINED = "sweep_finished"  # mark of a run of stage 2 whose last specialist is trained
ROOT = Path(petface.__file__).resolve().parents[1]  # of the trainers


@dataclass(frozen=True)
class Trainer:
    """A trainer with a preset and changes laid over its constants; with a folder, a run to do."""

    preset: str  # its name
    script: str
    flags: tuple[str, ...]
    folder: Path = Path()

    def settings(self, *more: str) -> Settings:
        """Read the constants, with more flags behind the preset's."""
        return read_settings(importlib.import_module(self.script), [*self.flags, *more])

    def finished(self) -> list[SweepRun]:
        """Read what it left: one for stage 1, one per species for stage 2; empty if unfinished.

        Results that were made with other settings are refused.
        """
        found, may_change = [], importlib.import_module(self.script).MAY_CHANGE
        now = tomllib.loads(self.settings().as_toml())
        for path in sorted(self.folder.rglob("final.json")):
            before = tomllib.loads(path.with_name("settings.toml").read_text(encoding="utf-8"))
            changed = [
                f"{name}: {before.get(name)!r} -> {value!r}"
                for name, value in now.items()
                if before.get(name) != value and name not in may_change
            ]
            if changed:
                what = f"{path.parent} was trained with other settings ({'; '.join(changed)})"
                raise UserError(f"{what}; give the sweep another OUT")
            species = "" if path.parent == self.folder else path.parent.name
            found.append(SweepRun(self.preset, self.folder.name, species, files.read_json(path)))
        return found

    def is_finished(self) -> bool:
        """Return whether there is nothing left to train."""
        is_whole = self.script != SCRIPTS["stage2"] or (self.folder / ALL_TRAINED).exists()
        return bool(self.finished()) and is_whole


def trainers_of(words: Sequence[str]) -> list[Trainer]:
    """Read presets and NAME=value; the folder of a preset tells its trainer, values go to all.

    Presets that are joined by "+" are laid over each other; the last one gives the name.
    """
    changes = [flag for word in words if "=" in word for flag in flag_of_change(word)]
    found = []
    for word in (word for word in words if "=" not in word):
        paths = [Path(part) for part in word.split("+")]
        kind = paths[-1].resolve().parent.name
        if kind not in SCRIPTS:
            raise UserError(f"{paths[-1]}: lies in no folder of presets ({', '.join(SCRIPTS)})")
        presets = [flag for path in paths for flag in ("--config", str(path))]
        found.append(Trainer(paths[-1].stem, SCRIPTS[kind], (*presets, *changes)))
    return found


def flag_of_change(word: str) -> tuple[str, str]:
    """Turn NAME=value into the flag that says the same."""
    name, _, value = word.partition("=")
    return f"--{name.lower().replace('_', '-')}", value


def main() -> int:
    words = "PRESET", "presets, one over another with +, and NAME=value for all runs"
    s = read_settings(sys.modules[__name__], positional=words)
    outlive_reader()
    plan = [run for trainer in trainers_of(s.positional) for run in plan_runs(s, trainer)]
    if not plan:
        raise SettingsError("give a preset: python -m tools.sweep configs/stage1/tinypets.toml")
    if len({run.folder for run in plan}) < len(plan):
        raise SettingsError("two presets of one name, or a seed twice: their runs would mix")
    todo = [run for run in plan if not run.is_finished()]
    print(f"{len(plan)} runs, {len(plan) - len(todo)} of them finished before", flush=True)
    failed = [str(run.folder) for run in todo if train(run)]
    if runs := [found for run in plan for found in run.finished()]:
        print(write_sweep(Path(s.OUT), runs))
    if failed:
        print(f"not finished: {', '.join(failed)}; the same command resumes", file=sys.stderr)
    return int(bool(failed))


def plan_runs(s: Settings, trainer: Trainer) -> list[Trainer]:
    """List the runs of a preset: every fold with every seed."""
    folds: list[tuple[str, tuple[str, ...]]] = [("", ())]
    if s.FOLDS:
        plain = trainer.settings()
        out = Path(s.OUT) / "folds" / f"{trainer.script}_{trainer.preset}"
        paths = fold_files(
            plain.IMAGES_ROOT, plain.ANNOTATIONS_ROOT, out, num_folds=s.FOLDS, seed=s.FOLD_SEED,
            splits_file=plain.SPLITS_FILE,
        )  # fmt: skip
        folds = [(f"fold{k}_", ("--splits-file", str(p))) for k, p in enumerate(paths, start=1)]
    found = []
    for seed, (fold, split) in itertools.product(s.SEEDS, folds):
        name = f"{trainer.preset}/{fold}seed{seed}"
        own = (*split, "--seed", str(seed), "--runs-root", s.OUT, "--run-name", name)
        found.append(replace(trainer, flags=(*trainer.flags, *own), folder=Path(s.OUT) / name))
    return found


def train(run: Trainer) -> int:
    """Train a run in a process of its own; its output goes to train.log in its folder."""
    run.folder.mkdir(parents=True, exist_ok=True)
    log_path, script = run.folder / "train.log", str(ROOT / f"{run.script}.py")
    with log_path.open("ab") as log:
        code = run_to_end([script, *run.flags], log)
    if code == 0 and run.script == SCRIPTS["stage2"]:
        (run.folder / ALL_TRAINED).touch()
    last = log_path.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
    said = f"left with {code}: {last}" if code else "finished"
    print(f"{run.preset} {run.folder.name}: {said}", flush=True)
    return code


def run_to_end(command: Sequence[str], log: IO[bytes] | None = None) -> int:
    """Run a script, which ends with this process at the latest, however that ends; return its code.

    Without `log` it prints here. Its input is a pipe that nobody writes to and that closes with
    this process.
    """
    with subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT if log else None,
        env={**os.environ, ENDS_WITH_INPUT: "1"},
    ) as process:
        try:
            return process.wait()
        except BaseException as stop:
            if not isinstance(stop, KeyboardInterrupt) or stop.args:  # Ctrl-C reaches both
                process.terminate()
            process.wait()
            raise


if __name__ == "__main__":
    run_script(main)
