"""Predict files and folders of photos without labels, in bulk: one row each, resumable."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from petface import files
from petface.data.catalog import listed_files
from petface.data.images import ImageError
from petface.data.loading import OK, STATUS_NAMES, Decoded, FileImages, even_slices, uploaded
from petface.data.sources.petface import (
    DEAD,
    NESTED,
    link_text,
    not_an_image,
    reasons_text,
    sorted_entries,
)
from petface.errors import MachineError, UserError
from petface.files import sha256_of_file
from petface.inference.stages import Pixels
from petface.inference.two_stage import Answers, TwoStageInference, refusal
from petface.progress import progress
from petface.resumable import ResumableTable, refuse_finished, write_behind
from petface.taxonomy import FEATURES

COLUMNS: Final = (
    *("image", "status", "message", "species_pred", "species_prob", "species_sure"),
    *(f"{feature}_{what}" for feature in FEATURES for what in ("pred", "prob", "sure")),
)
SLICE_PHOTOS: Final = 256  # so many are sorted by species, for specialists to predict in batches


def find_photos(places: Sequence[str]) -> tuple[list[str], Counter[str]]:
    """List the photos that files and folders hold, each once, and count what was left out by why.

    Files are taken as they are named. Folders are searched to the bottom, in the order of names,
    for regular files with an image's suffix; links are followed, to each folder once. `UserError`
    for a place that does not exist, and where no photo is found.
    """
    photos: dict[str, None] = {}
    left_out: Counter[str] = Counter()
    for place in places:
        if Path(place).is_dir():
            photos |= dict.fromkeys(_photos_below(place, left_out))
        elif Path(place).exists():
            photos[place] = None
        else:
            raise UserError(f"{place}: no such file or folder{files.dead_link(place)}")
    if places and not photos:
        why = f": left out are {reasons_text(left_out)}" if left_out else ""
        raise UserError(f"no photo to predict in {', '.join(places)}{why}")
    return list(photos), left_out


def _photos_below(folder: str, left_out: Counter[str]) -> Iterator[str]:
    """Yield the photos of a folder and of those below."""
    todo, dead, seen = [folder], "", set[tuple[int, int]]()
    while todo:
        folder, below = todo.pop(), []
        status = files.patiently(Path(folder).stat, folder)
        if (key := (status.st_dev, status.st_ino)) in seen:
            left_out["link to a folder that was searched already"] += 1
            continue
        seen.add(key)
        try:
            entries = sorted_entries(os.fsencode(folder))
        except MachineError:
            raise
        except UserError as error:
            left_out[f"folder cannot be read: {str(error).rpartition(': ')[2]}"] += 1
            continue
        for entry in entries:
            path = os.path.join(folder, os.fsdecode(entry.name))  # noqa: PTH118 (keeps a ./)
            why = not_an_image(entry)
            if why == NESTED:
                below.append(path)
            elif why == DEAD:
                dead = dead or f"link that leads nowhere, such as {link_text(entry.path)}"
                left_out[dead] += 1
            elif why:
                left_out[why] += 1
            else:
                yield path
        todo += reversed(below)


def predict_files(
    engine: TwoStageInference,
    photos: Sequence[str],
    out: str | Path,
    *,
    topk: int = 3,
    num_workers: int = 0,
    force: bool = False,
) -> Counter[str]:
    """Write an answer per photo, in their order, as .csv (`COLUMNS`) or .jsonl (as `infer`).

    A stopped table is continued where photos, models and arithmetic are the same; the file is byte
    for byte that of an undisturbed start. A finished one is refused unless `force`. Returns the
    number of each `status`.
    """
    out = Path(out)
    if out.suffix not in (".csv", ".jsonl"):
        raise UserError(f"{out}: predictions are written as .csv or .jsonl; name such a file")
    refuse_finished(out, force)
    is_csv, listed = out.suffix == ".csv", listed_files(Path.cwd(), photos)
    shown = "\n".join(photos).encode("utf-8", "surrogateescape")
    shown += listed.stamps(np.arange(len(photos))).tobytes()
    paths = {name: model.path for name, model in engine.load_all().items()}
    paths = {"stage1": engine.stage1.path, **paths}
    identity = {
        "models": {name: sha256_of_file(path) for name, path in paths.items()},
        "photos": hashlib.sha256(shown).hexdigest(),
        **engine.options.identity(),
        "topk": topk,
    }
    rules = {(rule.size_px, rule.resize): rule for rule in engine.rules}
    source = FileImages(listed, *rules.values())
    slices = even_slices(np.arange(len(photos)), SLICE_PHOTOS)
    table = ResumableTable(out, COLUMNS if is_csv else None, identity, force=force)
    counts: Counter[str] = Counter()
    with table, progress(total=len(photos), desc="predict") as bar:
        done = table.batches_kept([len(part) for part in slices])
        bar.update(sum(len(part) for part in slices[:done]))

        def answers() -> Iterator[Callable[[], Answers]]:
            kept: deque[Decoded] = deque()

            def pixels_of(item: Decoded) -> Pixels:
                kept.append(replace(item, arrays=()))
                return Pixels((), dict(zip(rules, item.arrays, strict=True)))

            left, device = slices[done:], engine.stage1.network.device
            with closing(uploaded(source, left, num_workers, device)) as items:
                finished = engine.answer_batches(map(pixels_of, items), topk)
                for part, finish in zip(left, finished, strict=True):
                    names = [photos[place] for place in part.tolist()]
                    yield partial(_answers, finish, kept.popleft(), names)

        def write(finish: Callable[[], Answers]) -> None:
            batch = finish()
            if is_csv:
                table.write([_cells(answer) for answer in batch])
            else:
                lines = (json.dumps(a, ensure_ascii=False, allow_nan=False) for a in batch)
                table.write_lines("".join(f"{line}\n" for line in lines))
            counts.update(answer["status"] for answer in batch)
            bar.set_postfix_str(f"ok {counts['ok'] / counts.total():.1%}", refresh=False)
            bar.update(len(batch))

        write_behind(answers(), write)
        counts = _count_statuses(table.unfinished, is_csv) if done else counts
        table.finish()
    return counts


def _answers(finish: Callable[[], Answers], item: Decoded, names: list[str]) -> Answers:
    """Return an answer for each photo of a slice, in the order of their names."""
    answers, messages = iter(finish()), iter(item.failures)
    found = [
        next(answers)
        if status == OK
        else refusal(ImageError(next(messages)[1], STATUS_NAMES[status]))
        for status in item.status.tolist()
    ]
    return [{**answer, "image": name} for answer, name in zip(found, names, strict=True)]


def _cells(answer: dict[str, Any]) -> list[object]:
    """Format an answer as a row of `COLUMNS`; what is not known stays empty."""
    species = answer["species"]
    row = [answer["image"], answer["status"], answer.get("message", ""), *_head_cells(species)]
    for feature in FEATURES:
        row += _head_cells(answer["attributes"].get(feature))
    return row


def _head_cells(entry: dict[str, Any] | None) -> list[object]:
    if entry is None:
        return ["", "", ""]
    sure = "" if entry["sure"] is None else str(int(entry["sure"]))
    return [entry["label"], f"{entry['topk'][0][1]:.6f}", sure]


def _count_statuses(table: Path, is_csv: bool) -> Counter[str]:
    """Count over the whole table, what an earlier start wrote too."""
    with table.open(encoding="utf-8", newline="") as lines:
        if is_csv:
            return Counter(row["status"] for row in csv.DictReader(lines))
        return Counter(json.loads(line)["status"] for line in lines)
