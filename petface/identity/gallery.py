"""Known animals, and who of them a photo shows."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from petface import files
from petface.errors import UserError, install_line

UNKNOWN_ANIMAL: Final = "unknown"
_BLOCK: Final = 100_000  # rows of the gallery at once: 200 MB of 512 numbers


@dataclass(frozen=True, eq=False)
class Gallery:
    """One unit embedding (A, D) for each known animal, the mean of its photos'."""

    animals: tuple[str, ...]
    embeddings: np.ndarray

    @classmethod
    def of_photos(cls, embeddings: np.ndarray, animals: Sequence[str]) -> Gallery:
        """Fuse the photos (n, D) of each animal; photos that could not be read are left out."""
        readable = np.isfinite(embeddings).all(axis=1)
        names, number = np.unique(
            np.array(animals, object)[readable].astype(str), return_inverse=True
        )
        if not len(names):
            raise UserError("the gallery holds no photo that can be read")
        return cls(tuple(names.tolist()), fuse(embeddings[readable], number, len(names)))

    def identify(
        self, query: np.ndarray, topk: int, threshold: float | None
    ) -> tuple[str, list[tuple[str, float]]]:
        """Name the animal of a unit embedding (D,), and list the most similar ones.

        The name is "unknown" where none reaches the threshold; None = one always does.
        """
        places, similarity = search(query[None], self.embeddings, topk)
        rows = zip(places[0].tolist(), similarity[0].tolist(), strict=True)
        listed = [(self.animals[place], value) for place, value in rows]
        is_known = threshold is None or listed[0][1] >= threshold
        return listed[0][0] if is_known else UNKNOWN_ANIMAL, listed


def fuse(embeddings: np.ndarray, number: np.ndarray, num: int) -> np.ndarray:
    """Average unit embeddings (n, D) of each animal, `number` (n,): (num, D) of length 1."""
    table = np.zeros((num, embeddings.shape[1]), np.float32)
    np.add.at(table, number, embeddings)
    return table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)


def search(queries: np.ndarray, gallery: np.ndarray, topk: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the most similar rows of a gallery (G, D): places and cosines, each (Q, topk).

    Plain products in blocks: exact, and for a million rows as fast as their memory is read.
    """
    asked, topk = torch.from_numpy(np.ascontiguousarray(queries)), min(topk, len(gallery))
    best, place = torch.empty(len(asked), 0), torch.empty(len(asked), 0, dtype=torch.int64)
    for start in range(0, len(gallery), _BLOCK):
        found = asked @ torch.from_numpy(gallery[start : start + _BLOCK]).T
        values, places = found.topk(min(topk, found.shape[1]), dim=1)
        best = torch.cat([best, values], dim=1)
        place = torch.cat([place, places + start], dim=1)
        best, order = best.topk(min(topk, best.shape[1]), dim=1)
        place = place.gather(1, order)
    return place.numpy(), best.numpy()


# ---- Files: .npy with a .csv of the same name, or .parquet ----


def save_embeddings(path: Path, images: Sequence[str], embeddings: np.ndarray) -> None:
    """Write (n, D) float32 and the photo of each row."""
    if path.suffix == ".parquet":
        table = _pandas().DataFrame({"image": images, "embedding": list(embeddings)})
        with files.atomic_write(path) as handle:
            table.to_parquet(handle)
        return
    with files.atomic_write(path) as handle:
        np.save(handle, embeddings)
    files.write_csv(path.with_suffix(".csv"), ["image"], [[image] for image in images])


def load_embeddings(path: Path) -> tuple[list[str], np.ndarray]:
    """Read what `save_embeddings` wrote; `UserError` where it makes no sense."""
    try:
        if path.suffix == ".parquet":
            table = _pandas().read_parquet(path, columns=["image", "embedding"])
            images, rows = table["image"].tolist(), np.stack(table["embedding"].tolist())
        else:
            rows = np.load(path, allow_pickle=False)
            with path.with_suffix(".csv").open(encoding="utf-8", newline="") as lines:
                images = [files.plain_cell(row["image"]) for row in csv.DictReader(lines)]
    except UserError:
        raise
    except Exception as error:  # of numpy, of pyarrow: their types are not told
        raise UserError(f"{path}: no embeddings of python -m tools.embed ({error})") from error
    if rows.ndim != 2 or rows.dtype != np.float32 or len(rows) != len(images) or not rows.size:
        raise UserError(f"{path}: {rows.dtype} {rows.shape} for {len(images)} photos")
    return images, rows


def _pandas() -> Any:
    import pandas as pd

    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        way_out = f"{install_line('identity')}, or name a file .npy"
        raise UserError(f".parquet needs pyarrow: {way_out}") from error
    return pd
