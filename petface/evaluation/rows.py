"""From logits to the rows and details of an evaluation, a whole slice of images at once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from petface.data.dataset import Dataset
from petface.data.loading import OK
from petface.data.splits import SPLITS
from petface.evaluation.details import (
    DETAILS,
    HEADS,
    class_numbers,
    describe_answers,
    empty_details,
)
from petface.files import csv_line, safe_cell
from petface.inference.loading import Stage
from petface.taxonomy import FEATURES, UNKNOWN

STATUSES = ("ok", "unreadable", "too_large", "non_finite", "no_specialist")  # as numbered in rows
_NON_FINITE, _NO_SPECIALIST = STATUSES.index("non_finite"), STATUSES.index("no_specialist")
_IS_CORRECT = np.array(["0", "1", ""], object)
_NOTHING = 2  # the place of "" there


class Predicted(NamedTuple):
    """What the networks answered to a slice of n images, m of them readable."""

    places: np.ndarray  # (n,) in the catalog, consecutive
    status: np.ndarray  # (n,) uint8 of `STATUSES`
    species: np.ndarray  # (m, K) logits of stage 1
    is_right: np.ndarray  # (m,) bool
    heads: tuple[np.ndarray, ...]  # logits of the specialist where stage 1 is right


class SpeciesRows:
    """Builds the rows of one species' images."""

    def __init__(
        self, dataset: Dataset, species: str, stage1: Stage, specialist: Stage | None
    ) -> None:
        names = dict(stage1.names) | dict(specialist.names if specialist else {})
        self._lines = SpeciesLines(dataset, species, names)
        (self.species_number,) = class_numbers([species], stage1.names["species"]).tolist()
        self._stage1, self._specialist = stage1, specialist
        images, labels = dataset.image_labels(species)
        self._first = int(images[0])
        self._true = {}
        for head in specialist.names if specialist else ():
            if head in labels:  # each label's number in the specialist's names; the last is unknown
                vocabulary = [*dataset.annotations[species].vocabularies[head], ""]
                self._true[head] = class_numbers(vocabulary, names[head])[labels[head]]
            else:
                self._true[head] = np.full(len(images), UNKNOWN)

    def build(self, predicted: Predicted) -> tuple[str, np.ndarray]:
        """Build the lines of a slice of n images, and their details, (n,) of `DETAILS`."""
        status = predicted.status.copy()
        details = np.empty(len(status), DETAILS)
        for head in HEADS:
            details[head] = empty_details(len(status))
        readable = np.flatnonzero(status == OK)  # places in the slice
        true = np.full(len(readable), self.species_number)
        (temperature,) = self._stage1.network.temperatures or (1.0,)
        found = describe_answers(predicted.species, true, temperature)
        details["species"][readable] = found
        status[readable[found["top"][:, 0] < 0]] = _NON_FINITE
        right = readable[predicted.is_right]
        if self._specialist is None:
            status[right] = _NO_SPECIALIST
        elif len(right):
            heads = list(self._specialist.names)
            temperatures = self._specialist.network.temperatures or (1.0,) * len(heads)
            of_photo = predicted.places[right] - self._first
            for head, logits, t in zip(heads, predicted.heads, temperatures, strict=True):
                found = describe_answers(logits, self._true[head][of_photo], t)
                details[head][right] = found
                status[right[found["top"][:, 0] < 0]] = _NON_FINITE
        return self._lines.lay_out(predicted.places, status, details), details


class SpeciesLines:
    """Formats the lines of one species' images in the order of `PER_IMAGE_COLUMNS`.

    `names` maps each head to its class names: "species", and the heads of the specialist. Answers
    and probabilities come from `DETAILS`, labels from the dataset. By columns, each text made safe
    once.
    """

    def __init__(self, dataset: Dataset, species: str, names: Mapping[str, Sequence[str]]) -> None:
        catalog = self._catalog = dataset.catalog
        images, self._labels = dataset.image_labels(species)
        self._first = int(images[0])
        records = catalog.record_index[images]
        self._first_record = int(records[0])
        record_names = catalog.record_names[self._first_record : int(records[-1]) + 1].tolist()
        self._records = _cells(record_names)
        self._splits = dataset.record_split
        # the last of each is "": no answer, no label
        self._answers = {head: _cells([*names.get(head, ()), ""]) for head in HEADS}
        self._truth = {"species": _cells([species])}
        for feature in FEATURES:
            known = feature in self._labels
            listed = dataset.annotations[species].vocabularies[feature] if known else ()
            self._truth[feature] = _cells([*listed, ""])

    def lay_out(self, places: np.ndarray, status: np.ndarray, details: np.ndarray) -> str:
        """Format the lines of images, `places` (n,) in the catalog, each with its LF.

        `status` (n,) numbers `STATUSES`; `details` (n,) of `DETAILS`.
        """
        records = self._catalog.record_index[places]
        paths = map(self._catalog.relative_path, places.tolist())
        columns: list[Iterable[str]] = [
            _cells(map(os.fsdecode, paths)),
            np.repeat(self._truth["species"], len(places)),
            self._records[records - self._first_record],
            np.array(SPLITS, object)[self._splits[records]],
            np.array(STATUSES, object)[status],
        ]
        for head in HEADS:
            labels = self._labels.get(head)
            number = np.full(len(places), -1) if labels is None else labels[places - self._first]
            true = self._truth[head][number]
            if head != "species":
                columns.append(true)
            best = details[head]["top"][:, 0]
            answer = self._answers[head][best]
            is_right = np.where((best >= 0) & (true != ""), answer == true, _NOTHING)
            probability = [
                f"{value:.6f}" if value == value else ""  # NaN stands where nothing was
                for value in details[head]["top_prob"][:, 0].tolist()
            ]
            columns += [answer, probability, _IS_CORRECT[is_right]]
        return "".join(map(csv_line, zip(*columns, strict=True)))


def _cells(texts: Iterable[str]) -> np.ndarray:
    """Make an array of Python strings, of any length each, that no spreadsheet runs as formulas."""
    return np.array([safe_cell(text) for text in texts], object)
