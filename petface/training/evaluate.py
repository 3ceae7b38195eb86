"""What every pass of a run shares, and the pass that measures: exact counts over all processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from petface import distributed, metrics
from petface.data.loading import Batch, ImageReader, Samples, batches, own_batches
from petface.models.network import Network
from petface.training.recipe import Loss
from petface.training.runs import FailureLog

T = TypeVar("T")


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

    def batches(
        self,
        samples: Samples,
        order: np.ndarray,
        cut: Callable[[np.ndarray, int], list[np.ndarray]],
        first_step: int = 0,
    ) -> Iterator[Batch]:
        """Yield this process's batches of a pass."""
        return batches(
            self.source,
            samples,
            order,
            self.batch_size,
            self.network.device,
            num_workers=self.num_workers,
            first_step=first_step,
            cut=cut,
        )


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
    own = _answer_own(job, samples, title, keep_answers, stop)
    if own is None:
        return None
    every = distributed.gather_objects(own)
    sums = _sum_up(every, job.num_classes) if every else None
    seen, failures = cast(
        tuple[Evaluation, list[tuple[int, str]]], distributed.broadcast_object(sums)
    )
    if distributed.world_size() > 1:  # alone each batch's were noted as it came
        job.failures.add(failures)
    return replace(seen, answers=_answers(every, samples, job)) if keep_answers and every else seen


@dataclass
class _Own:
    """What one process saw: sums, and an entry per batch in its order."""

    confusions: dict[str, np.ndarray]
    num_non_finite: int = 0
    losses: list[float] = field(default_factory=list)  # summed over the images of a batch
    positions: list[np.ndarray] = field(default_factory=list)  # of readable images in the samples
    logits: list[list[np.ndarray]] = field(default_factory=list)  # per head; empty if not kept
    failures: list[list[tuple[int, str]]] = field(default_factory=list)


def _answer_own(
    job: Job, samples: Samples, title: str, keep_answers: bool, stop: Callable[[], bool]
) -> _Own | None:
    own = _Own({head: np.zeros((size, size), np.int64) for head, size in job.num_classes.items()})
    job.network.model.eval()
    num_all, num_asked = -(-len(samples) // job.batch_size), 0  # batches
    with bar_of(title, len(samples)) as bar:
        for batch in job.batches(samples, np.arange(len(samples)), own_batches):
            if distributed.world_size() == 1:
                job.failures.add(batch.failures)
            _answer_batch(job, batch, own, keep_answers)
            bar.update((len(batch.positions) + len(batch.failures)) * distributed.world_size())
            num_asked += 1
            if stop():
                return None
    if num_asked * distributed.world_size() < num_all and stop():  # others have one batch more
        return None
    return own


def _answer_batch(job: Job, batch: Batch, own: _Own, keep_answers: bool) -> None:
    """Add what a batch shows."""
    own.failures.append(batch.failures)
    own.positions.append(batch.positions)
    own.losses.append(0.0)
    own.logits.append([])
    if not len(batch.positions):
        return
    outputs = job.network.logits(batch.images)
    finite = torch.stack([torch.isfinite(o).all(dim=1) for o in outputs]).all(dim=0)
    own.num_non_finite += int((~finite).sum())
    for (head, size), logits in zip(job.num_classes.items(), outputs, strict=True):
        true = torch.where(finite, batch.labels[head], -1).cpu().numpy()
        predicted = logits.argmax(dim=1).cpu().numpy()
        own.confusions[head] += metrics.confusion_matrix(true, predicted, size)
    own.losses[-1] = float(job.loss(outputs, batch)) * len(batch.positions)
    if keep_answers:
        own.logits[-1] = [logits.cpu().numpy() for logits in outputs]


def _sum_up(
    every: Sequence[_Own], heads: Iterable[str]
) -> tuple[Evaluation, list[tuple[int, str]]]:
    """Sum what the processes saw, batch by batch in the order of one alone."""
    confusions = {head: np.sum([own.confusions[head] for own in every], axis=0) for head in heads}
    failures = [pair for pairs in _in_turn([own.failures for own in every]) for pair in pairs]
    num_seen = sum(len(positions) for own in every for positions in own.positions)
    loss = sum(_in_turn([own.losses for own in every]))
    any_known = any(confusion.any() for confusion in confusions.values())
    mean_loss = loss / num_seen if any_known else math.nan
    num_non_finite = sum(own.num_non_finite for own in every)
    return Evaluation(confusions, mean_loss, num_seen, len(failures), num_non_finite), failures


def _answers(every: Sequence[_Own], samples: Samples, job: Job) -> dict[str, Answers]:
    logits = [batch for batch in _in_turn([own.logits for own in every]) if batch]
    positions = np.concatenate([np.empty(0, np.int64), *_in_turn([own.positions for own in every])])
    records = job.source.catalog.record_index[samples.images[positions]]
    answers = {}
    for number, (head, size) in enumerate(job.num_classes.items()):
        rows = [np.empty((0, size), np.float32), *(batch[number] for batch in logits)]
        labels = samples.labels[head][positions].astype(np.int64)
        answers[head] = Answers(np.concatenate(rows), labels, records)
    return answers


def _in_turn(lists: Sequence[Sequence[T]]) -> list[T]:
    """Undo `own_batches`: the first of each list, then the second of each, and so on."""
    num = len(lists)
    return [lists[k % num][k // num] for k in range(sum(map(len, lists)))]


def bar_of(title: str, total: int, initial: int = 0) -> tqdm:
    """Return a progress bar over images; only the first of several processes draws it."""
    return tqdm(
        total=total,
        initial=initial,
        desc=title,
        unit="img",
        leave=False,
        mininterval=0.5,
        delay=0.5,
        disable=not distributed.shows(),
    )
