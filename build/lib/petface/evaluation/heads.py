"""One head's answers over all species as arrays: what every metric of an evaluation counts from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from petface.data.splits import SPLITS
from petface.evaluation.details import HEADS, Evaluation, class_numbers
from petface.taxonomy import UNKNOWN

Whole = npt.NDArray[np.int64]
Truths = npt.NDArray[np.bool_]

_PER_PHOTO = (
    *("species", "split", "record", "true", "is_predicted", "is_right", "is_species_right"),
    "details",
)


@dataclass(frozen=True, eq=False)
class HeadAnswers:
    """M photos with a known label that stage 1 answered, of species whose specialist has the head.

    The classes of all species are numbered together, since (cat, black) is not (dog, black):
    `classes[k]` is (species, label), for the head "species" twice the species. Those of a group's
    network stand first, then the labels that it has no class for. A group is a species; the head
    "species" has one group of all.
    """

    head: str
    species_names: tuple[str, ...]
    classes: tuple[tuple[str, str], ...]
    first_class: Whole  # (G,) the number of each group's first class
    num_classes: Whole  # (G,) classes of each group's network
    commonest: Whole  # (G,) the class most frequent among the training labels; -1 = none known
    species: Whole  # (M,) true species, places in `species_names`
    split: Whole  # (M,) places in `SPLITS`; -1 elsewhere
    record: Whole  # (M,) number of the animal
    true: Whole  # (M,) class numbers
    is_predicted: Truths  # (M,) not where the species was wrong
    is_right: Truths  # (M,) false where nothing was predicted
    is_species_right: Truths  # (M,)
    details: np.ndarray  # (M,) of `HEAD_DETAILS`

    def __len__(self) -> int:
        return len(self.true)

    @property
    def group(self) -> Whole:
        """Return each photo's group (M,)."""
        return np.zeros_like(self.species) if self.head == "species" else self.species

    @property
    def class_group(self) -> Whole:
        """Return each class's group (K,)."""
        numbers = np.arange(len(self.classes))
        return np.searchsorted(self.first_class, numbers, side="right") - 1

    @property
    def top(self) -> Whole:
        """Return the class numbers of the best answers (M, TOP), -1 where there are fewer."""
        own = self.details["top"].astype(np.int64)
        return np.where(own < 0, UNKNOWN, own + self.first_class[self.group][:, None])

    def where(self, chosen: Truths) -> HeadAnswers:
        """Keep the photos marked in (M,) bool."""
        kept: dict[str, Any] = {name: getattr(self, name)[chosen] for name in _PER_PHOTO}
        return replace(self, **kept)

    def predicted(self) -> HeadAnswers:
        """Keep the photos that the head predicted."""
        return self if self.is_predicted.all() else self.where(self.is_predicted)

    def of_split(self, split: str) -> HeadAnswers:
        """Keep the photos of a split; "all" keeps everything."""
        return self if split == "all" else self.where(self.split == SPLITS.index(split))

    def per_species(self) -> dict[str, HeadAnswers]:
        """Cut by true species; species without a photo are left out."""
        present = np.unique(self.species).tolist()
        return {self.species_names[k]: self.where(self.species == k) for k in present}


def read_heads(evaluation: Evaluation) -> dict[str, HeadAnswers]:
    """Gather every head's answers; heads without any label or specialist have no photo."""
    rows = evaluation.rows
    split = rows["split"].cat.set_categories(SPLITS).cat.codes.to_numpy().astype(np.int64)
    record = record_numbers(rows)
    return {head: _read_head(evaluation, head, split, record) for head in HEADS}


def record_numbers(rows: pd.DataFrame) -> Whole:
    """Number the animals, (N,); equal record names of two species are two animals."""
    return rows.groupby(["species", "record"], observed=True).ngroup().to_numpy().astype(np.int64)


def _read_head(evaluation: Evaluation, head: str, split: Whole, record: Whole) -> HeadAnswers:
    rows, is_species = evaluation.rows, head == "species"
    names = tuple(map(str, rows["species"].cat.categories))
    column = rows["species" if is_species else f"{head}_true"]
    labels = [str(name) for name in column.cat.categories]
    species = rows["species"].cat.codes.to_numpy().astype(np.int64)
    label = column.cat.codes.to_numpy().astype(np.int64)
    # also of a species that stage 1 never knew: its photos are lost, not left out
    has_head = np.array([bool(evaluation.class_names(head, name)) for name in names], bool)
    is_known = np.ones(len(rows), bool) if is_species else has_head[species]
    is_known &= (column != "").to_numpy()

    group = np.zeros_like(species) if is_species else species
    num_groups = 1 if is_species else len(names)
    number = np.full((num_groups, len(labels)), UNKNOWN, np.int64)  # of each label's class
    classes: list[tuple[str, str]] = []
    first, own = np.zeros((2, num_groups), np.int64)
    commonest = np.full(num_groups, UNKNOWN, np.int64)
    for g in range(num_groups):
        of_group = is_known & (group == g)
        present = sorted(labels[code] for code in np.unique(label[of_group]).tolist())
        network = evaluation.class_names(head, "" if is_species else names[g])
        listed = [*network, *(name for name in present if name not in set(network))]
        first[g], own[g] = len(classes), len(network)
        places = class_numbers(labels, listed)
        number[g] = np.where(places >= 0, places + first[g], UNKNOWN)
        classes += [(name if is_species else names[g], name) for name in listed]
        trained_on = label[of_group & (split == SPLITS.index("train"))]
        counts = np.bincount(trained_on, minlength=len(labels))
        if counts.any():  # ties: the first by name
            best = np.flatnonzero(counts == counts.max()).tolist()
            commonest[g] = int(number[g][min(best, key=labels.__getitem__)])
    species_right, correct = (
        rows[f"{name}_correct"].to_numpy()
        for name in ("species", head)  # 1, 0 or NaN
    )
    kept = is_known & ~np.isnan(species_right)
    return HeadAnswers(
        head=head,
        species_names=names,
        classes=tuple(classes),
        first_class=first,
        num_classes=own,
        commonest=commonest,
        species=species[kept],
        split=split[kept],
        record=record[kept],
        true=number[group[kept], label[kept]],
        is_predicted=~np.isnan(correct[kept]),
        is_right=correct[kept] == 1.0,
        is_species_right=species_right[kept] == 1.0,
        details=evaluation.details[head][kept],
    )


def share(values: np.ndarray) -> float | None:
    """Average numbers or truths; None where there are none."""
    return float(values.mean(dtype=np.float64)) if len(values) else None
