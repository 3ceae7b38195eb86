"""From logits to the rows and details of an evaluation, a whole slice of images at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from petface.data.dataset import Dataset
from petface.data.fingerprint import Data, record_hashes, seen_by
from petface.data.loading import OK
from petface.data.splits import SPLITS, TEST, TRAIN
from petface.evaluation.details import (
    HEADS,
    NOT_A_CLASS,
    class_numbers,
    describe_answers,
    empty_details,
)
from petface.files import csv_line, readable_name, safe_cell
from petface.inference.loading import Stage
from petface.taxonomy import FEATURES, UNKNOWN

STATUSES = ("ok", "unreadable", "too_large", "non_finite", "no_specialist")  # as numbered in rows
_NON_FINITE, _NO_SPECIALIST = STATUSES.index("non_finite"), STATUSES.index("no_specialist")


class Predicted(NamedTuple):
    """What the networks answered to a slice of n images, m of them readable."""

    places: np.ndarray  # (n,) in the catalog, consecutive
    status: np.ndarray  # (n,) uint8 of `STATUSES`
    species: np.ndarray  # (m, K) logits of stage 1
    is_right: np.ndarray  # (m,) bool
    heads: tuple[np.ndarray, ...]  # logits of the specialist where stage 1 is right
    failures: Sequence[tuple[int, str]] = ()  # (place in the catalog, why it is not readable)


def mark_contaminated(
    learnt: Sequence[Data | None], species: str, records: np.ndarray, split: np.ndarray
) -> np.ndarray:
    """Mark the records (R,) of a species that networks know as another part than they are here.

    "1" for a test record that one of them learnt from, was chosen by or inherits, and for a
    validation record that one learnt from; "" where a network does not say it, else "0".
    """
    hashes = record_hashes([species] * len(records), records.tolist())
    is_marked, is_known = np.zeros(len(records), bool), True
    for data in learnt:
        is_known &= data is not None and not data["unknown"]
        if data is not None:
            is_marked |= (split == TEST) & seen_by(data, hashes)
            is_marked |= (split != TRAIN) & seen_by(data, hashes, chosen=False)
    return np.where(is_marked, "1", np.where(is_known | (split == TRAIN), "0", "")).astype(object)


def _named(stage: Stage) -> dict[str, tuple[str, ...]]:
    """Return the classes of the heads that have names: numbers alone are never right or wrong."""
    return {head: c for head, c in stage.names.items() if stage.sources.get(head) != "index"}


class SpeciesRows:
    """Builds the rows of one species' images, by columns, each text made safe once."""

    def __init__(
        self,
        dataset: Dataset,
        species: str,
        stage1: Stage,
        specialist: Stage | None,
        is_alone: bool = False,  # stage 1: no specialist is missed
    ) -> None:
        self._catalog, self._stage1, self._specialist = dataset.catalog, stage1, specialist
        self._without = OK if is_alone else _NO_SPECIALIST
        names = self._names = {**stage1.names, **(_named(specialist) if specialist else {})}
        (self.species_number,) = class_numbers([species], names["species"]).tolist()
        images, labels = dataset.image_labels(species)
        self._first = int(images[0])
        records, own = np.unique(dataset.catalog.record_index[images], return_inverse=True)
        names_of, split = dataset.catalog.record_names[records], dataset.record_split[records]
        learnt = [stage.data for stage in (stage1, specialist) if stage]
        self._contaminated = mark_contaminated(learnt, species, names_of, split)[own]
        self._records = _cells(names_of.tolist())[own]
        self._split = np.array(SPLITS, object)[split[own]]
        # the last of each is "": no answer, no label
        self._answers = {head: _cells([*names.get(head, ()), ""]) for head in HEADS}
        self._true = {"species": np.full(len(images), self.species_number)}  # class numbers
        self._labels = {"species": np.repeat(_cells([species]), len(images))}  # their texts
        for head in FEATURES:
            number = labels.get(head, np.full(len(images), UNKNOWN))
            listed = dataset.annotations[species].vocabularies[head] if head in labels else ()
            self._true[head] = class_numbers([*listed, ""], names.get(head, ()))[number]
            self._labels[head] = _cells([*listed, ""])[number]
        self._unknown = np.full(len(images), "", object)
        for head, true in self._true.items():
            if head in names:
                more = np.where(true == NOT_A_CLASS, f" {head}", "").astype(object)
                self._unknown = self._unknown + more

    def build(self, finish: Callable[[], Predicted]) -> tuple[str, np.ndarray]:
        """Build the lines of a slice of n images, and their details, (n,) of `DETAILS`."""
        predicted = finish()
        status = predicted.status.copy()
        details = empty_details(len(status))
        readable = np.flatnonzero(status == OK)  # places in the slice
        right = readable[predicted.is_right]
        answered: list[tuple[Stage, np.ndarray, tuple[np.ndarray, ...]]] = [
            (self._stage1, readable, (predicted.species,))
        ]
        if self._specialist is None:
            status[right] = self._without
        elif len(right):
            answered.append((self._specialist, right, predicted.heads))
        for stage, rows, logits in answered:
            of_species = predicted.places[rows] - self._first
            temperatures = stage.network.temperatures or (1.0,) * len(stage.names)
            for head, z, t in zip(stage.names, logits, temperatures, strict=True):
                if head in self._names:
                    found = describe_answers(z, self._true[head][of_species], t)
                    details[head][rows] = found
                    status[rows[found["top"][:, 0] < 0]] = _NON_FINITE
        return self.lay_out(predicted._replace(status=status), details), details

    def lay_out(self, predicted: Predicted, details: np.ndarray) -> str:
        """Format the lines of n images, each with its LF; `details` (n,) of `DETAILS`.

        In the order of `PER_IMAGE_COLUMNS`; from the prediction places, status and failures alone.
        """
        catalog, places = self._catalog, predicted.places
        of_species = places - self._first
        columns: list[Iterable[str]] = [
            _cells(os.fsdecode(catalog.relative_path(place)) for place in places.tolist()),
            self._labels["species"][of_species],
            self._records[of_species],
            self._split[of_species],
            np.array(STATUSES, object)[predicted.status],
        ]
        for head in HEADS:
            true = self._labels[head][of_species]
            if head != "species":
                columns.append(true)
            best = details[head]["top"][:, 0]
            answer = self._answers[head][best]
            is_right = np.where(answer == true, "1", "0")
            probability = [
                f"{value:.6f}" if value == value else ""  # NaN stands where nothing was
                for value in details[head]["top_prob"][:, 0].tolist()
            ]
            columns += [answer, probability, np.where((best >= 0) & (true != ""), is_right, "")]
        columns.append(self._contaminated[of_species])
        columns.append(text.strip() for text in self._unknown[of_species])
        why = {
            place: text.removeprefix(f"{readable_name(catalog.path(place))}: ")
            for place, text in predicted.failures
        }
        columns.append(_cells(why.get(place, "") for place in places.tolist()))
        return "".join(map(csv_line, zip(*columns, strict=True)))


def _cells(texts: Iterable[str]) -> np.ndarray:
    """Make an array of Python strings, of any length each, that no spreadsheet runs as formulas."""
    return np.array([safe_cell(text) for text in texts], object)
