"""Photos that an export is measured on, and how equal its predictions are to its checkpoint's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from petface.data.dataset import Dataset, sample_places
from petface.data.loading import OK, even_slices
from petface.data.pack import image_source
from petface.evaluation.details import class_numbers
from petface.models.checkpoints import Described
from petface.models.network import Outputs
from petface.taxonomy import UNKNOWN

_AT_ONCE = 32  # photos


@dataclass(frozen=True, eq=False)
class Photos:
    """Readable photos of a split: prepared pixels, and the class numbers of each head."""

    pixels: Tensor  # (N, S, S, 3) uint8
    labels: dict[str, Tensor]  # head -> (N,) int64, numbered as the model does, -1 unknown

    def __len__(self) -> int:
        return len(self.pixels)


def read_photos(
    dataset: Dataset, pack: str, species: str | None, model: Described, split: str, most: int
) -> Photos:
    """Draw a stratified sample of a split for stage 1 (`species` None) or a specialist.

    At most `most` photos, always the same ones.
    """
    rule = model.preprocessing
    places = sample_places(dataset, split, species, most)
    reader = image_source(dataset.catalog, pack, rule)
    pixels = [torch.empty(0, rule.size_px, rule.size_px, 3, dtype=torch.uint8)]
    kept = [places[:0]]
    for piece in even_slices(places, _AT_ONCE) if len(places) else ():
        found = reader.read(piece)
        pixels.append(found.arrays[0])
        kept.append(piece[found.status == OK])
    labels = _labels(dataset, species, model.heads, np.concatenate(kept))
    return Photos(torch.cat(pixels), labels)


def _labels(
    dataset: Dataset, species: str | None, heads: Mapping[str, Sequence[str]], places: np.ndarray
) -> dict[str, Tensor]:
    """Number the classes of each head as the model does, whatever the dataset's order is."""
    if species is None:
        numbers = {"species": dataset.catalog.class_index[places]}
        names = {"species": dataset.catalog.classes}
    else:
        of_species, columns = dataset.image_labels(species)
        rows = np.searchsorted(of_species, places)
        numbers = {head: column[rows] for head, column in columns.items()}
        names = {head: dataset.annotations[species].vocabularies[head] for head in columns}
    found = {}
    for head, wanted in heads.items():
        number = numbers.get(head, np.full(len(places), UNKNOWN))
        place = class_numbers([*names.get(head, ()), ""], wanted)  # -1, unknown, finds the last
        found[head] = torch.from_numpy(np.maximum(place, UNKNOWN)[number])
    return found


def differences(one: Outputs, other: Outputs, heads: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Compare logits per head: the largest difference, and the share of equal predictions."""
    return {
        head: {
            "max_logit_difference": float((a - b).abs().max()),
            "equal": float((a.argmax(dim=1) == b.argmax(dim=1)).double().mean()),
        }
        for head, a, b in zip(heads, one, other, strict=True)
    }


def accuracies(outputs: Outputs, labels: Mapping[str, Tensor]) -> dict[str, float | None]:
    """Return the accuracy of each head on known labels; None where none is known.

    `labels` are in the order of the outputs.
    """
    found: dict[str, float | None] = {}
    for logits, (head, wanted) in zip(outputs, labels.items(), strict=True):
        known = wanted >= 0
        right = logits.argmax(dim=1)[known] == wanted[known]
        found[head] = float(right.double().mean()) if len(right) else None
    return found
