"""What a specialist of stage 2 reached: metrics per head, confusion matrices and a text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from petface import distributed, files, metrics
from petface.data.dataset import Dataset
from petface.data.loading import Samples
from petface.models import checkpoints
from petface.sureness import pool_thresholds
from petface.taxonomy import FEATURES

_TITLES = {
    "test": "test split (records that nothing was trained or chosen on)",
    "all": "all images (the training split is in here: agreement, not held-out accuracy)",
}


def write_specialist_report(
    folder: Path,
    vocabularies: Mapping[str, tuple[str, ...]],
    confusions: Mapping[str, Mapping[str, np.ndarray]],
    top_support: int,
) -> None:
    """Write `confusion_` and `classification_<part>_<head>.csv`, and the summary as text.

    `confusions[part][head]` is (K, K); the `top_support` classes with the most images are listed
    singly.
    """
    lines = []
    for part, heads in confusions.items():
        lines += [f"== {_TITLES.get(part, part)} ==", ""]
        for head, names in vocabularies.items():
            metrics.write_confusion(folder / f"confusion_{part}_{head}.csv", heads[head], names)
            metrics.write_classification_report(folder, f"{part}_{head}", heads[head], names)
            lines += [*_head_lines(head, heads[head], names, top_support), ""]
    with files.atomic_write(folder / "eval_summary_stage2.txt", "w") as handle:
        handle.write("\n".join(lines))


def watched_loss(val: Samples) -> Callable[[Mapping[str, float]], float]:
    """Return what finds the loss that stops a phase in a row of metrics.csv.

    It is that of training where the validation split has no known label, as a small species may.
    That is so for all epochs alike: a loss that is NaN is never replaced by the other one.
    """
    is_known = any((labels >= 0).any() for labels in val.labels.values())
    return lambda row: row["val_loss" if is_known else "train_loss"]


def pool_species(folder: Path) -> None:
    """Set for finished specialists of a run the threshold that their animals are too few for alone.

    The same twice changes nothing; a specialist trained later is pooled when it is finished.
    """
    every = sorted(folder.glob("*/*_best.pt")) if distributed.is_main() else []
    paths = {path.parent.name: path for path in every}
    paths = {name: p for name, p in paths.items() if (p.parent / "final.json").exists()}
    saved = {name: checkpoints.load(path) for name, path in paths.items()}
    saved = {name: best for name, best in saved.items() if best.get("pool")}
    fitted = {name: dict(best["calibration"]) for name, best in saved.items()}
    for head in sorted({head for best in saved.values() for head in best["pool"]}):
        own = {name: entries[head] for name, entries in fitted.items() if head in entries}
        rows = {name: saved[name]["pool"][head] for name in own if head in saved[name]["pool"]}
        for name, entry in pool_thresholds(own, rows).items():
            fitted[name][head] = entry
    for name, entries in fitted.items():
        if entries != saved[name]["calibration"]:
            checkpoints.save(paths[name], {**saved[name], "calibration": entries})


def table_of(folders: Iterable[Path]) -> str:
    """Format what finished specialists reached, a line for each."""
    paths = [folder / "final.json" for folder in folders]
    finals = {path.parent.name: files.read_json(path) for path in paths if path.is_file()}
    heads = [h for h in FEATURES if any(f"test_{h}_accuracy" in final for final in finals.values())]
    compared = "accuracy", "majority_baseline"
    lines = ["accuracy on the test split, % (majority baseline), and minutes of training:"]
    lines.append(f"{'species':11s}{''.join(f'{head:>12s}' for head in heads)}{'minutes':>8s}")
    for name, final in finals.items():
        row = f"{name:11s}"
        for head in heads:
            accuracy, baseline = (final.get(f"test_{head}_{name}") for name in compared)
            shown = "-" if accuracy is None else f"{100 * accuracy:.1f}"
            shown += "" if baseline is None else f" ({100 * baseline:.0f})"
            row += f"{shown:>12s}"
        lines.append(f"{row}{final['train_minutes']:8.1f}")
    return "\n".join(lines)


def share_of_work(dataset: Dataset, species: str, others: Iterable[str]) -> float:
    """Return how many times the training images of a species those of the others are."""
    classes, of_train = dataset.catalog.classes, dataset.image_split == 0
    counts = np.bincount(dataset.catalog.class_index[of_train], minlength=len(classes))
    num = dict(zip(classes, counts.tolist(), strict=True))
    return sum(num[name] for name in others) / max(num[species], 1)


def head_figures(
    head: str,
    val: np.ndarray,
    confusion: np.ndarray,
    train_labels: np.ndarray,
    test_labels: np.ndarray,
) -> dict[str, float]:
    """Return what one head reached on validation and test, beside its majority baseline.

    `val` and `confusion` (K, K) of the two; the labels of train and test (N,), -1 unknown.
    """
    counts = [
        np.bincount(labels[labels >= 0], minlength=len(confusion))
        for labels in (train_labels, test_labels)
    ]
    return {
        f"val_{head}_accuracy": metrics.accuracy(val),
        f"val_{head}_balanced_accuracy": metrics.balanced_accuracy(val),
        f"test_{head}_known": int(confusion.sum()),
        f"test_{head}_accuracy": metrics.accuracy(confusion),
        f"test_{head}_balanced_accuracy": metrics.balanced_accuracy(confusion),
        f"test_{head}_majority_baseline": metrics.majority_baseline(*counts),
    }


def _head_lines(
    head: str, confusion: np.ndarray, names: tuple[str, ...], top_support: int
) -> list[str]:
    num = int(confusion.sum())
    if num == 0:
        return [f"{head}: no image with a known label"]
    scores = metrics.precision_recall_f1(confusion)
    recall = metrics.recall_per_class(confusion)
    support = confusion.sum(axis=1)
    lines = [
        f"{head}: {len(names)} classes, {num} images with a known label",
        f"  accuracy         {metrics.accuracy(confusion):.4f}",
        f"  macro precision  {scores.macro_precision:.4f}",
        f"  macro recall     {scores.macro_recall:.4f}",
        f"  macro F1         {scores.macro_f1:.4f}",
        f"  {'support':>9s}  {'recall':>6s}  class",
    ]
    for index in np.argsort(-support, kind="stable")[:top_support]:
        if support[index]:
            lines.append(f"  {support[index]:9d}  {recall[index]:6.4f}  {names[index]}")
    return lines
