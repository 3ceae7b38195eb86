"""Load the dataset of a tool with its labels read as in training, whatever the columns' names."""

from __future__ import annotations

from petface.data.dataset import Dataset, load_dataset
from petface.inference.loading import reading_of
from petface.settings import Settings
from petface.taxonomy import with_columns


def load_as_trained(s: Settings, of: str, columns: tuple[str, ...] = ()) -> Dataset:
    """Load the dataset of a tool; labels are read as STAGE2_FOLDER, if it is `of`'s, was trained.

    Where `columns` are given, they are read by these instead, as COLUMNS of stage 2 does.
    """
    tables = with_columns({}, columns)
    folder = None if columns else s.own_folder("STAGE2_FOLDER", of)
    return load_dataset(
        s.IMAGES_ROOT,
        s.ANNOTATIONS_ROOT,
        splits_file=s.SPLITS_FILE,
        seed=s.SPLIT_SEED,
        reading_of=lambda name: {"table": tables.get(name), **reading_of(name, folder)},
    )
