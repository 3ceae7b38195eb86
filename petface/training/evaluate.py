"""What every pass of a run shares, and the pass that measures: exact counts over all processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from petface import distributed, metrics
from petface.data.loading import Batch, ImageReader, Samples, batches, own_batches
from petface.errors import MachineError
from petface.models.network import Network, begin_copy
from petface.progress import progress
from petface.taxonomy import UNKNOWN
from petface.training.losses import known_weight
from petface.training.recipe import Loss
from petface.training.runs import FailureLog


@dataclass(frozen=True, eq=False)
class Job:
    """What every pass of a run shares. `num_classes` names the heads in output order."""

    network: Network
    num_classes: dict[str, int]
    loss: Loss
    source: ImageReader
    batch_size: int
    num_workers: int
    failures: FailureLog
    freeze_batchnorm: bool = False  # statistics stay as they came with the first weights
    clip_norm: float = 0.0  # of all gradients together; 0 = not clipped
    class_weights: dict[str, Tensor | None] = field(default_factory=dict)  # those of the loss
    rescue: list[Callable[[], None]] = field(default_factory=list)  # called where the disk fails

    def batches(
        self,
        samples: Samples,
        order: np.ndarray,
        cut: Callable[[np.ndarray, int], list[np.ndarray]],
        first_step: int = 0,
        draw: Callable[[Batch], Any] | None = None,
    ) -> Iterator[Batch]:
        """Yield this process's batches of a pass."""
        made = batches(
            self.source,
            samples,
            order,
            self.batch_size,
            self.network.device,
            num_workers=self.num_workers,
            first_step=first_step,
            cut=cut,
            draw=draw,
        )
        try:
            yield from made
        except MachineError:  # between two steps
            for save in self.rescue if distributed.world_size() == 1 else ():
                save()
            raise


class Answers(NamedTuple):
    """What one head answered to the readable images of a part, and to whom."""

    logits: np.ndarray  # (N, K) float32; rows that are not finite are among them
    labels: np.ndarray  # (N,) int64, -1 unknown
    records: np.ndarray  # (N,) int32 into the catalog's records


@dataclass(frozen=True)
class Evaluation:
    """What a pass over a part showed: one (K, K) confusion matrix per head, mean loss, counts.

    The loss is NaN where no label was known: an average of nothing, not a loss of 0. `answers` is
    empty unless it was asked for.
    """

    confusions: dict[str, np.ndarray]
    loss: float
    num_images: int
    num_unreadable: int
    num_non_finite: int  # images with a NaN or infinite logit: out of every matrix
    answers: dict[str, Answers] = field(default_factory=dict)

    def accuracy(self, head: str) -> float:
        """Return the share of known labels that were predicted rightly; NaN where none is known."""
        return metrics.accuracy(self.confusions[head])

    def balanced_accuracy(self, head: str) -> float:
        """Return the mean recall over the classes with support."""
        return metrics.balanced_accuracy(self.confusions[head])


class _Seen(NamedTuple):
    """What a batch showed."""

    positions: np.ndarray  # (B,) of the readable images in the samples
    predicted: np.ndarray  # (heads, B) class indices, -1 where a logit of any head is not finite
    loss: np.ndarray  # (heads, 2): summed over the known labels, and their weight
    logits: list[np.ndarray]  # (B, K) per head; empty if not kept
    failures: list[tuple[int, str]]  # (catalog place, message)


def evaluate(
    job: Job,
    samples: Samples,
    title: str,
    *,
    keep_answers: bool = False,
    stop: Callable[[], bool] = bool,
) -> Evaluation | None:
    """Pass once over `samples` without gradients; `keep_answers` keeps every logit.

    None where `stop`, asked after every batch, said to leave; it must answer all processes alike.
    Several processes share the batches; the figures are those of one alone, to the last bit, and
    all of them get them. The answers are in the first one alone.
    """
    job.network.model.eval()
    own: list[_Seen] = []
    with bar_of(title, len(samples)) as bar:
        for batch in job.batches(samples, np.arange(len(samples)), own_batches):
            if distributed.world_size() == 1:  # too many stop the pass at once
                job.failures.add(batch.failures)
            own.append(_answer_batch(job, batch, keep_answers))
            bar.update((len(batch.positions) + len(batch.failures)) * distributed.world_size())
            if stop():
                return None
    num_batches = -(-len(samples) // job.batch_size)
    if len(own) * distributed.world_size() < num_batches and stop():  # others have one batch more
        return None
    lists = distributed.gather_objects(own)  # of `own_batches`: the first of each, and so on
    num = len(lists)
    every = [lists[k % num][k // num] for k in range(sum(map(len, lists)))]
    summed = _sum_up(job, samples, every) if distributed.is_main() else None
    seen, failures = cast(
        tuple[Evaluation, list[tuple[int, str]]], distributed.broadcast_object(summed)
    )
    if distributed.world_size() > 1:
        job.failures.add(failures)
    is_kept = keep_answers and distributed.is_main()
    return replace(seen, answers=_answers(job, samples, every)) if is_kept else seen


def _answer_batch(job: Job, batch: Batch, keep_answers: bool) -> _Seen:
    if not len(batch.positions):
        nothing = np.empty((len(job.num_classes), 0), np.int64)
        return _Seen(batch.positions, nothing, np.zeros((len(nothing), 2)), [], batch.failures)
    outputs = job.network.logits(batch.images)
    finite = torch.stack([logits.isfinite().all(dim=1) for logits in outputs]).all(dim=0)
    predicted = torch.stack([logits.argmax(dim=1) for logits in outputs]).where(finite, -1)
    # What a loss is divided by comes beside it: a mean over a part does not depend on its batches.
    one = outputs[0].new_ones((), dtype=torch.float32)
    sums = job.loss(outputs, replace(batch, totals=dict.fromkeys(job.num_classes, one)))
    weights = [known_weight(batch.labels[h], job.class_weights.get(h)) for h in job.num_classes]
    losses = torch.stack([torch.stack(sums), torch.stack(weights)], dim=1)
    together = torch.cat([predicted.double(), losses.double()], dim=1)
    told = together.cpu().numpy()  # one copy: a GPU is waited for once
    logits = [head.numpy() for head in begin_copy(outputs)()] if keep_answers else []
    classes = told[:, :-2].astype(np.int64)
    return _Seen(batch.positions, classes, told[:, -2:], logits, batch.failures)


def _sum_up(
    job: Job, samples: Samples, every: Sequence[_Seen]
) -> tuple[Evaluation, list[tuple[int, str]]]:
    """Sum what the batches showed, in the order of one process alone."""
    positions = _positions(every)
    nothing = np.empty((len(job.num_classes), 0), np.int64)
    predicted = np.concatenate([nothing, *(seen.predicted for seen in every)], axis=1)
    confusions = {}
    for (head, size), row in zip(job.num_classes.items(), predicted, strict=True):
        true = np.where(row < 0, UNKNOWN, samples.labels[head][positions])
        confusions[head] = metrics.confusion_matrix(true, row, size)
    any_known = any(confusion.any() for confusion in confusions.values())
    sums = sum((seen.loss for seen in every), np.zeros((len(job.num_classes), 2)))
    means = np.divide(sums[:, 0], sums[:, 1], out=sums[:, 0] * 0.0, where=sums[:, 1] > 0)
    loss = float(means.sum()) if any_known else math.nan
    failures = [failure for seen in every for failure in seen.failures]
    num_non_finite = int((predicted < 0).any(axis=0).sum())
    return Evaluation(confusions, loss, len(positions), len(failures), num_non_finite), failures


def _answers(job: Job, samples: Samples, every: Sequence[_Seen]) -> dict[str, Answers]:
    positions = _positions(every)
    records = job.source.catalog.record_index[samples.images[positions]]
    answers = {}
    for number, (head, size) in enumerate(job.num_classes.items()):
        rows = [seen.logits[number] for seen in every if seen.logits]
        logits = np.concatenate([np.empty((0, size), np.float32), *rows])
        answers[head] = Answers(logits, samples.labels[head][positions].astype(np.int64), records)
    return answers


def _positions(every: Sequence[_Seen]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int64), *(seen.positions for seen in every)])


def bar_of(title: str, total: int, initial: int = 0) -> tqdm:
    """Return a progress bar over images; only the first of several processes draws it."""
    shown = distributed.shows()
    return progress(shown=shown, total=total, initial=initial, desc=title, leave=False, delay=0.5)
