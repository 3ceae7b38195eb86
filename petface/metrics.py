"""Metrics from predictions: counts first, the rest from the counts; NaN means "not defined"."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from petface import files
from petface.taxonomy import UNKNOWN


class ClassScores(NamedTuple):
    """Per-class arrays (K,) and their macro averages; see `class_scores`."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    macro_precision: float
    macro_recall: float
    macro_f1: float


class Confusion(NamedTuple):
    """One cell off the diagonal; `frac_of_true` is its share of the true class."""

    true: str
    predicted: str
    num: int
    frac_of_true: float


def confusion_matrix(
    true: np.ndarray, predicted: np.ndarray, num_classes: int
) -> npt.NDArray[np.int64]:
    """Count (true, predicted) pairs of class indices (N,): int64 (K, K), rows are true classes.

    Rows with true = -1 are left out whatever was predicted there; anywhere else both must lie in
    0..K-1 (asserted).
    """
    known = true != UNKNOWN
    pairs = np.stack([true[known], predicted[known]]).astype(np.int64)
    assert ((pairs >= 0) & (pairs < num_classes)).all(), f"a class is outside 0..{num_classes - 1}"
    counts = np.bincount(pairs[0] * num_classes + pairs[1], minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def accuracy(cm: np.ndarray) -> float:
    """Return the share of the diagonal; NaN for an empty matrix."""
    return float(np.trace(cm) / cm.sum()) if cm.any() else float("nan")


def recall_per_class(cm: np.ndarray) -> npt.NDArray[np.float64]:
    """Return each class's recall (K,); NaN where the class has no support."""
    return _ratio(np.diag(cm), cm.sum(axis=1), empty=np.nan)


def balanced_accuracy(cm: np.ndarray) -> float:
    """Average the recall over the classes that have support; NaN where none has."""
    recall = recall_per_class(cm)
    return float(recall[~np.isnan(recall)].mean()) if cm.any() else float("nan")


def precision_recall_f1(cm: np.ndarray) -> ClassScores:
    """Compute precision, recall and F1 of each class of a confusion matrix; see `class_scores`."""
    return class_scores(np.diag(cm), cm.sum(axis=1), cm.sum(axis=0))


def class_scores(hits: np.ndarray, support: np.ndarray, predicted: np.ndarray) -> ClassScores:
    """Compute precision, recall and F1 of each class, and their unweighted means.

    All (K,): rows answered rightly, rows whose true class this is, rows answered so. 0 / 0 is 0.
    The macro means run over the classes that occur as a true or a predicted label, as
    scikit-learn's `precision_recall_fscore_support(average="macro", zero_division=0)` does when it
    is given no list of labels; a class of the vocabulary that never occurs does not lower them. NaN
    where no class occurs.
    """
    precision = _ratio(hits, predicted, empty=0.0)
    recall = _ratio(hits, support, empty=0.0)
    f1 = _ratio(2 * hits, support + predicted, empty=0.0)
    occurs = (support + predicted) > 0
    columns = (precision, recall, f1)
    macro = [float(v[occurs].mean()) if occurs.any() else float("nan") for v in columns]
    return ClassScores(*columns, *macro)


def cohen_kappa(
    hits: np.ndarray,
    support: np.ndarray,
    predicted: np.ndarray,
    group: np.ndarray | None = None,
) -> float:
    """Return the agreement beyond chance, unweighted: 1 perfect, 0 as by chance, below 0 worse.

    Counts (K,) as in `class_scores`. `group` (K,) numbers what each class belongs to, where every
    row's group is known before it is answered: chance then guesses among the classes of the group
    alone, and knowing the group earns nothing. NaN without rows, and where chance is always right.
    Source: Cohen 1960, Educational and Psychological Measurement 20(1).
    """
    num = float(support.sum())
    if not num:
        return float("nan")
    of_group = np.zeros(len(support), np.int64) if group is None else group
    num_of_group = np.bincount(of_group, support)[of_group]
    by_chance = float((support * _ratio(predicted, num_of_group, empty=0.0)).sum() / num)
    if not by_chance < 1.0:
        return float("nan")
    return (float(hits.sum()) / num - by_chance) / (1.0 - by_chance)


def majority_baseline(train_counts: np.ndarray, test_counts: np.ndarray) -> float:
    """Return the accuracy on the test part of always answering the most frequent training class.

    Both (K,) counts per class; the first of equally frequent classes is taken. NaN where a part has
    no known label.
    """
    if not np.any(train_counts) or not np.any(test_counts):
        return float("nan")
    return float(test_counts[np.argmax(train_counts)] / np.sum(test_counts))


def cluster_bootstrap_interval(
    num_correct_per_record: npt.ArrayLike,
    num_per_record: npt.ArrayLike,
    classes: npt.ArrayLike | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return a 95 % interval of sum(correct) / sum(num) from resampling whole records.

    Both (R,) whole numbers, images right and images evaluated of each record. The photos of one
    animal are right or wrong together, so an interval over images would be too narrow. Of two
    models on the same records, `correct` is the difference of their hits and may be negative.
    With `classes` (R,), the true class of each record, it is the balanced share: the mean of the
    classes' shares, over the classes that a resample holds.
    Records without an evaluated image do not count; without any other, (NaN, NaN). Where every
    record has the same share (all images right, one record only) the interval has no width: the
    bootstrap sees no spread to learn from. Source: Davison & Hinkley 1997, Bootstrap Methods and
    their Application, sections 3.8 and 5.3.1.
    """
    correct, num = (np.asarray(v, np.int64) for v in (num_correct_per_record, num_per_record))
    group = np.zeros_like(num) if classes is None else np.asarray(classes, np.int64)
    records = np.stack([group, correct, num], axis=1)[num > 0]
    if not len(records):
        return float("nan"), float("nan")
    assert (np.abs(correct) <= num).all(), "more right than evaluated"
    # Records with equal (class, correct, num) are interchangeable, so drawing how often each kind
    # comes is the same resampling as drawing record by record, at a thousandth of the cost.
    kinds, frequency = np.unique(records, axis=0, return_counts=True)
    first_of_class = np.unique(kinds[:, 0], return_index=True)[1]
    generator = np.random.default_rng(seed)
    shares = np.empty(resamples)
    for place in range(resamples):
        drawn = generator.multinomial(len(records), frequency / len(records))
        hits, nums = np.add.reduceat(drawn[:, None] * kinds[:, 1:], first_of_class).T
        shares[place] = (hits / np.maximum(nums, 1)).sum() / (nums > 0).sum()
    outside = (1.0 - 0.95) / 2.0
    # "weibull" is the book's rule: the (resamples + 1) * p-th ordered value
    low, high = np.quantile(shares, (outside, 1.0 - outside), method="weibull")
    return float(low), float(high)


def wilson_interval(share: Any, num: Any, z: float) -> tuple[Any, Any]:
    """Return Wilson's interval of a share of `num`, which may be fractional, `z` deviations wide.

    Numbers, or arrays of one shape. Source: Wilson 1927, JASA 22(158).
    """
    middle = share + z * z / (2 * num)
    half = z * np.sqrt(share * (1 - share) / num + (z / (2 * num)) ** 2)
    return (middle - half) / (1 + z * z / num), (middle + half) / (1 + z * z / num)


def cluster_wilson_interval(
    num_correct_per_record: npt.ArrayLike, num_per_record: npt.ArrayLike
) -> tuple[float, float]:
    """Return Wilson's 95 % interval of sum(correct) / sum(num) for the photos that count.

    Arguments and empty records as in `cluster_bootstrap_interval`, with which it agrees from some
    hundred records on. Below, the bootstrap is too narrow: simulated with 20 records of 1 to 8
    photos and 90 % right it covers the truth in 81 to 90 of 100 cases and this one in 91 to 94;
    with 3 records in 32 to 62 and 95 to 97. The photos count by Kish's design effect: the variance
    of the share over records against that of as many coin tosses; without any spread over records,
    as sum(num)^2 / sum(num^2) records. Source: Dean & Pagano 2015, Journal of Survey Statistics and
    Methodology 3(4); Kish 1965, Survey Sampling, section 8.2.
    """
    correct, num = (np.asarray(v, np.float64) for v in (num_correct_per_record, num_per_record))
    correct, num = correct[num > 0], num[num > 0]
    if not len(num):
        return float("nan"), float("nan")
    share, total = correct.sum() / num.sum(), num.sum()
    counting = total**2 / (num**2).sum()
    spread = ((correct - share * num) ** 2).sum()
    if spread > 0.0:
        variance = len(num) / (len(num) - 1) * spread / total**2
        counting = min(total, share * (1.0 - share) / variance)
    low, high = wilson_interval(share, counting, 1.959964)
    return max(0.0, min(float(low), share)), min(1.0, max(float(high), share))


def top_confusions(cm: np.ndarray, class_names: Sequence[str], k: int) -> list[Confusion]:
    """List the `k` most frequent mistakes or fewer, most frequent first, ties in class order."""
    mistakes = cm - np.diag(np.diag(cm))
    cells = np.argsort(-mistakes, axis=None, kind="stable")[: min(k, np.count_nonzero(mistakes))]
    support = cm.sum(axis=1)
    return [
        Confusion(class_names[t], class_names[p], int(cm[t, p]), float(cm[t, p] / support[t]))
        for t, p in zip(*np.unravel_index(cells, cm.shape), strict=True)
    ]


def write_confusion(path: Path, cm: np.ndarray, class_names: Sequence[str]) -> None:
    """Write a (K, K) matrix as CSV: a row per true class, a column per answer, with the names."""
    names = list(class_names)
    rows = [[name, *counts] for name, counts in zip(names, cm.tolist(), strict=True)]
    files.write_csv(path, ["true \\ predicted", *(str(files.safe_cell(n)) for n in names)], rows)


def read_confusion(path: Path) -> tuple[list[str], np.ndarray] | None:
    """Read a table of `write_confusion`: names and (K, K) counts; None where it is none."""
    try:
        with path.open(encoding="utf-8", newline="") as handle:
            header, *rows = csv.reader(handle)
        names = [files.plain_cell(name) for name in header[1:]]
        counts = np.array([[int(cell) for cell in row[1:]] for row in rows], np.int64)
    except (OSError, ValueError):
        return None
    return (names, counts) if names and counts.shape == (len(names), len(names)) else None


def _ratio(part: np.ndarray, whole: np.ndarray, *, empty: float) -> npt.NDArray[np.float64]:
    """Divide elementwise; `empty` where the whole is 0."""
    return np.divide(part, whole, out=np.full(len(whole), empty), where=whole > 0)
