"""Turn what a source holds into a PetFace tree with the source's own split."""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from petface import files
from petface.data.catalog import string_array
from petface.data.sources.entries import Found
from petface.data.sources.layout import (
    MARKER,
    Photo,
    check_out,
    place_photos,
    unfinished,
    write_annotations,
)
from petface.data.sources.petface import scan
from petface.data.splits import SPLITS, make_splits, side_file, write_splits
from petface.errors import UserError

CUT_FRAC = 0.1  # of the train part, for each part that the source lacks
_NAMES_SHOWN = 40


def settle_parts(found: Found, *, checkpoint_classes: Sequence[str] | None, val_as: str) -> None:
    """Decide which entries stay and what their part is; what is left out is listed in `found`.

    A val part without a test part becomes the test part if `val_as` is "test". Given the classes of
    a stage 1 checkpoint, classes it does not know leave the test part, and everything where there
    is no train part; entries without a part are for testing then. Otherwise classes without a
    training photo leave val and test. Raises `UserError` where nothing is left.
    """
    assert val_as in ("val", "test"), val_as
    if "val" in found.parts and "test" not in found.parts and val_as == "test":
        renamed = {"val": "test"}
        found.entries = [replace(e, part=renamed.get(e.part, e.part)) for e in found.entries]
        found.notes.append("no test part: the val part is kept for the end, as the test part")
    if checkpoint_classes is not None:
        if not found.parts:
            found.entries = [replace(entry, part="test") for entry in found.entries]
            found.notes.append("no parts, and a checkpoint: every photo goes into the test part")
        _match_spelling(found, checkpoint_classes)
    trained = {entry.species for entry in found.entries if entry.part == "train"}
    known = trained if checkpoint_classes is None else set(checkpoint_classes)
    if not known:  # neither a train part nor a checkpoint: any class may be tested
        return
    by_train, by_checkpoint = "in the train part", "known to the checkpoint"
    _leave_out(found, "test", known, by_train if checkpoint_classes is None else by_checkpoint)
    _leave_out(found, "val", trained or known, by_train if trained else by_checkpoint)
    if checkpoint_classes is not None and (absent := sorted(known - set(found.classes))):
        num = len(absent)
        found.notes.append(f"{num} classes of the checkpoint have no photo: {_some(absent)}")
    if not found.entries:
        raise UserError(
            f"no photo is left of {found.source}: the known classes are {_some(sorted(known))}"
        )


def _leave_out(found: Found, part: str, allowed: set[str], what: str) -> None:
    """Take the photos of other classes out of a part, and list them."""
    kept, gone = [], Counter[str]()
    for entry in found.entries:
        if entry.part != part or entry.species in allowed:
            kept.append(entry)
            continue
        path = os.path.relpath(entry.path, found.source)
        found.leave_out(path, f"of the {part} part, and its class is not {what}")
        gone[entry.species] += 1
    found.entries = kept
    if gone:
        names = _some(_with_hint(gone, allowed))
        found.notes.append(f"{len(gone)} classes of the {part} part are not {what}: {names}")


def cut_parts(photos: list[Photo], seed: int) -> tuple[list[Photo], list[str]]:
    """Cut the val and the test part that the source lacks from its train part, by record.

    Stratified by class, and by breed within it. Gives the photos and what was done, in words;
    photos without a train part stay as they are.
    """
    parts = {photo.entry.part for photo in photos}
    lacking = [part for part in ("val", "test") if part not in parts]
    if "train" not in parts or not lacking:
        return photos, []
    breed_of = {
        (photo.entry.species, photo.record): photo.entry.breed
        for photo in photos
        if photo.entry.part == "train"
    }
    breeds = sorted(set(breed_of.values()))
    part_of = make_splits(
        string_array([species for species, _ in breed_of]),
        string_array([record for _, record in breed_of]),
        np.array([breeds.index(breed) for breed in breed_of.values()], dtype=np.int32),
        seed=seed,
        fractions=(1 - CUT_FRAC * len(lacking), *(CUT_FRAC * (p in lacking) for p in SPLITS[1:])),
    )
    chosen = dict(zip(breed_of, (SPLITS[code] for code in part_of.tolist()), strict=True))
    cut = [
        replace(photo, entry=replace(photo.entry, part=chosen[photo.entry.species, photo.record]))
        if photo.entry.part == "train"
        else photo
        for photo in photos
    ]
    notes = [f"no {part} part: cut from train, {CUT_FRAC:.0%} of each class" for part in lacking]
    return cut, notes


def lay_out(
    found: Found, photos: Sequence[Photo], out: str | Path, *, link: str, seed: int
) -> None:
    """Write the tree at `out`, whole or not at all.

    `link` is one of `LINKS`; where links are not possible the photos are copied, and `found.notes`
    says so. Without parts there is no split: it is made when the tree is first loaded. Raises
    `UserError` where `out` exists, lies in the source, or cannot be written.
    """
    out = Path(os.path.abspath(out))
    check_out(out, found.source)
    with unfinished(out) as folder:
        place_photos(found, photos, folder, link)
        write_annotations(folder / "annotations", photos)
        if all(photo.entry.part for photo in photos):
            _write_split(folder / "splits.csv", found, photos, seed)
        rows = ((p.entry.species, p.record, p.image, p.entry.part, p.entry.path) for p in photos)
        header = ("species", "record", "image", "part", "source")
        files.write_csv(folder / "sources.csv", header, rows)
        files.write_csv(folder / "left_out.csv", ("what", "reason"), found.left_out)
        num_seen = len(scan(folder / "images").catalog)
        if num_seen != len(photos):
            raise UserError(
                f"{folder} holds {num_seen} photos where {len(photos)} were placed: was the source "
                "changed meanwhile? give the command again"
            )
        facts = {"source": str(found.source), "photos": len(photos), "notes": found.notes}
        files.write_json(folder / MARKER, {"kind": found.kind, "finished": True, **facts})


def _write_split(path: Path, found: Found, photos: Sequence[Photo], seed: int) -> None:
    part_of = {(photo.entry.species, photo.record): photo.entry.part for photo in photos}
    codes = np.array([SPLITS.index(part) for part in part_of.values()], dtype=np.int8)
    shares = np.bincount(codes, minlength=len(SPLITS)) / len(codes)
    aside = path.parent / "split"  # `write_splits` waits for its folder, and this one is taken
    write_splits(
        aside / path.name,
        string_array([species for species, _ in part_of]),
        string_array([record for _, record in part_of]),
        codes,
        seed=seed,
        fractions=[round(share, 4) for share in shares.tolist()],
        origin=f"{found.kind} in {found.source}",
    )
    for written in (side_file(aside / path.name), aside / path.name):
        written.rename(path.with_name(written.name))
    aside.rmdir()


def _match_spelling(found: Found, classes: Sequence[str]) -> None:
    """Give classes the checkpoint's own spelling where only Unicode's form differs."""
    spelling = {unicodedata.normalize("NFC", name): name for name in classes}
    found.entries = [
        replace(entry, species=spelling.get(entry.species, entry.species))
        for entry in found.entries
    ]


def _with_hint(counts: Counter[str], known: set[str]) -> list[str]:
    """Name classes with their photos, and the known class that may be meant."""
    folded = {name.casefold(): name for name in sorted(known)}
    lines = []
    for name, num in sorted(counts.items()):
        near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.85)
        hint = f", is it {folded[near[0]]!r}?" if near else ""
        lines.append(f"{name} ({num} photos{hint})")
    return lines


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
