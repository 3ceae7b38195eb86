"""Train presets several times, with other seeds or folds, and compare them.

    python -m tools.sweep configs/stage1/tinypets.toml configs/stage1/realpets.toml
    python -m tools.sweep configs/stage2/realpets.toml --folds 5 --seeds 42
    python -m tools.sweep configs/stage1/tinypets.toml --out runs/lr LR=0.003 EPOCHS=10
    python -m tools.sweep configs/stage1/tinypets.toml+configs/stage1/tinypets_plain.toml

Each run has its own folder, OUT/<preset>/seed42 or OUT/<preset>/fold1_seed42. A finished run stays
as it is and an unfinished one goes on, so the same command takes a sweep up where it stopped; a
finished run of other settings is refused. Writes runs.csv (a row per run), summary.csv (mean and
standard deviation) and accuracy_time.png into OUT. The best preset is named by the validation part.
With --folds every record is in the test part of one fold; splits.csv is left alone.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from petface.analysis.sweeps import SweepRun, write_sweep
from petface.data.folds import fold_files
from petface.data.images import Preprocessing
from petface.data.pack import image_source
from petface.data.sources.petface import scan
from petface.devices import num_cores
from petface.errors import SettingsError, UserError, run_script
from petface.settings import NonNegative, Positive, Seed, Settings, read_settings

# ---- Sweep ----
SEEDS: tuple[Seed, ...] = (42, 123, 777)
FOLDS: NonNegative = 0  # 0 = the one split; else as many, by record, each with every seed
FOLD_SEED: Seed = 0  # which record is in which fold
OUT: str = "runs/sweep"
JOBS: Positive = 1  # runs at once; they share the cores, and take the GPUs in turn

SCRIPTS = {"stage1": "train_resnet_minority_aug_dynamic", "stage2": "stage2_resnet_multi"}
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Planned:
    """A run to do: its trainer, its flags, and where its results lie."""

    preset: str
    variant: str
    script: str
    settings: Settings
    flags: tuple[str, ...]
    folder: Path

    def finished(self) -> list[SweepRun]:
        """Read what it left: one for stage 1, one per species for stage 2; empty if unfinished."""
        found = []
        for path in sorted([self.folder / "final.json", *self.folder.glob("*/final.json")]):
            if path.exists():
                may_change = importlib.import_module(self.script).MAY_CHANGE
                _refuse_other(path.parent / "settings.toml", self.settings, may_change)
                final = json.loads(path.read_text(encoding="utf-8"))
                species = "" if path.parent == self.folder else path.parent.name
                found.append(SweepRun(self.preset, self.variant, species, final))
        return found

    def is_finished(self) -> bool:
        """Return whether there is nothing left to train."""
        found = self.finished()
        if not self.script.startswith("stage2"):
            return bool(found)
        return bool(found) and (self.folder / "sweep_finished").exists()


def main() -> int:
    settings = read_settings(
        sys.modules[__name__],
        positional=("PRESET", "presets, one over another with +, and NAME=value for all runs"),
    )
    presets = [word for word in settings.positional if "=" not in word]
    extra = [flag for word in settings.positional if "=" in word for flag in flag_of_change(word)]
    if not presets:
        raise SettingsError("give a preset: python -m tools.sweep configs/stage1/tinypets.toml")
    plan = [run for preset in presets for run in plan_runs(settings, preset, extra)]
    if len({run.folder for run in plan}) < len(plan):
        raise SettingsError("two presets of one name, or a seed twice: their runs would mix")
    todo = [run for run in plan if not run.is_finished()]
    print(f"{len(plan)} runs, {len(plan) - len(todo)} of them finished before", flush=True)
    if settings.JOBS > 1:
        make_packs(todo)
    with ThreadPoolExecutor(settings.JOBS) as pool:
        codes = list(pool.map(lambda pair: train(settings, *pair), enumerate(todo)))
    runs = [found for run in plan for found in run.finished()]
    if runs:
        print(write_sweep(Path(settings.OUT), runs))
    if failed := [run for run, code in zip(todo, codes, strict=True) if code]:
        names = ", ".join(str(run.folder) for run in failed)
        print(f"not finished: {names}; the same command goes on there", file=sys.stderr)
        return 1
    return 0


def plan_runs(s: Settings, preset: str, extra: list[str]) -> list[Planned]:
    """List the runs of a preset: every fold with every seed."""
    name, script, flags = trainer_of(preset)
    module, before = importlib.import_module(script), [*flags, *extra]
    plain = read_settings(module, before)
    folds: list[tuple[str, list[str]]] = [("", [])]
    if s.FOLDS:
        paths = fold_files(
            plain.IMAGES_ROOT,
            plain.ANNOTATIONS_ROOT,
            Path(s.OUT) / "folds" / f"{script}_{name}",
            num_folds=s.FOLDS,
            seed=s.FOLD_SEED,
            splits_file=plain.SPLITS_FILE,
        )
        folds = [(f"fold{k}_", ["--splits-file", str(p)]) for k, p in enumerate(paths, start=1)]
    found = []
    for seed in s.SEEDS:
        for fold, split in folds:
            variant = f"{fold}seed{seed}"
            place = ["--runs-root", s.OUT, "--run-name", f"{name}/{variant}"]
            whole = (*before, *split, "--seed", str(seed), *place)
            folder = Path(s.OUT) / name / variant
            settings = read_settings(module, list(whole))
            found.append(Planned(name, variant, script, settings, whole, folder))
    return found


def trainer_of(preset: str) -> tuple[str, str, list[str]]:
    """Return the name of a preset, its trainer by the folder it lies in, and the flags that say it.

    Presets that are joined by "+" are laid over each other; the last one gives the name.
    """
    paths = [Path(part) for part in preset.split("+")]
    kind = paths[-1].resolve().parent.name
    if kind not in SCRIPTS:
        raise UserError(f"{paths[-1]}: lies in no folder of presets ({', '.join(SCRIPTS)})")
    flags = [word for path in paths for word in ("--config", str(path))]
    return paths[-1].stem, SCRIPTS[kind], flags


def flag_of_change(word: str) -> list[str]:
    """Turn NAME=value into the flag that says the same."""
    name, _, value = word.partition("=")
    return [f"--{name.lower().replace('_', '-')}", value]


def make_packs(todo: list[Planned]) -> None:
    """Make the packs that runs ask for before they begin: two would make one at the same time."""
    made = set()
    for run in todo:
        s = run.settings
        key = (s.IMAGES_ROOT, s.PACK, s.IMAGE_SIZE_PX, s.RESIZE_RULE)
        if s.PACK and key not in made:
            made.add(key)
            rule = Preprocessing(s.IMAGE_SIZE_PX, s.RESIZE_RULE)
            image_source(scan(s.IMAGES_ROOT).catalog, s.PACK, rule)


def train(s: Settings, number: int, run: Planned) -> int:
    """Train a run in a process of its own; its output goes to train.log in its folder."""
    run.folder.mkdir(parents=True, exist_ok=True)
    threads = max(1, num_cores() // s.JOBS)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if s.JOBS > 1 and torch.cuda.device_count() > 1:
        environment["CUDA_VISIBLE_DEVICES"] = str(number % torch.cuda.device_count())
    with (run.folder / "train.log").open("ab") as log:
        code = subprocess.run(
            [sys.executable, str(ROOT / f"{run.script}.py"), *run.flags],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            check=False,
        ).returncode
    if code == 0 and run.script.startswith("stage2"):
        (run.folder / "sweep_finished").touch()
    said = "" if code == 0 else f": {last_line(run.folder / 'train.log')}"
    print(f"{run.preset} {run.variant}: {'finished' if code == 0 else f'left with {code}'}{said}")
    sys.stdout.flush()
    return code


def last_line(path: Path) -> str:
    """Return the last line of a log."""
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _refuse_other(path: Path, settings: Settings, may_change: Sequence[str]) -> None:
    """Refuse results that were made with other settings than these."""
    before: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(settings.as_dict()))
    changed = [
        f"{name}: {before.get(name)!r} -> {now[name]!r}"
        for name in now
        if before.get(name) != now[name] and name not in may_change
    ]
    if changed:
        raise UserError(
            f"{path.parent} was trained with other settings ({'; '.join(changed)}); give the sweep "
            "another OUT"
        )


if __name__ == "__main__":
    run_script(main)
