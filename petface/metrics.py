"""Metrics from predictions: counts first, the rest from the counts; NaN means "not defined"."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv, stdtrit

from petface import files
from petface.taxonomy import UNKNOWN

MIN_RECORDS = 10  # animals; with fewer an interval would pretend to know


class ClassScores(NamedTuple):
    """Per-class arrays (K,) and their macro averages; see `class_scores`."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    macro_precision: float
    macro_recall: float
    macro_f1: float


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
    hits: np.ndarray, support: np.ndarray, predicted: np.ndarray, group: np.ndarray | None = None
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
    """Return the accuracy on the test split of always answering the most frequent training class.

    Both (K,) counts per class; the first of equally frequent classes is taken. NaN where a split
    has no known label.
    """
    if not np.any(train_counts) or not np.any(test_counts):
        return float("nan")
    return float(test_counts[np.argmax(train_counts)] / np.sum(test_counts))


def cluster_interval(
    value: float,
    influence: np.ndarray,
    weight: np.ndarray,
    record: np.ndarray,
    *,
    lowest: float = 0.0,
    num_classes: int = 1,
) -> list[float] | None:
    """Return the 95 % interval of a value in lowest..1 whose photos come in animals; the one way.

    All (M,), of the photos: `influence`, what each moves the value by, together 0 (the derivative
    of the value by the photo's weight); `weight`, its share of the value, together 1; `record`, the
    animal. None below `MIN_RECORDS` animals: too few to judge.

    The photos of one animal are right or wrong together, so they count for less than their number:
    p (1 - p) / variance over animals, times (z / t)^2 for the animals' degrees of freedom; where
    nothing varies, an animal counts once. Clopper & Pearson's interval is that of as many coin
    tosses, a whole number or not. Differences (`lowest` -1) get two animals more, half a one better
    and half a one worse, because few animals that change tell little of the variance. A mean over
    `num_classes` needs as many times the animals. Simulated: results/simulated_*.csv. Sources: Korn
    & Graubard 1998, Survey Methodology 24(2); Agresti & Min 2005, Statistics in Medicine 24(5).
    """
    number = np.unique(record, return_inverse=True)[1]
    num = int(number.max(initial=-1)) + 1
    if num < MIN_RECORDS * max(num_classes, 1):
        return None
    moved, own = (np.bincount(number, column) for column in (influence, weight))
    share, span = (value - lowest) / (1.0 - lowest), 1.0 - lowest
    variance = num / (num - 1) * float((moved**2).sum()) / span**2
    if lowest < 0.0:
        variance = (variance + 1.0 / (num * span) ** 2) * (num / (num + 2)) ** 2
    effective = 1.0 / float((own**2).sum())
    if variance > 1e-18:
        effective = share * (1.0 - share) / variance
        if lowest == 0.0:
            effective = min(effective, 1.0 / float((weight**2).sum()))
    effective *= (1.959964 / float(stdtrit(num - 1, 0.975))) ** 2  # z of 95 %
    low, high = clopper_pearson(share * effective, effective, 0.025)
    return [lowest + span * min(low, share), lowest + span * max(high, share)]


def clopper_pearson(right: float, num: float, outside: float) -> tuple[float, float]:
    """Return the exact bounds of a share, `outside` on each side; the counts may be fractions.

    Source: Clopper & Pearson 1934, Biometrika 26(4).
    """
    wrong = max(num - right, 0.0)
    low = float(betaincinv(right, wrong + 1.0, outside)) if right > 1e-9 else 0.0
    high = float(betaincinv(right + 1.0, wrong, 1.0 - outside)) if wrong > 1e-9 else 1.0
    return low, high


def accuracy_interval(
    is_right: np.ndarray, record: np.ndarray, *, lowest: float = 0.0
) -> list[float] | None:
    """Bound the mean of values (M,) in `lowest`..1, such as right answers; `cluster_interval`."""
    values = np.asarray(is_right, np.float64)
    mean, weight = float(values.mean()) if len(values) else 0.0, 1.0 / max(len(values), 1)
    weights = np.full(len(values), weight)
    return cluster_interval(mean, (values - mean) * weight, weights, record, lowest=lowest)


def gain_interval(gain: np.ndarray, record: np.ndarray) -> list[float] | None:
    """Bound the mean of gains (M,) in -1..1, of photos or of whole animals; `cluster_interval`."""
    return accuracy_interval(gain, record, lowest=-1.0)


def balanced_accuracy_interval(
    true: np.ndarray, is_right: np.ndarray, record: np.ndarray
) -> list[float] | None:
    """Bound the mean recall of the classes that occur (M,); see `cluster_interval`.

    A class of one animal has no spread of its own: it is taken to miss the mean of all classes by
    its whole distance (Lumley, R's `survey`, lonely.psu = "adjust").
    """
    k = np.unique(true, return_inverse=True)[1]
    support = np.bincount(k)
    recall = np.bincount(k, is_right) / support
    value = float(recall.mean()) if len(recall) else 0.0
    weight = 1.0 / (support * len(support))[k]
    centre = np.where(_is_lonely(k, record), value, recall)[k]
    moved = (is_right - centre) * weight
    return cluster_interval(value, moved, weight, record, num_classes=len(support))


def macro_f1_interval(
    true: np.ndarray, predicted: np.ndarray, record: np.ndarray
) -> list[float] | None:
    """Bound the macro F1 of the classes that occur in either (M,), as the balanced accuracy."""
    both = np.unique(np.concatenate([true, predicted]), return_inverse=True)[1]
    t, p = both[: len(true)], both[len(true) :]
    seen = np.bincount(both)
    f1 = 2.0 * np.bincount(t[t == p], minlength=len(seen)) / seen
    value = float(f1.mean()) if len(f1) else 0.0
    centre = np.where(_is_lonely(both, np.tile(record, 2)), value, f1)
    share = 1.0 / (seen * len(seen))  # of a photo in its class; photos are in two
    moved = 2.0 * (t == p) * share[t] - centre[t] * share[t] - centre[p] * share[p]
    return cluster_interval(value, moved, share[t] + share[p], record, num_classes=len(seen))


def _is_lonely(k: np.ndarray, record: np.ndarray) -> npt.NDArray[np.bool_]:
    """Mark the classes (K,) that one animal alone shows; rows (M,)."""
    pairs = np.unique(np.stack([k, record]), axis=1)
    return np.bincount(pairs[0].astype(np.int64), minlength=k.max(initial=-1) + 1) == 1


def top_confusions(cm: np.ndarray, class_names: Sequence[str], k: int) -> list[dict[str, Any]]:
    """List the `k` most frequent mistakes or fewer, most frequent first, ties in class order.

    Each is true, predicted, num and share_of_true, its share of the true class.
    """
    mistakes = cm - np.diag(np.diag(cm))
    cells = np.argsort(-mistakes, axis=None, kind="stable")[: min(k, np.count_nonzero(mistakes))]
    pairs = zip(*np.unravel_index(cells, cm.shape), strict=True)
    return [
        {
            "true": class_names[t],
            "predicted": class_names[p],
            "num": int(cm[t, p]),
            "share_of_true": float(cm[t, p] / cm[t].sum()),
        }
        for t, p in pairs
    ]


def write_classification_report(
    folder: Path, name: str, cm: np.ndarray, class_names: Sequence[str]
) -> None:
    """Write `classification_<name>.csv` and, aligned, `.txt` into `folder`.

    Class, precision, recall, F1 and support of each class, then accuracy, macro and weighted
    average: the rows of scikit-learn's `classification_report`. A class of the vocabulary that
    never occurs is left out, the weights of the average are the supports. Accuracy stands under all
    three.
    """
    scores, support = precision_recall_f1(cm), cm.sum(axis=1)
    columns, num = np.stack(scores[:3], axis=1), int(support.sum())  # (K, 3)
    occurs = np.flatnonzero(cm.any(axis=1) | cm.any(axis=0)).tolist()
    weighted = support @ columns / num if num else np.full(3, np.nan)
    rows: list[tuple[str, Any, int]] = [
        *((class_names[k], columns[k], int(support[k])) for k in occurs),
        ("accuracy", [accuracy(cm)] * 3, num),
        ("macro average", scores[3:], num),
        ("weighted average", weighted, num),
    ]
    header = ["class", "precision", "recall", "f1", "support"]
    cells: list[list[Any]] = [[label, *(f"{v:.4f}" for v in own), n] for label, own, n in rows]
    files.write_csv(folder / f"classification_{name}.csv", header, cells)
    width = max(len(str(row[0])) for row in cells)
    lines = [f"{r[0]!s:<{width}}" + "".join(f"{c!s:>11}" for c in r[1:]) for r in [header, *cells]]
    with files.atomic_write(folder / f"classification_{name}.txt", "w") as handle:
        handle.write("\n".join(lines) + "\n")


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
