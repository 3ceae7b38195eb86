"""Known animals, and who of them a photo shows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from petface import files
from petface.data.catalog import listed_files, strict_rows
from petface.data.loading import FileImages
from petface.errors import UserError
from petface.identity.embed import Embedder
from petface.inference.predict import find_photos

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

    def answers(
        self,
        groups: Sequence[Sequence[str]],
        rows: np.ndarray,
        topk: int,
        threshold: float | None,
    ) -> list[dict[str, Any]]:
        """Name the animal of each group of photos, whose embeddings (n, D) stand in their order.

        The photos of a group are fused. "animal" is "unknown" where the most similar one does not
        reach the threshold; None = it always does. `topk` holds (animal, similarity). Where no
        photo of a group could be read, "status" says so. Ready for JSON.
        """
        number = np.repeat(np.arange(len(groups)), [*map(len, groups)])
        good = np.isfinite(rows).all(axis=1)
        is_there = np.bincount(number[good], minlength=len(groups)) > 0
        asked = fuse(rows[good], number[good], len(groups))
        places, values = search(asked, self.embeddings, topk)
        found: list[dict[str, Any]] = []
        for k, photos in enumerate(groups):
            if not is_there[k]:
                found.append({"photos": [*photos], "status": "unreadable"})
                continue
            best = [*zip((self.animals[p] for p in places[k]), values[k].tolist(), strict=True)]
            is_known = threshold is None or best[0][1] >= threshold
            animal = best[0][0] if is_known else UNKNOWN_ANIMAL
            found.append({"photos": [*photos], "status": "ok", "animal": animal, "topk": best})
        return found


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


def open_gallery(place: str | Path, embedder: Embedder, **how: Any) -> Gallery:
    """Make a gallery of a folder, <animal>/<photo>, or of embeddings; see `embed_photos`."""
    if Path(place).is_dir():
        found, _ = find_photos([str(place)])
        names = [os.path.relpath(photo, place) for photo in found]
        rows = embed_files(embedder, found, title="gallery", **how)
    else:
        names, rows = load_embeddings(Path(place), embedder.sha256)
    animals = [os.path.dirname(name) or Path(name).stem for name in names]  # noqa: PTH120
    return Gallery.of_photos(rows, animals)


def embed_files(embedder: Embedder, photos: Sequence[str], **how: Any) -> np.ndarray:
    """Embed photo files: (n, D), NaN where one cannot be read."""
    source = FileImages(listed_files(Path.cwd(), photos), embedder.network.preprocessing)
    return embedder.embed(source, np.arange(len(photos)), **how)


# ---- Files: a .npy, and a .csv of the same name with the photo of each row ----


def save_embeddings(path: Path, photos: Sequence[str], rows: np.ndarray, sha256: str) -> None:
    """Write (n, D) float32, the photo of each row, and of what network they are."""
    if path.suffix != ".npy":
        raise UserError(f"{path}: embeddings are written as .npy; name such a file")
    with files.atomic_write(path) as handle:
        np.save(handle, rows)
    cells = ([photo, sha256] for photo in photos)
    files.write_csv(path.with_suffix(".csv"), ["image", "network"], cells)


def load_embeddings(path: Path, sha256: str) -> tuple[list[str], np.ndarray]:
    """Read what `save_embeddings` wrote; `UserError` where it is broken or of another network."""
    try:
        rows = np.load(path, allow_pickle=False)
        lines = [cells for _, cells in strict_rows(path.with_suffix(".csv"))][1:]
        photos, networks = zip(*lines, strict=True)
    except (OSError, ValueError) as error:  # a UserError, too
        what = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: no embeddings of python -m tools.embed ({what})") from error
    if rows.dtype != np.float32 or rows.ndim != 2 or len(rows) != len(photos) or not rows.size:
        raise UserError(f"{path}: {rows.dtype} {rows.shape} for {len(photos)} photos; embed again")
    if {*networks} != {sha256}:
        raise UserError(f"{path}: embeddings of another network than this one; embed again")
    return [files.plain_cell(photo) for photo in photos], rows
