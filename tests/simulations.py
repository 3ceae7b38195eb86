"""Simulated photos with a known truth: do intervals, "sure" answers and sets hold their promise?

    python -m tests.simulations [NAME ...] [--runs N] [--seed N] [--out results]

writes results/simulated_<NAME>.csv for `coverage`, `averages`, `sure` and `sets`; without a name
all of them (20 minutes on one core). The tests run the same functions with fewer runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from petface import calibration, metrics, sureness

NUM_ANIMALS = (10, 50, 200, 2000)
ACCURACIES = (0.5, 0.9, 0.98, 0.995)
CORRELATIONS = (0.3, 0.7)  # of two photos of one animal
Draw = np.random.Generator


def chances(draw: Draw, accuracy: Any, correlation: float, num: int) -> np.ndarray:
    """Draw each animal's own chance, beta distributed: two of its photos agree by `correlation`."""
    strength = (1.0 - correlation) / correlation
    return draw.beta(accuracy * strength, (1.0 - np.asarray(accuracy)) * strength, num)


def photos(draw: Draw, accuracy: Any, correlation: float, num: int) -> tuple[np.ndarray, ...]:
    """Draw animals of 1 to 8 photos: is each right (M,), and its animal (M,)."""
    record = np.repeat(np.arange(num), draw.integers(1, 9, num))
    chance = chances(draw, accuracy, correlation, num)
    return draw.random(len(record)) < chance[record], record


def coverage(runs: int, seed: int) -> Iterator[dict[str, Any]]:
    """How often the interval of an accuracy holds the truth."""
    for num, accuracy, correlation in product(NUM_ANIMALS, ACCURACIES, CORRELATIONS):
        made = partial(photos, accuracy=accuracy, correlation=correlation, num=num)
        setting = {"animals": num, "accuracy": accuracy, "correlation": correlation}
        yield setting | held(runs, seed, accuracy, made, metrics.accuracy_interval)


def held(
    runs: int,
    seed: int,
    truth: float,
    made: Callable[[Draw], tuple[np.ndarray, ...]],
    interval: Callable[..., list[float] | None],
) -> dict[str, Any]:
    """Count how often an interval of what is made holds the truth, and where it misses."""
    draw = np.random.default_rng(seed)
    found = [limits for limits in (interval(*made(draw)) for _ in range(runs)) if limits]
    if len(found) < runs / 2:
        return dict.fromkeys(("covered", "too_low", "too_high", "median_width"), "too few animals")
    low, high = np.array(found).T
    return {
        "covered": ((low <= truth) & (truth <= high)).mean(),
        "too_low": (high < truth).mean(),
        "too_high": (low > truth).mean(),
        "median_width": np.median(high - low),
    }


def answers(
    draw: Draw, num_classes: int, accuracy: float, correlation: float, num: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw true and predicted classes (M,) of a long tail, the rare ones harder; and animals."""
    share = 1.0 / np.arange(1, num_classes + 1)
    of_animal = draw.choice(num_classes, num, p=share / share.sum())
    harder = 1.0 - (1.0 - accuracy) * np.linspace(0.7, 1.3, num_classes)
    right, record = photos(draw, harder[of_animal], correlation, num)
    true = of_animal[record]
    other = (true + draw.integers(1, num_classes, len(true))) % num_classes
    return true, np.where(right, true, other), record


def fused(draw: Draw, accuracy: float, correlation: float, num: int) -> tuple[np.ndarray, ...]:
    """Draw what fusing gains each animal: most of its photos right, minus the share of them."""
    right, record = photos(draw, accuracy, correlation, num)
    share = np.bincount(record, right) / np.bincount(record)
    return (share > 0.5) + 0.5 * (share == 0.5) - share, np.arange(num)


def paired(draw: Draw, accuracy: float, correlation: float, num: int) -> tuple[np.ndarray, ...]:
    """Draw gains (M,) of a second model, 2 points worse, that errs on much the same animals."""
    record = np.repeat(np.arange(num), draw.integers(1, 9, num))
    chance, own = chances(draw, accuracy, correlation, num), draw.random(len(record))
    apart = draw.random(num) < 0.3  # animals that the second model sees otherwise
    second = np.where(apart, chances(draw, accuracy, correlation, num), chance)
    worse = draw.random(len(record)) < 0.02 / accuracy
    return ((own < second[record]) & ~worse).astype(int) - (own < chance[record]), record


def averages(runs: int, seed: int) -> Iterator[dict[str, Any]]:
    """The same for means over classes, over animals, and for gains."""
    balanced = (
        lambda t, p, r: metrics.balanced_accuracy_interval(t, t == p, r),
        lambda t, p, _: metrics.balanced_accuracy(metrics.confusion_matrix(t, p, 8)),
    )
    f1 = (
        metrics.macro_f1_interval,
        lambda t, p, _: metrics.precision_recall_f1(metrics.confusion_matrix(t, p, 8)).macro_f1,
    )
    gain = metrics.gain_interval, lambda gain, _: float(gain.mean())
    kinds: dict[str, tuple[Callable[..., Any], ...]] = {
        "balanced_accuracy of 2": (partial(answers, num_classes=2), *balanced),
        "balanced_accuracy of 8": (partial(answers, num_classes=8), *balanced),
        "macro_f1 of 2": (partial(answers, num_classes=2), *f1),
        "macro_f1 of 8": (partial(answers, num_classes=8), *f1),
        "fusion_gain": (fused, *gain),
        "paired_gain": (paired, *gain),
    }
    for num, accuracy, correlation in product(NUM_ANIMALS, (0.5, 0.9, 0.98), CORRELATIONS):
        for name, (make, interval, figure) in kinds.items():
            made = partial(make, accuracy=accuracy, correlation=correlation)
            many = 400_000 if name.endswith("gain") else 200_000
            truth = figure(*made(np.random.default_rng(99), num=many))
            setting = {"animals": num, "accuracy": accuracy, "correlation": correlation}
            found = held(runs, seed, truth, partial(made, num=num), interval)
            yield {"figure": name, **setting, **found}


def found_sure(
    draw: Draw, runs: int, accuracy: float, correlation: float, num: int, knows: float
) -> float:
    """Return how often a threshold for 90 % is found; right answers stand out by `knows`."""
    found = 0
    for _ in range(runs):
        right, record = photos(draw, accuracy, correlation, num)
        z = draw.normal(size=len(right)) + knows * right
        confidence = 1.0 / (1.0 + np.exp(-z))
        found += sureness.threshold_for_accuracy(confidence, right, 0.9, record)[0] is not None
    return found / runs


def sure(runs: int, seed: int) -> Iterator[dict[str, Any]]:
    """How often answers are called sure wrongly (at 88 % all of them miss 90 %), and rightly."""
    for num, correlation in product((15, 20, 30, 50, 100, 300), (0.01, *CORRELATIONS)):
        wrong, blind, found = (
            found_sure(np.random.default_rng(seed), runs, accuracy, correlation, num, knows)
            for accuracy, knows in ((0.88, 0.0), (0.97, 0.0), (0.97, 1.5))
        )
        yield {
            "animals": num,
            "correlation": correlation,
            "falsely_sure_at_88": wrong,
            "found_at_97_confidence_knows_nothing": blind,
            "found_at_97": found,
        }


def covered_by_sets(
    draw: Draw, runs: int, accuracy: float, correlation: float, num: int
) -> float | None:
    """Return how often a photo of a new animal has its truth in the set; None without sets."""
    covered = []
    for _ in range(runs):
        own = []
        for animals in (num, 60):
            true, predicted, record = answers(draw, 12, accuracy, correlation, animals)
            logits = draw.normal(size=(len(true), 12))
            np.add.at(logits, (np.arange(len(true)), predicted), 2.0 * draw.random(len(true)) + 1.0)
            np.add.at(logits, (np.arange(len(true)), true), 1.0)
            own.append((calibration.softmax(logits), true, record))
        (p, true, record), (new, new_true, new_record) = own
        q = calibration.conformal_quantile(p, true, 0.1, record)
        if q is None:
            return None
        held = calibration.conformal_set(new, q)[np.arange(len(new)), new_true]
        covered.append((np.bincount(new_record, held) / np.bincount(new_record)).mean())
    return float(np.mean(covered))


def sets(runs: int, seed: int) -> Iterator[dict[str, Any]]:
    """How often the sets hold the truth, by animals."""
    for num, accuracy, correlation in product((8, 9, 15, 30, 100, 300), (0.5, 0.8), CORRELATIONS):
        covered = covered_by_sets(np.random.default_rng(seed), runs, accuracy, correlation, num)
        setting = {"animals": num, "accuracy": accuracy, "correlation": correlation}
        yield {**setting, "covered": "no sets" if covered is None else covered}


SIMULATIONS = {"coverage": coverage, "averages": averages, "sure": sure, "sets": sets}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *SIMULATIONS], metavar="NAME")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results"))
    options = parser.parse_args()
    for name in options.names or SIMULATIONS:
        rows = []
        for row in SIMULATIONS[name](options.runs, options.seed):
            rows.append(
                {k: round(float(v), 4) if isinstance(v, float) else v for k, v in row.items()}
            )
            print(name, *rows[-1].values(), flush=True)
        table = pd.DataFrame(rows).assign(runs=options.runs, seed=options.seed)
        table.to_csv(options.out / f"simulated_{name}.csv", index=False, lineterminator="\n")


if __name__ == "__main__":
    main()
