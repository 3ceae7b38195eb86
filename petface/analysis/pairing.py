"""Two evaluations joined by image: the same photos, the two answers, the truth and the part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from petface.errors import UserError
from petface.evaluation.details import DETAILS_FILE, HEADS, PER_IMAGE, Evaluation, read_evaluation
from petface.files import plain_cell

PARTS: Final = ("train", "val", "test")
MIXED: Final = len(PARTS)  # of photos that stand in different parts in A and in B
NONE: Final = 0  # the number of "": no answer, no known label
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pairing:
    """M common images of evaluations A and B.

    `place_a`, `place_b` (M,) rows of the two; `part` (M,) into `PARTS`, or `MIXED`; `species` (M,)
    into `species_names`; `record` (M,) a number per animal.
    """

    a: Evaluation
    b: Evaluation
    place_a: Numbers
    place_b: Numbers
    images: np.ndarray  # (M,) names, as the table spells them
    part: Numbers
    species: Numbers
    species_names: list[str]
    record: Numbers
    notes: list[str]  # lines that the user should read

    def image_names(self, rows: Numbers) -> Iterator[str]:
        """Name common images, `<species>/<record>/<file>`."""
        return (plain_cell(name) for name in self.images[rows])

    def texts(self, rows: Numbers, column: str) -> list[str]:
        """Give a text column of A."""
        return [str(value) for value in self.a.rows[column].iloc[self.place_a[rows]]]


@dataclass(frozen=True, eq=False)
class HeadAnswers:
    """Both answers of one head, each (M,) into `names`; `NONE` = no answer, no known label.

    `relabelled` counts images whose known labels differ between A and B: their truth is `NONE`.
    """

    names: list[str]
    truth: Numbers
    a: Numbers
    b: Numbers
    relabelled: int


def read_pair(folder_a: str | Path, folder_b: str | Path) -> Pairing:
    """Read and join two evaluations; `UserError` where they cannot be compared."""
    a, b = _read(folder_a), _read(folder_b)
    place_a, place_b, images, notes = _join(a, b)
    split_a, split_b, splits = _common(a, b, "split", place_a, place_b)
    number = np.array([PARTS.index(s) if s in PARTS else MIXED for s in splits], np.int64)
    part = np.where(split_a == split_b, number[split_a], MIXED)
    if moved := int((split_a != split_b).sum()):
        notes.append(
            f"{moved:,} images stand in different parts of the split in A and in B; they count in "
            "no part: what one model trained on cannot test both"
        )
    species, _, names = _common(a, b, "species", place_a, place_b)
    records = a.rows["record"]
    record_code = records.cat.codes.to_numpy()[place_a].astype(np.int64)
    record = species * (len(records.cat.categories) + 1) + record_code
    return Pairing(a, b, place_a, place_b, images, part, species, names, record, notes)


def read_answers(pair: Pairing, head: str) -> HeadAnswers:
    """Bring truth and answers of one head to common numbers."""
    places = pair.place_a, pair.place_b
    truth = "species" if head == "species" else f"{head}_true"
    true_a, true_b, true_names = _common(pair.a, pair.b, truth, *places)
    a, b, names = _common(pair.a, pair.b, f"{head}_pred", *places)
    every = [*names, *(name for name in true_names if name not in set(names))]
    number = {name: place for place, name in enumerate(every)}
    renamed = np.array([number[name] for name in true_names], np.int64)
    differs = (true_a != true_b) & (true_a != NONE) & (true_b != NONE)
    known = np.where(true_a == true_b, renamed[true_a], NONE)
    return HeadAnswers(every, known, a, b, int(differs.sum()))


def describe_sides(pair: Pairing) -> dict[str, Any]:
    """Say what A and B are: folder, dataset, checkpoints, precision; with all that differs."""
    found: dict[str, Any] = {}
    for name, side in (("a", pair.a), ("b", pair.b)):
        models = side.models
        specialists = models.get("specialists", {})
        found[name] = {
            "folder": str(side.folder),
            "images": len(side.rows),
            "dataset": models.get("dataset"),
            "precision": models.get("precision"),
            "device": models.get("device"),
            "stage1": _checkpoint(models.get("stage1", {})),
            "specialists": {name: _checkpoint(model) for name, model in specialists.items()},
        }
    return found


def _checkpoint(model: dict[str, Any]) -> dict[str, Any]:
    return {key: model.get(key) for key in ("path", "sha256")}


def _read(folder: str | Path) -> Evaluation:
    try:
        found = read_evaluation(folder)
        assert isinstance(found.models["stage1"], dict)
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AssertionError, EOFError, OSError) as error:
        raise UserError(
            f"{folder}: the evaluation is damaged ({type(error).__name__}: {error}); run: "
            f"python inference_engine.py evaluate --out-dir {folder} --force"
        ) from error
    return found


def _join(a: Evaluation, b: Evaluation) -> tuple[Numbers, Numbers, np.ndarray, list[str]]:
    """Find the rows and names of the common images, and what the user should know."""
    same_data = a.models.get("dataset") == b.models.get("dataset")
    names_a, names_b = _read_images(a), _read_images(b)
    if len(names_a) == len(names_b) and bool((names_a == names_b).all()):
        everything = np.arange(len(names_a))
        notes = [] if same_data else [_OTHER_DATA + "; the images are the same"]
        if not len(everything):
            raise UserError(f"{a.folder} and {b.folder} hold no image; evaluate a dataset first")
        return everything, everything, names_a, notes
    index = pd.Index(names_b)
    for side, unique in ((a, pd.Index(names_a).is_unique), (b, index.is_unique)):
        if not unique:
            raise UserError(f"{side.folder / PER_IMAGE} names an image twice; evaluate again")
    found = index.get_indexer(pd.Index(names_a)).astype(np.int64)
    place_a = np.flatnonzero(found >= 0)
    if not len(place_a):
        raise UserError(
            f"{a.folder} and {b.folder} have no image in common; evaluate both models on one "
            "dataset, with --images-root, then compare"
        )
    note = (
        f"{_OTHER_DATA}; compared are the {len(place_a):,} common images "
        f"({len(names_a) - len(place_a):,} only in A, {len(names_b) - len(place_a):,} only in B)"
    )
    return place_a, found[place_a], names_a[place_a], [note]


_OTHER_DATA = "A and B were evaluated on different data (images, labels or split)"


def _read_images(side: Evaluation) -> np.ndarray:
    """Read the column of image names as it stands in the table: (N,) of str."""
    column = pd.read_csv(
        side.folder / PER_IMAGE,
        usecols=["image"],
        dtype="object",
        keep_default_na=False,
        encoding="utf-8",
    )["image"]
    return np.asarray(column, object)


def _common(
    a: Evaluation, b: Evaluation, column: str, place_a: Numbers, place_b: Numbers
) -> tuple[Numbers, Numbers, list[str]]:
    """Number a text column of both in one list of names, "" first."""
    first, second = a.rows[column].cat, b.rows[column].cat
    texts = sorted({str(t) for t in (*first.categories, *second.categories)} - {""})
    number = {name: place for place, name in enumerate(["", *texts])}
    found = []
    for side, places in ((first, place_a), (second, place_b)):
        renamed = np.array([number[str(text)] for text in side.categories] or [NONE], np.int64)
        found.append(renamed[side.codes.to_numpy()[places]])
    return found[0], found[1], ["", *texts]


def answer_probabilities(side: Evaluation, head: str, places: Numbers) -> npt.NDArray[np.float64]:
    """Give the probability of a head's answer at some rows of one evaluation."""
    return side.rows[f"{head}_prob"].to_numpy()[places].astype(np.float64)


def scores(side: Evaluation, head: str, name: str, places: Numbers) -> npt.NDArray[np.float64]:
    """Give `nll` or `brier` of a head at some rows of one evaluation, NaN where there is none."""
    assert head in HEADS and side.details.dtype.names is not None, DETAILS_FILE
    return np.asarray(side.details[head][name][places], np.float64)
