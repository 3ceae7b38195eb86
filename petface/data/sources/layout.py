"""Convert a source to a PetFace tree, `images/<species>/<record>/<image>`, with a split.

A reader lists the photos of its source as `Found`. `prepare` selects photos, assigns their paths,
and writes the tree as links or copies, atomically.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import shutil
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from petface import files
from petface.data.catalog import Catalog, identical_records, string_array
from petface.data.dataset import species_of_records
from petface.data.sources.petface import check_species_name, scan
from petface.data.splits import SPLITS, make_splits, write_splits
from petface.errors import UserError
from petface.progress import progress
from petface.taxonomy import canonical_record, is_unknown

MARKER = "prepared.json"
CUT_FRAC = 0.1  # of the train split, for each split that the source lacks
_MAX_CLASS_BYTES, _MAX_NAME_BYTES = 200, 80  # file systems allow 255
_NAMES_SHOWN = 40


@dataclass(frozen=True)
class Entry:
    """One photo of a source."""

    species: str  # its class in stage 1, as `class_name` returns it
    record: str  # the source's name of the animal; after `name_photos`, its folder in the tree
    animal: str  # photos of one species and split with the same value show one animal
    path: str  # absolute; bytes that are not UTF-8 become surrogate escapes
    part: str = ""  # of `SPLITS`; "" if the source has no split
    breed: str = ""
    image: str = ""  # file name in the tree, set by `name_photos`


@dataclass
class Found:
    """The photos of a source in a fixed order, and everything that is left out."""

    kind: str  # such as "image_folder"
    source: Path
    entries: list[Entry] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)  # what, reason
    notes: list[str] = field(default_factory=list)  # messages for the user

    @property
    def parts(self) -> set[str]:
        """Return the splits that have photos; empty if the source has no split."""
        return {entry.part for entry in self.entries} - {""}

    @property
    def classes(self) -> list[str]:
        """Return the classes that have photos, sorted."""
        return sorted({entry.species for entry in self.entries})

    def leave_out(self, what: str | bytes, reason: str) -> None:
        """Record an unused path or name, relative to the source and escaped for any file."""
        text = os.fsdecode(what)
        text = os.path.relpath(text, self.source) if os.path.isabs(text) else text
        self.left_out.append((files.readable_name(text), reason))


def class_name(text: str) -> str:
    """Normalise the name of a class to Unicode's composed form, stripped of blanks.

    Raises `UserError` with the reason if it cannot name a class and a folder.
    """
    name = unicodedata.normalize("NFC", text).strip()
    if re.search(r"[\x00-\x1f\x7f]", name):
        raise UserError("a class name with a control character")
    if re.search(r"[\ud800-\udfff]", name):
        raise UserError("a class name that is not UTF-8")
    if is_unknown(name):
        raise UserError("a class name that means unknown; rename it to use it")
    if len(name.encode("utf-8")) > _MAX_CLASS_BYTES:
        raise UserError(f"a class name longer than {_MAX_CLASS_BYTES} bytes")
    try:
        check_species_name(name)
    except UserError as error:
        raise UserError("not usable as a class name") from error
    return name


def safe_name(text: str) -> str:
    """Make a name for a record or an image: letters, digits, `_` and `-`, 80 bytes at most.

    A record of this name is canonical and is never taken for an unknown label.
    """
    name = re.sub(r"[^\w-]+", "_", unicodedata.normalize("NFC", text)).strip("_-")
    name = name.encode("utf-8")[:_MAX_NAME_BYTES].decode("utf-8", "ignore")
    name = canonical_record(name)
    return f"{name}_photo".lstrip("_") if is_unknown(name) else name


def take_name(taken: dict[str, int], wanted: str) -> str:
    """Return `wanted`, or the first of `wanted_2`, `wanted_3` ... that `taken` lacks, and add it.

    The names are unique on any file system, whatever their case and Unicode form.
    """
    name, folded = wanted, unicodedata.normalize("NFC", wanted.casefold())
    key, number = folded, taken.get(folded, 1)
    while key in taken:
        number += 1
        name, key = f"{wanted}_{number}", f"{folded}_{number}"
    taken[folded] = number  # of the last name tried, for the next search
    taken.setdefault(key, 1)
    return name


def prepare(
    found: Found,
    out: str | Path,
    *,
    link: str = "symbolic",
    seed: int = 0,
    checkpoint_classes: Sequence[str] | None = None,
    val_as: str = "test",
) -> None:
    """Write the tree of a source to `out`; `found` then lists its contents and all notes.

    `link` is "symbolic", "hard" or "copy". Photos are copied if links are not possible. Without
    splits in the source, the split is created when the tree is first loaded. Raises `UserError` if
    no photo is left, or if `out` exists, lies inside the source, or cannot be written.
    """
    out = Path(os.path.abspath(out))
    check_out(out, found.source)
    settle_parts(found, checkpoint_classes=checkpoint_classes, val_as=val_as)
    found.entries = name_photos(found.entries)
    folder = out.with_name(f"{out.name}.unfinished-{os.getpid()}")  # left behind by a kill
    try:
        folder.mkdir(parents=True)
        _write_tree(found, folder, link, seed)
        folder.rename(out)
    except OSError as error:
        raise files.write_error(error.filename or out, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_tree(found: Found, folder: Path, link: str, seed: int) -> None:
    """Write photos, annotations, split and lists of the named entries into `folder`."""
    _place_photos(found, folder, link)
    catalog = scan(folder / "images").catalog
    cut_parts(found, seed, catalog)
    _write_annotations(folder / "annotations", found.entries)
    if all(entry.part for entry in found.entries):
        _write_split(folder / "splits.csv", found, seed)
    rows = ((e.species, e.record, e.image, e.part, e.path) for e in found.entries)
    header = ("species", "record", "image", "part", "source")
    files.write_csv(folder / "sources.csv", header, rows)
    files.write_csv(folder / "left_out.csv", ("what", "reason"), found.left_out)
    if len(catalog) != len(found.entries):
        what = f"{folder} holds {len(catalog)} photos where {len(found.entries)} were placed"
        raise UserError(f"{what}: was the source changed meanwhile? Repeat the command")
    facts: dict[str, object] = {"kind": found.kind, "finished": True, "source": str(found.source)}
    facts |= {"photos": len(catalog), "left_out": len(found.left_out), "notes": found.notes}
    files.write_json(folder / MARKER, facts)


def check_out(out: Path, source: Path) -> None:
    """Raise `UserError` if the folder exists or lies inside the source."""
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        what = "holds a prepared tree already" if (out / MARKER).exists() else "exists already"
        raise UserError(f"--out {out} {what}: use it, delete it, or choose another --out")
    if out.resolve().is_relative_to(source.resolve()):
        what = f"lies inside the source {source}, which is kept as it is"
        raise UserError(f"--out {out} {what}: use another")


def settle_parts(found: Found, *, checkpoint_classes: Sequence[str] | None, val_as: str) -> None:
    """Select entries and settle their splits; list in `found` what is left out.

    A val split without a test split becomes the test split if `val_as` is "test". With the classes
    of a checkpoint, photos of other classes leave the test split, and without a train split leave
    entirely. Without a checkpoint, classes without training photos leave val and test. Raises
    `UserError` if no photo is left.
    """
    assert val_as in ("val", "test"), val_as
    renamed = {}  # splits
    if "val" in found.parts and "test" not in found.parts and val_as == "test":
        renamed = {"val": "test"}
        found.notes.append("no test split: the val split is used as the test split")
    elif checkpoint_classes is not None and not found.parts:
        renamed = {"": "test"}
        found.notes.append("no splits, and a checkpoint: every photo goes into the test split")
    # Use the checkpoint's spelling if it differs only in its Unicode form.
    spelling = {unicodedata.normalize("NFC", name): name for name in checkpoint_classes or ()}
    found.entries = [
        replace(e, part=renamed.get(e.part, e.part), species=spelling.get(e.species, e.species))
        for e in found.entries
    ]
    of_train = {e.species for e in found.entries if e.part == "train"}, "in the train split"
    of_checkpoint = set(checkpoint_classes or ()), "known to the checkpoint"
    known, what = of_train if checkpoint_classes is None else of_checkpoint
    if not known:  # neither a train split nor a checkpoint: keep any class
        return
    _leave_out(found, "test", known, what)
    _leave_out(found, "val", *(of_train if of_train[0] else (known, what)))
    if checkpoint_classes is not None and (absent := sorted(known - set(found.classes))):
        what = f"{len(absent)} classes of the checkpoint have no photos"
        found.notes.append(f"{what}: {_some(absent)}")
    if not found.entries:
        what = f"the known classes are {_some(sorted(known))}"
        raise UserError(f"no photo of {found.source} is left; {what}")


def _leave_out(found: Found, part: str, allowed: set[str], what: str) -> None:
    """Remove the photos of other classes from a split, and list them."""
    kept, gone = [], Counter[str]()
    for entry in found.entries:
        if entry.part != part or entry.species in allowed:
            kept.append(entry)
            continue
        found.leave_out(entry.path, f"of the {part} split, and its class is not {what}")
        gone[entry.species] += 1
    found.entries = kept
    if gone:
        folded = {name.casefold(): name for name in sorted(allowed)}
        names = []
        for name, num in sorted(gone.items()):
            near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.85)
            names.append(f"{name} ({num} photos{f', is it {folded[near[0]]!r}?' if near else ''})")
        found.notes.append(f"{len(gone)} {part} classes are not {what}: {_some(names)}")


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def name_photos(entries: Sequence[Entry]) -> list[Entry]:
    """Assign each entry its record and image name; animals of different splits never share one."""
    records: dict[tuple[str, str, str], str] = {}
    names: dict[str, dict[str, int]] = defaultdict(dict)  # of the records of a species
    images: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)  # of a record
    named = []
    for entry in entries:
        key = entry.species, entry.part, entry.animal
        if key not in records:
            records[key] = take_name(names[entry.species], safe_name(entry.record))
        path = Path(entry.path)
        stem = take_name(images[entry.species, records[key]], safe_name(path.stem))
        named.append(replace(entry, record=records[key], image=stem + path.suffix.lower()))
    return named


def cut_parts(found: Found, seed: int, catalog: Catalog | None = None) -> None:
    """Draw the missing val and test splits from the train split, by record.

    The draw is stratified by class, and by breed within it. Without a train split nothing changes.
    Records that share a file in the `catalog` of the named photos stay together.
    """
    lacking = [part for part in ("val", "test") if part not in found.parts]
    if "train" not in found.parts or not lacking:
        return
    breed_of = {(e.species, e.record): e.breed for e in found.entries if e.part == "train"}
    first = {}
    if catalog is not None:
        names = zip(species_of_records(catalog).tolist(), catalog.record_names, strict=True)
        first = dict(zip(names, identical_records(catalog).tolist(), strict=True))
    species, records = (string_array(column) for column in zip(*breed_of, strict=True))
    part_of = make_splits(
        species,
        records,
        np.unique([*breed_of.values()], return_inverse=True)[1],
        seed=seed,
        fractions=(1 - CUT_FRAC * len(lacking), *(CUT_FRAC * (p in lacking) for p in SPLITS[1:])),
        first=np.array([first.get(key, -1 - place) for place, key in enumerate(breed_of)]),
    )
    chosen = dict(zip(breed_of, (SPLITS[code] for code in part_of), strict=True))
    found.entries = [
        replace(e, part=chosen[e.species, e.record]) if e.part == "train" else e
        for e in found.entries
    ]
    for part in lacking:
        found.notes.append(f"no {part} split: drawn from train, {CUT_FRAC:.0%} of each class")


def _place_photos(found: Found, folder: Path, link: str) -> None:
    """Link or copy every photo into `folder/images`; add a note if links are not possible."""
    for name in found.classes:
        try:
            (folder / "images" / name).mkdir(parents=True)
        except FileExistsError as error:
            what = f"{name!r} and another class differ only in case, and {folder} cannot hold both"
            raise UserError(f"{what}; rename one, or choose another --out") from error
    bar = progress(found.entries, desc=link, leave=False)
    for entry in bar:
        place = folder / "images" / entry.species / entry.record / entry.image
        place.parent.mkdir(exist_ok=True)  # records never differ only in case, see `take_name`
        try:
            _place(entry.path, place, link)
        except OSError as error:
            if link == "copy" or error.errno == errno.ENOSPC:
                raise
            what = f"{link} links are not possible in {folder.parent} ({error.strerror})"
            found.notes.append(f"{what}: photos are copied instead")
            link = "copy"
            _place(entry.path, place, link)


def _place(source: str, place: Path, link: str) -> None:
    if link == "symbolic":
        place.symlink_to(source)
    elif link == "hard":  # to the file itself if the source is a link
        os.link(os.path.realpath(source), place)
    else:
        try:
            shutil.copyfile(source, place)
        except OSError as error:
            if error.filename == source:
                raise UserError(f"cannot read {source}: {error.strerror}") from error
            raise


def _write_annotations(folder: Path, entries: Sequence[Entry]) -> None:
    """Write `<species>.csv` (Name, Breed) for each species with breeds, in their own spelling."""
    folder.mkdir()
    breeds: dict[str, dict[str, str]] = defaultdict(dict)
    for entry in entries:
        if entry.breed:
            breeds[entry.species][entry.record] = entry.breed
    for species, rows in breeds.items():
        with files.atomic_write(folder / f"{species}.csv", "w") as handle:
            handle.write(files.csv_line(("Name", "Breed")))
            handle.writelines(map(files.csv_line, sorted(rows.items())))


def _write_split(path: Path, found: Found, seed: int) -> None:
    part_of = {(entry.species, entry.record): entry.part for entry in found.entries}
    codes = np.array([SPLITS.index(part) for part in part_of.values()], dtype=np.int8)
    shares = np.bincount(codes, minlength=len(SPLITS)) / len(codes)
    species, records = (string_array(column) for column in zip(*part_of, strict=True))
    write_splits(
        path,
        species,
        records,
        codes,
        seed=seed,
        fractions=[round(share, 4) for share in shares.tolist()],
        origin=f"{found.kind} in {found.source}",
    )
