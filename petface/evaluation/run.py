"""From decoded slices to rows and details: networks asked in one thread, rows written in another.

Stage 2 is asked only where stage 1 is right. `ask` is the device's part and `describe` the rest, so
that the two can run at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from petface.data.dataset import Dataset
from petface.data.loading import OK, Decoded, even_slices, read_ahead
from petface.data.pack import image_source
from petface.evaluation.details import (
    DETAILS,
    HEADS,
    class_numbers,
    describe_answers,
    empty_details,
)
from petface.evaluation.rows import STATUSES, SpeciesLines
from petface.inference.loading import Stage
from petface.resumable import ResumableRecords, ResumableTable, write_behind
from petface.taxonomy import UNKNOWN

_NON_FINITE, _NO_SPECIALIST = STATUSES.index("non_finite"), STATUSES.index("no_specialist")


class Asked(NamedTuple):
    """What the networks said of a slice of n images, m of them readable."""

    part: np.ndarray  # (n,) places in the catalog
    status: np.ndarray  # (n,) uint8, of decoding
    species: np.ndarray  # (m, K) logits of stage 1
    is_right: np.ndarray  # (m,) bool
    heads: tuple[np.ndarray, ...]  # logits of the specialist where stage 1 is right


class Rows(NamedTuple):
    """A slice ready to be written."""

    lines: str
    details: np.ndarray  # (n,) of `DETAILS`
    num_answered: int  # by stage 1
    num_right: int


def plan_slices(class_index: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut the images of each class (N,), which lie together, into slices of places."""
    limits = np.flatnonzero(np.diff(class_index)) + 1
    classes = np.split(np.arange(len(class_index)), limits)
    return [part for images in classes for part in even_slices(images, batch_size)]


def answer_slices(
    dataset: Dataset,
    stage1: Stage,
    specialist_of: Callable[[str], Stage | None],
    plan: list[np.ndarray],
    *,
    num_workers: int,
    pack: str,
) -> Generator[Callable[[], Rows], None, None]:
    """Ask the networks about each slice of `plan`; yield what lays out its rows, in order.

    A slice holds images of one species; one specialist at a time is on the device.
    """
    catalog = dataset.catalog
    firsts = np.array([part[0] for part in plan], np.int64)
    owner = catalog.class_index[firsts] if len(plan) else firsts
    for number, species in enumerate(catalog.classes):
        slices = [plan[place] for place in np.flatnonzero(owner == number).tolist()]
        if not slices:
            continue
        specialist = specialist_of(species)
        rules = [stage.network.preprocessing for stage in (stage1, specialist) if stage]
        # the same pixels for both stages are made once
        by_size = {(r.size_px, r.resize): r for r in rules}
        source = image_source(catalog, pack, *by_size.values(), together=False)
        layout = _Layout(dataset, species, stage1, specialist)
        with closing(read_ahead(source, slices, num_workers)) as decoded:
            for part, item in zip(slices, decoded, strict=True):
                asked = ask(part, item, stage1, specialist, layout.species_number)
                yield _later(layout, asked)


def _later(layout: _Layout, asked: Asked) -> Callable[[], Rows]:
    return lambda: layout.describe(asked)


def ask(
    part: np.ndarray, item: Decoded, stage1: Stage, specialist: Stage | None, species_number: int
) -> Asked:
    """Ask stage 1 about a decoded slice, and the specialist where stage 1 gives `species_number`.

    Where logits are not finite there is no answer.
    """
    if not len(item.arrays[0]):
        nothing = np.empty((0, len(stage1.names["species"])), np.float32)
        return Asked(part, item.status, nothing, np.empty(0, bool), ())
    (logits,) = stage1.network.answer_pixels(item.arrays[0])
    species = logits.numpy()
    is_right = (species.argmax(axis=1) == species_number) & np.isfinite(species).all(axis=1)
    heads: tuple[np.ndarray, ...] = ()
    if specialist is not None and is_right.any():
        pixels = item.arrays[-1]
        pixels = pixels if is_right.all() else pixels[torch.from_numpy(is_right)]
        heads = tuple(head.numpy() for head in specialist.network.answer_pixels(pixels))
    return Asked(part, item.status, species, is_right, heads)


class _Layout:
    """Lays out what was said of one species' images."""

    def __init__(
        self, dataset: Dataset, species: str, stage1: Stage, specialist: Stage | None
    ) -> None:
        self.specialist = specialist
        names = dict(stage1.names) | dict(specialist.names if specialist else {})
        self.lines = SpeciesLines(dataset, species, names)
        self.temperature = stage1.network.temperatures[0] if stage1.network.temperatures else 1.0
        self.nothing = np.empty(1, DETAILS)
        for head in HEADS:
            self.nothing[head] = empty_details(1)
        (self.species_number,) = class_numbers([species], stage1.names["species"]).tolist()
        images, labels = dataset.image_labels(species)
        self.first = int(images[0])
        self.true = {}
        for head in specialist.names if specialist else ():
            if head in labels:  # each label's number in the specialist's names; the last is unknown
                vocabulary = [*dataset.annotations[species].vocabularies[head], ""]
                self.true[head] = class_numbers(vocabulary, names[head])[labels[head]]
            else:
                self.true[head] = np.full(len(images), UNKNOWN)

    def describe(self, asked: Asked) -> Rows:
        """Lay out rows and details of a slice."""
        status, details = asked.status.copy(), np.repeat(self.nothing, len(asked.part))
        readable = np.flatnonzero(asked.status == OK)  # places in the slice
        true = np.full(len(readable), self.species_number)
        found = describe_answers(asked.species, true, self.temperature)
        details["species"][readable] = found
        is_answered = found["top"][:, 0] >= 0
        status[readable[~is_answered]] = _NON_FINITE
        right = readable[asked.is_right]
        if self.specialist is None:
            status[right] = _NO_SPECIALIST
        elif len(right):
            heads = list(self.specialist.names)
            temperatures = self.specialist.network.temperatures or (1.0,) * len(heads)
            of_photo = asked.part[right] - self.first
            for head, logits, t in zip(heads, asked.heads, temperatures, strict=True):
                found = describe_answers(logits, self.true[head][of_photo], t)
                details[head][right] = found
                status[right[found["top"][:, 0] < 0]] = _NON_FINITE
        lines = self.lines.lay_out(asked.part, status, details)
        return Rows(lines, details, int(is_answered.sum()), len(right))


def write_answers(
    answers: Generator[Callable[[], Rows], None, None],
    records: ResumableRecords,
    table: ResumableTable,
    num_rows: int,
    bar: tqdm,
) -> int:
    """Write slices behind the `num_rows` that are there: first their details, then their rows.

    Gives how many rows there are then.
    """
    num_right = num_answered = 0

    def write(lay_out: Callable[[], Rows]) -> None:
        nonlocal num_rows, num_right, num_answered
        rows = lay_out()
        records.write(num_rows, rows.details)
        table.write_lines(rows.lines)
        num_rows += len(rows.details)
        num_right, num_answered = num_right + rows.num_right, num_answered + rows.num_answered
        bar.set_postfix_str(f"species {num_right / max(num_answered, 1):.4f}", refresh=False)
        bar.update(len(rows.details))

    with closing(answers):
        write_behind(answers, write)
    return num_rows
