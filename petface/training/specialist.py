"""What a specialist of stage 2 has of its own: the loss over several heads, and its summary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from petface import files, metrics
from petface.data.loading import Batch
from petface.models.network import Outputs
from petface.training import losses
from petface.training.recipe import Loss

_TITLES = {
    "test": "test part (records that nothing was trained or chosen on)",
    "all": "all images (the training part is in here: agreement, not held-out accuracy)",
}


def specialist_loss(
    sizes: Mapping[str, int],
    labels: Mapping[str, np.ndarray],
    device: torch.device,
    *,
    gamma_with_color: float,
    gamma_without_color: float,
    weighted: bool = True,
    label_smoothing: float = 0.0,
    logit_adjustment: float = 0.0,
) -> tuple[dict[str, Tensor | None], Loss]:
    """Build the loss of a specialist, and the weights of each head's classes, None = all equal.

    `sizes` names the heads in output order, `labels` are those of the train split, each (N,). The
    heads' losses are summed: cross-entropy for gender, focal for the others; unknown is masked.
    The focal gamma depends on whether one of the heads is a colour. `weighted`: classes weigh by
    their inverse frequency.
    """
    counts = {h: np.bincount(labels[h][labels[h] >= 0], minlength=k) for h, k in sizes.items()}
    weights: dict[str, Tensor | None] = dict.fromkeys(sizes)
    if weighted:
        weights = {h: losses.inverse_frequency_weights(n).to(device) for h, n in counts.items()}
    adjustments = {}
    if logit_adjustment:
        adjustments = {
            head: losses.logit_adjustment(shown, logit_adjustment).to(device)
            for head, shown in counts.items()
        }
    has_color = any(head.startswith("color") for head in sizes)
    gamma = gamma_with_color if has_color else gamma_without_color

    def loss(outputs: Outputs, batch: Batch) -> Tensor:
        total = outputs[0].new_zeros((), dtype=torch.float32)
        for (head, of_classes), logits in zip(weights.items(), outputs, strict=True):
            total = total + losses.masked_focal_loss(
                logits + adjustments[head] if adjustments else logits,
                batch.labels[head],
                0.0 if head == "gender" else gamma,
                of_classes,
                label_smoothing,
                batch.totals.get(head),
            )
        return total

    return weights, loss


def write_specialist_report(
    folder: Path,
    vocabularies: Mapping[str, tuple[str, ...]],
    confusions: Mapping[str, Mapping[str, np.ndarray]],
    top_support: int,
) -> None:
    """Write `confusion_<part>_<head>.csv` for each part and head, and the summary as text.

    `confusions[part][head]` is (K, K); the `top_support` classes with the most images are listed
    singly.
    """
    lines = []
    for part, heads in confusions.items():
        lines += [f"== {_TITLES.get(part, part)} ==", ""]
        for head, names in vocabularies.items():
            metrics.write_confusion(folder / f"confusion_{part}_{head}.csv", heads[head], names)
            lines += [*_head_lines(head, heads[head], names, top_support), ""]
    with files.atomic_write(folder / "eval_summary_stage2.txt", "w") as handle:
        handle.write("\n".join(lines))


def head_figures(
    head: str, confusion: np.ndarray, train_labels: np.ndarray, test_labels: np.ndarray
) -> dict[str, float]:
    """Return what one head reached on the test split, beside its majority baseline.

    `confusion` (K, K) of the test part; the labels of both parts (N,), -1 unknown.
    """
    counts = [
        np.bincount(labels[labels >= 0], minlength=len(confusion))
        for labels in (train_labels, test_labels)
    ]
    return {
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
