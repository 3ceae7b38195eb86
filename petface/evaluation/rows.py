"""Lines of the per-image table, laid out by columns: a whole slice of images at once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat

import numpy as np

from petface.data.dataset import Dataset
from petface.data.splits import SPLITS
from petface.files import csv_line, safe_cell
from petface.taxonomy import FEATURES

STATUSES = ("ok", "unreadable", "too_large", "non_finite", "no_specialist")  # as numbered in rows
_PLAIN = re.compile(r"[0-9A-Za-z][0-9A-Za-z ._/()-]*")  # needs no quotes and is no formula
_PLAIN_PATHS = re.compile(rb"[0-9A-Za-z ._/()-]*")
_POWERS = 10 ** np.arange(6, -1, -1)
_IS_CORRECT = np.array(["0", "1", ""], object)
_NOT_ASKED = 2  # its place there


class SpeciesLines:
    """Lays out the lines of one species' images in the order of `PER_IMAGE_COLUMNS`.

    `names` maps each head to its class names: "species", and the heads of the specialist. Answers
    and probabilities come from `DETAILS`, labels from the dataset.
    """

    def __init__(self, dataset: Dataset, species: str, names: Mapping[str, Sequence[str]]) -> None:
        catalog = self.catalog = dataset.catalog
        images, labels = dataset.image_labels(species)
        self._first = int(images[0])
        records = catalog.record_index[images]
        self._first_record = int(records[0])
        record_names = catalog.record_names[self._first_record : int(records[-1]) + 1].tolist()
        begin = f"{text_cell(species)},"
        self._records = _texts(begin + text_cell(name) for name in record_names)
        self._splits = dataset.record_split
        self._split_status = _texts(f"{split},{status}" for split in SPLITS for status in STATUSES)
        self._answers = {head: _texts([*map(text_cell, n), ""]) for head, n in names.items()}
        self._is_species = np.array([int(name == species) for name in names["species"]] + [2])
        self._labels = labels
        self._truth = {  # the last is "": unknown
            feature: _texts(
                [*map(text_cell, dataset.annotations[species].vocabularies[feature]), ""]
            )
            for feature in labels
        }

    def lay_out(self, part: np.ndarray, status: np.ndarray, details: np.ndarray) -> str:
        """Give the lines of consecutive images, places (n,) in the catalog, each with its LF.

        `status` (n,) numbers `STATUSES`; `details` (n,) of `DETAILS`.
        """
        records = self.catalog.record_index[part]
        columns: list[Iterable[str]] = [
            path_cells(self.catalog.path_bytes, self.catalog.path_offsets, part),
            self._records[records - self._first_record].tolist(),
            self._split_status[self._splits[records] * len(STATUSES) + status].tolist(),
        ]
        answer = details["species"]["top"][:, 0]
        columns += self._answer_columns("species", details, answer, self._is_species[answer])
        for feature in FEATURES:
            if feature not in self._truth and feature not in self._answers:
                columns.append(repeat(",,,"))
                continue
            true = self._true(feature, part)
            columns.append(true.tolist())
            if feature not in self._answers:
                columns.append(repeat(",,"))
                continue
            answer = details[feature]["top"][:, 0]
            is_right = true == self._answers[feature][answer]
            is_asked = (answer >= 0) & (true != "")
            right = np.where(is_asked, is_right, _NOT_ASKED)
            columns += self._answer_columns(feature, details, answer, right)
        return "\n".join([*map(",".join, zip(*columns, strict=False)), ""])

    def _true(self, feature: str, part: np.ndarray) -> np.ndarray:
        if feature not in self._truth:
            return np.full(len(part), "", object)
        return self._truth[feature][self._labels[feature][part - self._first]]

    def _answer_columns(
        self, head: str, details: np.ndarray, answer: np.ndarray, right: np.ndarray
    ) -> list[list[str]]:
        """Give prediction, probability and "1", "0" or "" of a head."""
        probability = probability_cells(details[head]["top_prob"][:, 0], answer >= 0)
        return [self._answers[head][answer].tolist(), probability, _IS_CORRECT[right].tolist()]


def text_cell(text: str) -> str:
    """Give a text as `files.csv_line` writes it into a row, after `files.safe_cell`."""
    if not text or _PLAIN.fullmatch(text):
        return text
    return csv_line([safe_cell(text)])[:-1]


def path_cells(path_bytes: np.ndarray, offsets: np.ndarray, part: np.ndarray) -> list[str]:
    """Give the cells of consecutive paths of a catalog, at places (n,)."""
    first, end = int(part[0]), int(part[-1]) + 1
    assert end - first == len(part), "a slice is consecutive"
    limits = offsets[first : end + 1]
    whole = path_bytes[limits[0] : limits[-1]].tobytes()
    limits = (limits - limits[0]).tolist()
    spans = zip(limits, limits[1:], strict=False)
    if _PLAIN_PATHS.fullmatch(whole):
        text = whole.decode()
        paths = [text[start:stop] for start, stop in spans]
        if all(path[0].isalnum() for path in paths):
            return paths
        return [text_cell(path) for path in paths]
    return [text_cell(os.fsdecode(whole[start:stop])) for start, stop in spans]


def probability_cells(p: np.ndarray, is_asked: np.ndarray) -> list[str]:
    """Format (n,) float32 in 0..1 as f"{p:.6f}", "" where not asked; exact, ties to even.

    A float32 times 10^6 is exact in float64, so that rounding it is rounding the decimal fraction.
    """
    millionths = np.rint(np.where(is_asked, p, 0).astype(np.float64) * 1e6).astype(np.int64)
    characters = np.empty((len(p), 8), np.uint32)
    digits = millionths[:, None] // _POWERS % 10 + ord("0")
    characters[:, 0], characters[:, 1], characters[:, 2:] = digits[:, 0], ord("."), digits[:, 1:]
    cells = characters.view("<U8")[:, 0]
    cells[~is_asked] = ""
    return cells.tolist()


def _texts(cells: Iterable[str]) -> np.ndarray:
    """Make an array of Python strings, of any length each."""
    listed = list(cells)
    found = np.empty(len(listed), object)
    found[:] = listed
    return found
