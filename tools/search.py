"""Look for good constants of a preset with Optuna; the validation split decides.

    python -m pip install ".[search]"
    python -m tools.search configs/stage1/tinypets.toml LR=1e-4..1e-2 MIX=none,mixup,both

A range `a..b` of whole numbers is drawn evenly, one of other numbers by its logarithm where `a` is
above 0; `a,b,c` are choices; `NAME=value` is the same for all trials. Each trial is a run of its
own in OUT/<preset>/trial<n> with the preset's seed; bad ones are given up early by the median of
the others at the same epoch. The same command resumes the study, which stands in OUT/study.db.
Prints the best trial and its command. It was chosen by the validation split of one seed: repeat it
with tools.sweep before you believe it.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from petface.errors import SettingsError, UserError, install_line, outlive_reader, run_script  # isort: split

import pandas as pd

from petface import files
from petface.settings import Positive, Seed, Settings, read_settings
from tools.sweep import ROOT, Trainer, flag_of_change, last_line, started, trainers_of

# ---- Search ----
TRIALS: Positive = 20  # all together, also over several starts
OUT: str = "runs/search"
SEARCH_SEED: Seed = 0
WARMUP_EPOCHS: Positive = 3  # before these no trial is given up


def main() -> None:
    words = "PRESET", "a preset, then NAME=a..b, NAME=a,b,c or NAME=value"
    s = read_settings(sys.modules[__name__], positional=words)
    outlive_reader()
    try:
        import optuna
    except ImportError as error:
        raise UserError(f"tools.search needs Optuna ({error}): {install_line('search')}") from error
    draws = {word: way_to_draw(word) for word in s.positional}
    choices = {word.partition("=")[0]: draw for word, draw in draws.items() if draw}
    trainers = trainers_of([word for word, draw in draws.items() if not draw])
    if len(trainers) != 1:
        raise SettingsError(f"give one preset, not {len(trainers)}")
    trainer, out = trainers[0], Path(s.OUT)
    if not choices:
        raise SettingsError("nothing to search: give a range or choices, such as LR=1e-4..1e-2")
    for constant in choices.keys() - trainer.settings().as_dict():  # misspelt: refused here
        trainer.settings(*flag_of_change(f"{constant}=x"))
    out.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{out / 'study.db'}",
        study_name=f"{trainer.preset} {' '.join(w for w in s.positional if '=' in w)}",
        load_if_exists=True,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=s.SEARCH_SEED),
        pruner=optuna.pruners.MedianPruner(n_warmup_steps=s.WARMUP_EPOCHS),
    )
    num_over = sum(trial.state.is_finished() for trial in study.trials)
    print(f"{num_over} trials so far, {max(0, s.TRIALS - num_over)} to go", flush=True)

    def objective(trial: Any) -> float:
        drawn = [f"{constant}={draw(trial)}" for constant, draw in choices.items()]
        name = f"{trainer.preset}/trial{trial.number}"
        flags = [flag for word in drawn for flag in flag_of_change(word)]
        flags += ["--runs-root", s.OUT, "--run-name", name]
        figure = _figure_of(trainer.settings(*flags))
        try:
            value = run_trial(trial, trainer, flags, out / name, figure)
        except optuna.TrialPruned as reason:
            print(f"trial {trial.number}: {reason}", flush=True)
            raise
        print(f"trial {trial.number}: {' '.join(drawn)}: {figure} {abs(value):.4f}", flush=True)
        return value

    if num_over < s.TRIALS:
        study.optimize(objective, n_trials=s.TRIALS - num_over)
    if not any(t.state == optuna.trial.TrialState.COMPLETE for t in study.trials):
        raise UserError(f"no trial came to its end; see {out / trainer.preset}/trial*/train.log")
    best = study.best_trial
    rows = [[t.number, t.state.name, t.value, *t.params.values()] for t in study.trials]
    files.write_csv(out / "trials.csv", ("trial", "state", "value", *best.params), rows)
    found = [word for word in s.positional if "=" not in word]
    found += [f"{key}={value}" for key, value in best.params.items()]
    print(f"best: trial {best.number}, {abs(best.value or 0.0):.4f}")
    print(f"repeat it: python -m tools.sweep {' '.join(found)} --out runs/found")


def way_to_draw(word: str) -> Callable[[Any], str] | None:
    """Return how a trial draws NAME=a..b or NAME=a,b,c as text for its flag; None for other words.

    `SettingsError` for an empty range.
    """
    name, _, text = word.partition("=")
    if ".." in text:
        low, high, ends = math.nan, math.nan, text.split("..")
        with suppress(ValueError):
            low, high = map(float, ends)
        if not -math.inf < low < high < math.inf:
            raise SettingsError(f"{word}: a range is two numbers that rise, such as 1e-4..1e-2")
        if all(end.lstrip("-").isdigit() for end in ends):
            return lambda t: str(t.suggest_int(name, int(low), int(high)))
        return lambda t: repr(t.suggest_float(name, low, high, log=low > 0))
    if "," in text:
        return lambda t: str(t.suggest_categorical(name, text.split(",")))
    return None


def run_trial(trial: Any, trainer: Trainer, flags: list[str], folder: Path, figure: str) -> float:
    """Train in a process of its own and return its best `figure`; report every epoch's to `trial`.

    Raises optuna's `TrialPruned` where the trial is given up, and for a run that failed.
    """
    from optuna import TrialPruned

    folder.mkdir(parents=True, exist_ok=True)
    log_path, told = folder / "train.log", 0
    script = str(ROOT / f"{trainer.script}.py")
    with log_path.open("ab") as log, started([script, *trainer.flags, *flags], log) as run:
        while run.poll() is None:
            time.sleep(1.0)
            for value in _values(folder, figure)[told:]:
                if math.isfinite(value):
                    trial.report(value, told)
                told += 1
            if trial.should_prune():
                raise TrialPruned(f"given up after epoch {told}")
    if run.returncode:
        raise TrialPruned(last_line(log_path))
    if not (values := list(filter(math.isfinite, _values(folder, figure)))):
        raise TrialPruned(f"{figure} has no value: no label in the validation split?")
    return max(values)


def _values(folder: Path, figure: str) -> list[float]:
    """Read a column of metrics.csv as far as it is written; a loss with its sign turned."""
    for path in [*folder.glob("metrics.csv"), *folder.glob("*/metrics.csv")]:
        table = pd.read_csv(path)
        return (-table[figure] if figure.endswith("loss") else table[figure]).tolist()
    return []


def _figure_of(s: Settings) -> str:
    """Return the column that the kept checkpoint is chosen by: of stage 2 always the loss."""
    selects = s.as_dict().get("SELECT_BY", "loss")
    return "val_loss" if selects == "loss" else f"val_{selects}_frac"


if __name__ == "__main__":
    run_script(main)
