"""Which images an epoch shows: minority rules, class weights, and the weighted draw itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from petface.data.loading import Samples
from petface.data.splits import SPLITS
from petface.errors import UserError
from petface.files import write_csv

TailMode = Literal["none", "head_exclusion", "quantile", "absolute", "cumulative"]
ClassHistory = list[tuple[int, list[float], list[float]]]  # per epoch: number, recalls, weights
_DIFFICULTY_EPSILON = 0.01  # one point of recall; used where the median difficulty is 0
_DRAW_STREAM, _SHUFFLE_STREAM, _GROUP_STREAM = range(3)  # one seed gives unrelated orders


def samples_by_split(
    images: np.ndarray,
    labels: Mapping[str, np.ndarray],
    is_tail: np.ndarray,
    split: np.ndarray,
    *,
    needed: Sequence[str],
    what: str,
) -> dict[str, Samples]:
    """Cut images (N,), their labels and `is_tail` (N,) by `split` (N,), numbers into `SPLITS`.

    Raises `UserError`, which begins with `what`, where a split of `needed` has fewer than two.
    """
    samples = {}
    for number, name in enumerate(SPLITS):
        rows = split == number
        known = {head: label[rows].astype(np.int64) for head, label in labels.items()}
        samples[name] = Samples(images[rows], known, is_tail[rows])
        if name in needed and len(samples[name]) < 2:
            raise UserError(
                f"{what}: the {name} split has {len(samples[name])} images; two are needed. Add "
                "records, or make the splits anew with another SPLITS_FILE"
            )
    return samples


def class_lines(train: Samples, names: Sequence[str], weights: np.ndarray) -> list[str]:
    """Format a line per species: how many images, their weight (K,), and who is minority."""
    species = train.labels["species"]
    counts, tail = np.bincount(species, minlength=len(names)), set(species[train.is_tail])
    return [
        f"  {name:14s} {count:8,d} images  weight {weight:.2f}{'  minority' * (k in tail)}"
        for k, (name, count, weight) in enumerate(zip(names, counts, weights, strict=True))
    ]


def write_class_history(path: Path, names: Sequence[str], history: ClassHistory) -> None:
    """Write each epoch's recall and sampling weight per class: the weight that it was drawn by."""
    rows = (
        (epoch, name, "" if recall != recall else f"{recall:.4f}", f"{weight:.4f}")
        for epoch, recalls, weights in history
        for name, recall, weight in zip(names, recalls, weights, strict=True)
    )
    write_csv(path, ("epoch", "species", "recall", "sampling_weight"), rows)


def tail_classes(
    counts: npt.ArrayLike,
    class_names: Sequence[str],
    mode: TailMode,
    *,
    head_classes: Sequence[str] = ("cat", "dog"),
    head_exclusion_max: int,
    tail_quantile: float,
    tail_max: int,
    tail_share: float,
) -> npt.NDArray[np.bool_]:
    """Mark the minority classes: bool (K,) from the images per class (K,).

    - "none": no class;
    - "head_exclusion": every class with at most `head_exclusion_max` images that is not in
      `head_classes`;
    - "quantile": classes whose count is at most the quantile `tail_quantile` of the counts present;
    - "absolute": classes with at most `tail_max` images;
    - "cumulative": the smallest classes that together hold at most the share `tail_share` of all
      images (of equally small ones the first in class order).

    A class without images is never marked.
    """
    count = np.asarray(counts, dtype=np.int64)
    assert count.shape == (len(class_names),), (count.shape, len(class_names))
    present = count > 0
    if mode == "none" or not present.any():
        tail = np.zeros(len(count), dtype=bool)
    elif mode == "head_exclusion":
        tail = ~np.isin(np.asarray(class_names), list(head_classes)) & (count <= head_exclusion_max)
    elif mode == "quantile":
        tail = _up_to_quantile(count, tail_quantile)
    elif mode == "absolute":
        tail = count <= tail_max
    else:
        order = np.argsort(count, kind="stable")
        # a share, not `tail_share * sum`: 29 of 100 is exactly 0.29, but 0.29 * 100 is below 29
        held_frac = np.cumsum(count[order]) / count.sum()
        tail = np.zeros(len(count), dtype=bool)
        tail[order] = held_frac <= tail_share
    return tail & present


def tail_samples(labels: np.ndarray, is_train: np.ndarray, quantile: float) -> np.ndarray:
    """Mark the samples of minority classes: bool (N,) from labels (N,), -1 unknown.

    Minority is a class whose count among the training samples is at most that quantile of counts.
    """
    counts = np.bincount(labels[is_train & (labels >= 0)], minlength=labels.max(initial=-1) + 1)
    return np.append(_up_to_quantile(counts, quantile), False)[labels]  # -1 takes the last


def _up_to_quantile(counts: np.ndarray, quantile: float) -> npt.NDArray[np.bool_]:
    """Mark the classes with at most that quantile of the counts present; none where all are 0."""
    present = counts > 0
    return present & (counts <= np.quantile(counts[present], quantile) if present.any() else False)


def base_weights(
    counts: npt.ArrayLike, *, alpha: float, floor: float = 1.0, cap: float
) -> npt.NDArray[np.float64]:
    """Weigh an image of each class by (median / count)^alpha, clipped to [floor, cap].

    Returns float64 (K,). The median is over the classes that have images; a class without images
    gets 0.
    """
    assert 0.0 < floor <= cap, (floor, cap)
    count = np.asarray(counts, dtype=np.float64)
    weights = np.zeros(len(count))
    present = count > 0
    if present.any():
        ratio = np.median(count[present]) / count[present]
        weights[present] = np.clip(ratio**alpha, floor, cap)
    return weights


def difficulty_weights(
    base: npt.ArrayLike,
    recall: npt.ArrayLike,
    support: npt.ArrayLike,
    *,
    perf_alpha: float,
    min_median: float = 0.0,
    min_support: int = 0,
    floor: float = 1.0,
    cap: float,
) -> npt.NDArray[np.float64]:
    """Multiply base weights by (difficulty / median difficulty)^perf_alpha and clip them again.

    Returns float64 (K,). Difficulty is 1 - recall (K,), its median is over the classes that have a
    recall, and it counts as `min_median` at least. A class whose recall is NaN, or is over fewer
    than `min_support` of its `support` (K,) images, gets factor 1. Where the divisor is 0, 0.01 is
    added to both sides of the division: a class without mistakes keeps factor 1, one with mistakes
    gets more than 1, and nothing is divided by 0. A base weight of 0 stays 0.
    """
    assert 0.0 < floor <= cap and perf_alpha >= 0.0, (floor, cap, perf_alpha)
    base_weight, difficulty = np.asarray(base, np.float64), 1.0 - np.asarray(recall, np.float64)
    assert base_weight.ndim == 1 and base_weight.shape == difficulty.shape, difficulty.shape
    measured = ~np.isnan(difficulty) & (np.asarray(support) >= min_support)
    assert ((difficulty[measured] >= 0) & (difficulty[measured] <= 1)).all(), "recall beyond 0..1"
    factor = np.ones(len(difficulty))
    if measured.any():
        median = max(np.median(difficulty[measured]), min_median)
        offset = 0.0 if median > 0 else _DIFFICULTY_EPSILON
        # a denormal median may overflow to infinity; the clip below makes that the cap
        with np.errstate(over="ignore"):
            ratio = (difficulty[measured] + offset) / (median + offset)
            factor[measured] = ratio**perf_alpha
    return np.where(base_weight > 0, np.clip(base_weight * factor, floor, cap), 0.0)


def class_weights(
    counts: npt.ArrayLike, alpha: float, clip: tuple[float, float]
) -> npt.NDArray[np.float64]:
    """Weigh each class by (largest count / count)^alpha, clipped: float64 (K,) from counts (K,).

    A class without samples gets 0.
    """
    count = np.asarray(counts, np.float64)
    ratio = count.max(initial=1) / np.maximum(count, 1)
    return np.where(count > 0, np.clip(ratio**alpha, *clip), 0.0)


def head_weights(
    samples: Samples, head: str | None, alpha: float, clip: tuple[float, float]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return the `class_weights` of a head, float64 (K + 1,), and each sample's place in them.

    The last is for samples of unknown label: they come as often as in a shuffle. Without a head, or
    a known label of it, all samples are one class.
    """
    labels = np.full(len(samples), -1) if head is None else samples.labels[head]
    is_known = labels >= 0
    if not is_known.any():
        return np.ones(1), np.zeros(len(samples), np.int64)
    counts = np.bincount(labels[is_known])
    weights = class_weights(counts, alpha, clip)
    weights = np.append(weights, (weights * counts).sum() / counts.sum())
    return weights, np.where(is_known, labels, len(counts))


def shown_counts(
    labels: Mapping[str, np.ndarray], sizes: Mapping[str, int], weight: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Count each head's classes (K,) in labels (N,), -1 unknown, by how often a sample comes."""
    found = {}
    for head, size in sizes.items():
        known = labels[head] >= 0
        times = None if weight is None else weight[known]
        found[head] = np.bincount(labels[head][known], times, minlength=size)
    return found


class ClassWeightedSampler:
    """Draw epochs in which a class comes with P = n_c w_c / sum(n w) and is covered evenly.

    class_of_sample (N,) class indices in 0..K-1 (images of unknown class need a class of their
    own); weights (K,) the weight of one sample of each class; num_samples per epoch, None for N.

    The expected number of draws of each sample is that of torch's `WeightedRandomSampler` with the
    weight weights[class] per sample. It differs in three ways, on purpose:

    - coverage: inside a class samples are dealt as shuffled decks, none a second time before all of
      the class came once, where independent draws of N from N leave out 37 %;
    - class counts are the expected ones rounded up or down (systematic sampling), not multinomial;
    - size: `torch.multinomial` refuses more than 2^24 weights and takes several times as long.

    A draw depends on (seed, epoch, weights) alone, so a resumed run repeats it exactly.
    """

    def __init__(
        self,
        class_of_sample: npt.ArrayLike,
        weights: npt.ArrayLike,
        num_samples: int | None = None,
        seed: int = 0,
    ) -> None:
        classes = np.asarray(class_of_sample)
        self.weights = np.array(weights, dtype=np.float64)  # (K,) a copy, written in place
        assert classes.ndim == 1 and self.weights.ndim == 1, (classes.shape, self.weights.shape)
        num_classes = len(self.weights)
        assert ((classes >= 0) & (classes < num_classes)).all(), "a class index outside the weights"
        self.num_samples = len(classes) if num_samples is None else num_samples
        self.seed = seed
        self._counts = np.bincount(classes, minlength=num_classes)
        self._members = np.split(np.argsort(classes, kind="stable"), np.cumsum(self._counts)[:-1])

    def __len__(self) -> int:
        return self.num_samples

    def set_weights(self, weights: npt.ArrayLike) -> None:
        """Copy `weights` (K,) into `self.weights`; the next draw uses them."""
        new = np.asarray(weights, dtype=np.float64)
        assert new.shape == self.weights.shape, (new.shape, self.weights.shape)
        self.weights[:] = new

    def draw(self, epoch: int) -> npt.NDArray[np.int64]:
        """Return the positions of `epoch` in shuffled order: int64 (num_samples,)."""
        generator = _generator(self.seed, epoch, _DRAW_STREAM)
        drawn = np.empty(self.num_samples, dtype=np.int64)
        start = 0
        for members, num in zip(self._members, self._draws_per_class(generator), strict=True):
            if num == 0:
                continue
            decks, rest = divmod(int(num), len(members))
            stop = start + decks * len(members)
            drawn[start:stop] = np.tile(members, decks)
            drawn[stop : stop + rest] = generator.choice(
                members, rest, replace=False, shuffle=False
            )
            start = stop + rest
        assert start == self.num_samples, (start, self.num_samples)
        generator.shuffle(drawn)
        return drawn

    def _draws_per_class(self, generator: np.random.Generator) -> npt.NDArray[np.int64]:
        """Round the expected draws (K,) so that they sum to num_samples and keep their expectation.

        Systematic sampling: one uniform offset for all cumulated expectations (Madow 1949).
        """
        assert np.isfinite(self.weights).all() and (self.weights >= 0).all(), self.weights
        if self.num_samples == 0:
            return np.zeros(len(self.weights), dtype=np.int64)
        mass = np.cumsum(self._counts * self.weights)
        assert mass[-1] > 0, "every class that has samples has weight 0"
        # dividing by the last sum first makes the last edge, and that of weightless classes, exact
        edges = np.floor(mass / mass[-1] * self.num_samples + generator.random()).astype(np.int64)
        # an offset next to 1 may round the last edge up by one
        return np.diff(np.minimum(edges, self.num_samples), prepend=0)


def shuffled(n: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return a permutation of 0..n-1 that depends on (n, seed, epoch) alone."""
    return _generator(seed, epoch, _SHUFFLE_STREAM).permutation(n)


def animal_groups(
    animals: npt.ArrayLike, photos: int, batch_size: int, seed: int, epoch: int
) -> npt.NDArray[np.int64]:
    """Order an epoch so that each animal comes with `photos` of its photos at once ("P x K").

    animals (N,): of each photo. An animal's photos are shuffled and cut into groups; a group that
    is short is filled up with the first of them. The groups are shuffled, second groups after all
    first ones, so that nearly every batch shows an animal once.
    Returns positions (M,) int64: whole batches of `batch_size`; the rest of an epoch is left out.
    """
    animals = np.asarray(animals)
    generator = _generator(seed, epoch, _GROUP_STREAM)
    order = np.lexsort((generator.random(len(animals)), animals))
    begins = np.flatnonzero(np.diff(animals[order], prepend=-1))
    counts = np.diff(begins, append=len(order))
    per_animal = -(-counts // photos)
    group = np.repeat(np.arange(len(counts)), per_animal)  # the animal of each group
    number = np.arange(len(group)) - np.repeat(np.cumsum(per_animal) - per_animal, per_animal)
    turn = np.lexsort((generator.random(len(group)), number))
    group, number = group[turn], number[turn]
    place = (number[:, None] * photos + np.arange(photos)) % counts[group][:, None]
    positions = order[begins[group][:, None] + place].ravel()
    whole = len(positions) // batch_size * batch_size
    return positions[: whole or len(positions)]


def _generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    return np.random.default_rng((seed, epoch, stream))
