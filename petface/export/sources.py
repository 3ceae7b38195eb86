"""What is exported: a checkpoint of either kind in one shape, and photos to measure it on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from petface.calibration import HeadCalibration
from petface.data import images
from petface.data.dataset import Dataset
from petface.data.images import Preprocessing
from petface.data.loading import OK, even_slices
from petface.data.pack import image_source
from petface.data.sample import sample_places
from petface.files import sha256_of_file
from petface.models import checkpoints
from petface.models.familiarity import Guard
from petface.taxonomy import UNKNOWN

_AT_ONCE = 32  # photos


@dataclass(frozen=True, eq=False)
class Source:
    """A checkpoint that is exported; `species` is None for stage 1."""

    path: Path
    species: str | None
    model: nn.Module
    backbone: str  # and what else the network is made of, in words
    heads: dict[str, tuple[str, ...]]  # class names, in the order of the outputs
    vocabulary_sources: dict[str, str]
    preprocessing: Preprocessing
    calibration: dict[str, HeadCalibration]
    guard: Guard | None

    def __str__(self) -> str:
        return self.species or "stage1"

    @property
    def guard_threshold(self) -> float | None:
        """Give the score from which a photo shows a known animal; None without a guard."""
        return None if self.guard is None else self.guard.threshold

    def metadata(self) -> dict[str, Any]:
        """Give what the checkpoint says, as JSON values."""
        return {
            "kind": "stage1" if self.species is None else "stage2",
            "species": self.species,
            "backbone": self.backbone,
            "heads": {head: list(names) for head, names in self.heads.items()},
            "sources": self.vocabulary_sources,
            "preprocessing": self.preprocessing.to_dict(),
            "calibration": {head: asdict(fitted) for head, fitted in self.calibration.items()},
            "guard_threshold": self.guard_threshold,
            "checkpoint": {"name": self.path.name, "sha256": sha256_of_file(self.path)},
        }


def read_source(path: str | Path, species: str | None) -> Source:
    """Read stage 1 (`species` None) or a specialist; `CheckpointError` for what cannot be used."""
    path = Path(path)
    if species is None:
        one = checkpoints.read_stage1(path)
        return Source(
            path,
            None,
            one.model,
            str(one.architecture),
            one.heads,
            one.sources,
            one.preprocessing,
            one.calibration,
            one.guard,
        )
    two = checkpoints.read_stage2(path, species)
    heads = two.heads
    return Source(
        path,
        species,
        two.model,
        str(two.model.architecture),
        heads,
        {head: two.sources[head] for head in heads},
        two.preprocessing,
        {head: fitted for head, fitted in two.calibration.items() if head in heads},
        None,
    )


@dataclass(frozen=True, eq=False)
class Photos:
    """Readable photos of a part: prepared pixels, and the class numbers of each head."""

    places: np.ndarray  # (N,) into the catalog
    pixels: Tensor  # (N, S, S, 3) uint8
    labels: dict[str, Tensor]  # head -> (N,) int64, -1 unknown


def read_photos(dataset: Dataset, pack: str, source: Source, part: str, most: int) -> Photos:
    """Draw a stratified sample of a part for one model, at most `most`; always the same."""
    places = sample_places(dataset, part, source.species, most)
    reader = image_source(dataset.catalog, pack, source.preprocessing)
    side = source.preprocessing.size_px
    pixels, kept = [torch.empty(0, side, side, 3, dtype=torch.uint8)], [places[:0]]
    for piece in even_slices(places, _AT_ONCE) if len(places) else ():
        found = reader.read(piece)
        pixels.append(found.arrays[0])
        kept.append(piece[found.status == OK])
    readable = np.concatenate(kept)
    return Photos(readable, torch.cat(pixels), _labels(dataset, source, readable))


def cut_photos(dataset: Dataset, places: np.ndarray) -> list[np.ndarray]:
    """Decode photos, (H, W, 3) uint8 each, and cut them: even one of the right size must be resized
    then.
    """
    whole = [images.decode(dataset.catalog.path(int(place))) for place in places]
    return [photo[len(photo) // 10 :, : -(-photo.shape[1] * 6 // 7)] for photo in whole]


def _labels(dataset: Dataset, source: Source, places: np.ndarray) -> dict[str, Tensor]:
    """Number the classes of each head as the model does, whatever the dataset's order is."""
    if source.species is None:
        names, numbers = dataset.catalog.classes, dataset.catalog.class_index[places]
        return {"species": _renumbered(numbers, names, source.heads["species"])}
    of_species, columns = dataset.image_labels(source.species)
    rows = np.searchsorted(of_species, places)
    found = {}
    for head, names in source.heads.items():
        own: Sequence[str] = ()
        numbers = np.full(len(places), UNKNOWN)
        if head in columns:
            own = dataset.annotations[source.species].vocabularies[head]
            numbers = columns[head][rows]
        found[head] = _renumbered(numbers, own, names)
    return found


def _renumbered(numbers: np.ndarray, own: Sequence[str], wanted: Sequence[str]) -> Tensor:
    place = {name: number for number, name in enumerate(wanted)}
    table = np.array([*(place.get(name, UNKNOWN) for name in own), UNKNOWN])  # -1 finds the last
    return torch.from_numpy(table[numbers].astype(np.int64))
