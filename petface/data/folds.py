"""K folds by record: another way to repeat a run, for small sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from petface.data.dataset import load_dataset, species_of_records, strata_of_records
from petface.data.splits import FRACTIONS, TEST, VAL, draw_order, make_splits, write_splits
from petface.errors import UserError


def fold_files(
    images_root: str | Path,
    annotations_root: str | Path,
    folder: Path,
    *,
    num_folds: int,
    seed: int,
    splits_file: str | Path = "",
) -> list[Path]:
    """Write one split file per fold of the whole tree into `folder`, unless it is there already.

    `make_folds` says what they hold; `splits_file` is the dataset's own split, see `load_dataset`.
    """
    paths = [
        folder / f"fold{number}_of_{num_folds}_seed{seed}.csv" for number in range(1, num_folds + 1)
    ]
    dataset = load_dataset(images_root, annotations_root, splits_file=splits_file)
    names, records = species_of_records(dataset.catalog), dataset.catalog.record_names
    strata = strata_of_records(dataset.catalog, dataset.annotations)
    splits = make_folds(names, records, strata, num_folds=num_folds, seed=seed)
    for path, record_split in zip(paths, splits, strict=True):
        write_splits(path, names, records, record_split, seed=seed)
    return paths


def make_folds(
    species: np.ndarray, records: np.ndarray, strata: np.ndarray, *, num_folds: int, seed: int
) -> list[np.ndarray]:
    """Return one split per fold, each (R,) int8: every record is in the test part of exactly one.

    Inside each species the strata are dealt out in turn, so a class is spread over the folds as
    evenly as it can be. Of the rest of a fold a tenth of all records is its validation part.
    """
    if not 2 <= num_folds <= len(records):
        raise UserError(f"FOLDS must be from 2 to the {len(records)} records, not {num_folds}")
    fold_of = np.empty(len(records), np.int64)
    fold_of[draw_order(species, records, strata, seed=seed)] = np.arange(len(records)) % num_folds
    val_frac = FRACTIONS[VAL] * num_folds / (num_folds - 1)
    fractions = (1 - val_frac, val_frac, 0.0)
    found = np.full((num_folds, len(records)), TEST, np.int8)
    for fold, result in enumerate(found):
        rest = np.flatnonzero(fold_of != fold)
        result[rest] = make_splits(
            species[rest], records[rest], strata[rest], seed=seed, fractions=fractions
        )
    return list(found)
