"""What is asked of an identity network: pairs to verify, and photos to find among known animals.

PetFace's own lists (Shinoda & Shiohara, ECCV 2024) where they are, else the same made from a split.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from petface.data.catalog import Catalog, line_error
from petface.data.dataset import Dataset
from petface.data.splits import SPLITS, official_rows
from petface.errors import UserError

# The released pairs were not at hand: their columns are as people describe them who use PetFace's
# programs with data of their own. Whatever the header says, a row is two photos and 1 or 0.
VERIFICATION: Final = "verification.csv"
TRAIN_LIST: Final = "train.csv"
REIDENTIFICATION: Final = "reidentification.csv"
MAX_SAME_PER_ANIMAL: Final = 45  # pairs, those of ten photos


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of photos within a species, and whether both show one animal."""

    left: np.ndarray  # (P,) int64 into the catalog
    right: np.ndarray  # (P,) int64
    is_same: np.ndarray  # (P,) bool
    is_official: bool = False

    def only(self, chosen: np.ndarray) -> Pairs:
        """Keep some of the pairs (P,) bool."""
        own = self.left[chosen], self.right[chosen], self.is_same[chosen]
        return Pairs(*own, self.is_official)


@dataclass(frozen=True, eq=False)
class Search:
    """Photos of known animals, and photos that are looked up among them, within the species."""

    gallery: np.ndarray  # (G,) int64 into the catalog
    queries: np.ndarray  # (Q,) int64
    is_official: bool = False


def made_pairs(catalog: Catalog, photos: np.ndarray, seed: int, where: str = "a split") -> Pairs:
    """Make all pairs of one animal among `photos` (n,), and as many of two animals of its species.

    An animal of very many photos gives `MAX_SAME_PER_ANIMAL`, drawn by `seed`. The second animal
    of a pair of two is drawn by photos, the same for the same photos and seed.
    """
    generator = np.random.default_rng(seed)
    left, right, other = [], [], []
    photos = np.sort(photos)
    species = catalog.class_index[photos]
    for own in _by_record(catalog, photos):
        after = np.arange(len(own))[::-1]  # with so many that follow it each photo makes a pair
        begins, num = np.cumsum(after) - after, int(after.sum())
        draw = num > MAX_SAME_PER_ANIMAL
        chosen = generator.choice(num, MAX_SAME_PER_ANIMAL, False) if draw else np.arange(num)
        first = np.searchsorted(begins[:-1], chosen, side="right") - 1
        kind = catalog.class_index[own[0]]
        begin, end = (np.searchsorted(species, kind, side=s) for s in ("left", "right"))
        strangers = end - begin - len(own)
        if num and strangers:
            left.append(own[first])
            right.append(own[chosen - begins[first] + first + 1])
            place = generator.integers(0, strangers, len(chosen)) + begin
            place += len(own) * (place >= np.searchsorted(photos, own[0]))  # past the animal's own
            other.append(photos[place])
    if not left:
        raise UserError(
            f"no animal to verify in {where}: two animals of a species are needed, one of them "
            "with two photos; add photos, or move splits.csv away, so that another is made"
        )
    one, same, two = np.concatenate(left), np.concatenate(right), np.concatenate(other)
    is_same = np.repeat([True, False], len(one))
    return Pairs(np.tile(one, 2), np.concatenate([same, two]), is_same)


def made_search(catalog: Catalog, photos: np.ndarray, seed: int) -> Search:
    """Put one photo of each animal into the gallery, drawn by `seed`; the others are looked up."""
    generator = np.random.default_rng(seed)
    gallery = [generator.choice(own) for own in _by_record(catalog, photos)]
    return Search(np.array(gallery, np.int64), np.setdiff1d(photos, gallery))


def _by_record(catalog: Catalog, photos: np.ndarray) -> list[np.ndarray]:
    """Split sorted photos (n,) by animal."""
    begins = np.flatnonzero(np.diff(catalog.record_index[photos])) + 1
    return np.split(photos, begins) if len(photos) else []


def photos_of_split(dataset: Dataset, split: str, at_least: int = 1) -> np.ndarray:
    """List the photos (n,) of a split's animals that have `at_least` as many."""
    catalog = dataset.catalog
    counts = np.bincount(catalog.record_index, minlength=catalog.num_records)
    wanted = (dataset.record_split == SPLITS.index(split)) & (counts >= at_least)
    return np.flatnonzero(wanted[catalog.record_index])


def official_pairs(folder: Path, catalog: Catalog) -> tuple[Pairs | None, list[str]]:
    """Read `folder/<species>/verification.csv`, rows filename1,filename2,label (1 = one animal).

    None where no species has it. Pairs with a photo that is not in the tree are left out, with a
    note; so is said where a label contradicts the folders. `UserError` names file and line.
    """
    found, notes = [], []
    for species, path, known in _lists(folder, catalog, VERIFICATION):
        missing = 0
        for line, names, label in official_rows(path, species, 2):
            if len(names) < 2 or label.strip() not in ("0", "1"):
                raise line_error(path, line, f"ends in {label!r}, not in 1 (one animal) or 0")
            pair = [known.get(name) for name in names]
            missing += None in pair
            found += [] if None in pair else [(*pair, int(label))]
        notes += [f"{path}: {missing} pairs have a photo that is not there"] * bool(missing)
    left, right, same = np.array(found, np.int64).reshape(-1, 3).T
    is_same, animal = same.astype(bool), catalog.record_index
    if wrong := int((is_same != (animal[left] == animal[right])).sum()):
        notes.append(f"{wrong} of {len(found)} listed pairs contradict the folders of their photos")
    return (Pairs(left, right, is_same, True) if found else None), notes


def official_search(folder: Path, catalog: Catalog) -> tuple[Search | None, list[str]]:
    """Read `train.csv` as the gallery and `reidentification.csv` as what is looked up in it.

    Both show the same animals, and a network trained on the first has learnt them: this is the
    protocol of seen animals. The gallery has only those that are looked up. None without lists.
    """
    gallery, queries = list[int](), list[int]()
    notes = []
    for species, path, known in _lists(folder, catalog, REIDENTIFICATION):
        missing = 0
        for side, file in ((queries, path), (gallery, path.with_name(TRAIN_LIST))):
            for _, (name,), _ in official_rows(file, species):
                place = known.get(name)
                missing += place is None
                side += [] if place is None else [place]
        notes += [f"{path}: {missing} photos are not there"] * bool(missing)
    known_places, asked = (np.unique(np.array(side, np.int64)) for side in (gallery, queries))
    is_asked = np.isin(catalog.record_index[known_places], catalog.record_index[asked])
    found = Search(known_places[is_asked], asked, True)
    return (found if is_asked.any() else None), notes


def _lists(
    folder: Path, catalog: Catalog, name: str
) -> Iterator[tuple[str, Path, dict[tuple[str, str], int]]]:
    """Yield species, its list, and the place of each (record, file name) in the catalog."""
    for number, species in enumerate(catalog.classes):
        if (path := folder / species / name).is_file():
            places = np.flatnonzero(catalog.class_index == number).tolist()
            names = (os.path.basename(os.fsdecode(catalog.relative_path(k))) for k in places)
            records = catalog.record_names[catalog.record_index[places]].tolist()
            yield species, path, dict(zip(zip(records, names, strict=True), places, strict=True))
