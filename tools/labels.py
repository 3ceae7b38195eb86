"""Load the dataset of a tool with its labels read as in training, whatever the columns' names."""

from __future__ import annotations

from typing import Any

from petface.data.dataset import Dataset, load_dataset
from petface.inference.loading import reading_of
from petface.settings import Settings
from petface.taxonomy import with_columns
from stage2_resnet_multi import GENDER_MAP, SPECIES_CONFIG


def load_as_trained(s: Settings) -> Dataset:
    """Load the dataset that a tool's settings name; read labels as the specialists were trained.

    What STAGE2_FOLDER does not tell of a species, SPECIES_CONFIG of the trainer does. COLUMNS, of
    tools that have it, are laid over that as there, and then the specialists are not looked at.
    """
    columns = s.as_dict().get("COLUMNS", ())
    tables = with_columns(SPECIES_CONFIG, columns)

    def how(species: str) -> dict[str, Any]:
        asked = s.STAGE2_FOLDER and not columns
        found = reading_of(species, s.STAGE2_FOLDER) if asked else {}
        return found or {"table": tables.get(species), "gender_map": GENDER_MAP}

    split = {"splits_file": s.SPLITS_FILE, "seed": s.SPLIT_SEED}
    return load_dataset(s.IMAGES_ROOT, s.ANNOTATIONS_ROOT, **split, reading_of=how)
