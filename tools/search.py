"""Look for good constants of a preset with Optuna; the validation split decides.

    python -m pip install ".[search]"
    python -m tools.search configs/stage1/tinypets.toml LR=1e-4..1e-2 MIX=none,mixup,both

A range `a..b` of whole numbers is drawn evenly, one of other numbers by its logarithm where `a` is
above 0; `a,b,c` are choices; `NAME=value` is the same for all trials. Each trial is a run of its
own in OUT/<preset>/trial<n> with the preset's seed. The same command resumes the study, which
stands in OUT/study.db. Prints the best trial and its command. It was chosen by the validation split
of one seed: repeat it with tools.sweep before you believe it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from petface.errors import SettingsError, UserError, install_line, outlive_reader, run_script  # isort: split

import pandas as pd

from petface import files
from petface.settings import Positive, Seed, read_settings
from tools.sweep import Trainer, flag_of_change, train, trainers_of

# ---- Search ----
TRIALS: Positive = 20  # all together, also over several starts
OUT: str = "runs/search"
SEARCH_SEED: Seed = 0


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
    )
    num_over = sum(trial.state.is_finished() for trial in study.trials)
    print(f"{num_over} trials so far, {max(0, s.TRIALS - num_over)} to go", flush=True)

    def objective(trial: Any) -> float:
        drawn = [f"{constant}={draw(trial)}" for constant, draw in choices.items()]
        name = f"{trainer.preset}/trial{trial.number}"
        flags = [flag for word in drawn for flag in flag_of_change(word)]
        flags += ["--runs-root", s.OUT, "--run-name", name]
        run = replace(trainer, flags=(*trainer.flags, *flags), folder=out / name)
        if train(run):
            raise optuna.TrialPruned  # it said why
        figure, value = best_of(run)
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


def best_of(run: Trainer) -> tuple[str, float]:
    """Return the column that the kept checkpoint is chosen by and its best value; a loss negative.

    NaN where no label is in the validation split: such a trial does not count.
    """
    table = pd.read_csv(min(run.folder.rglob("metrics.csv")))
    otherwise = "auc" if "val_auc_frac" in table else "loss"  # of stage 2 always the loss
    selects = run.settings().as_dict().get("SELECT_BY", otherwise)
    if selects == "loss":
        return "val_loss", -table["val_loss"].min()
    return f"val_{selects}_frac", table[f"val_{selects}_frac"].max()


if __name__ == "__main__":
    run_script(main)
