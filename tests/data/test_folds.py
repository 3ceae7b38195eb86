"""Folds: every record is tested once, classes are spread evenly, the dataset's split stays."""

from __future__ import annotations

import numpy as np
import pytest

from petface.data.dataset import load_dataset
from petface.data.folds import fold_files, make_folds
from petface.data.splits import TEST, TRAIN, VAL
from petface.errors import UserError

SPECIES = np.array(["cat"] * 90 + ["dog"] * 41)
RECORDS = np.array([f"{n:06d}" for n in range(90)] + [f"{n:06d}" for n in range(41)])
STRATA = np.array([n % 7 for n in range(90)] + [n % 3 - 1 for n in range(41)])


def folds(seed=0, num_folds=5, order=None):
    order = np.arange(len(SPECIES)) if order is None else order
    return make_folds(SPECIES[order], RECORDS[order], STRATA[order], num_folds=num_folds, seed=seed)


@pytest.mark.parametrize("num_folds", [2, 3, 5, 10])
def test_every_record_is_in_the_test_part_of_one_fold(num_folds):
    found = np.stack(folds(num_folds=num_folds))
    assert ((found == TEST).sum(axis=0) == 1).all()
    sizes = (found == TEST).sum(axis=1)
    assert sizes.max() - sizes.min() <= 1
    for split in found:
        assert 0.04 < (split == VAL).mean() < 0.16 and (split == TRAIN).sum() > 0
        for species in ("cat", "dog"):
            for stratum in np.unique(STRATA[species == SPECIES]):
                of_class = (species == SPECIES) & (stratum == STRATA)
                num = (split[of_class] == TEST).sum()
                assert abs(num - of_class.sum() / num_folds) < 1


def test_a_records_fold_depends_on_the_seed_and_not_on_the_order():
    order = np.random.default_rng(0).permutation(len(SPECIES))
    for one, other in zip(folds(), folds(order=order), strict=True):
        assert (one[order] == other).all()
    assert any((one != other).any() for one, other in zip(folds(), folds(seed=1), strict=True))


@pytest.mark.parametrize("num_folds", [1, 132])
def test_impossible_numbers_of_folds_are_refused(num_folds):
    with pytest.raises(UserError, match="FOLDS must be from 2 to the 131 records"):
        folds(num_folds=num_folds)


def test_files_of_folds_are_read_as_splits_and_the_own_split_stays(tree, tmp_path):
    own = tree.copy(tmp_path / "own")
    before = load_dataset(own.images, own.annotations)
    split = (own.root / "splits.csv").read_bytes()
    arguments = (own.images, own.annotations, tmp_path / "folds")
    paths = fold_files(*arguments, num_folds=3, seed=4)
    written = [path.read_bytes() for path in paths]
    assert fold_files(*arguments, num_folds=3, seed=4) == paths
    assert [path.read_bytes() for path in paths] == written
    other = fold_files(*arguments, num_folds=3, seed=5)
    assert not set(other) & set(paths)
    tested = np.zeros(before.catalog.num_records, int)
    for path in paths:
        tested += load_dataset(own.images, own.annotations, splits_file=path).record_split == TEST
    assert (tested == 1).all()
    assert (own.root / "splits.csv").read_bytes() == split
