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
from petface.errors import UserError, short
from petface.identity.embed import Embedder, checked
from petface.inference.predict import find_photos

UNKNOWN_ANIMAL: Final = "unknown"
_BLOCK: Final = 100_000  # rows of the gallery at once: 200 MB of 512 numbers


@dataclass(frozen=True, eq=False)
class Gallery:
    """One unit embedding (A, D) for each known animal, the mean of its photos'."""

    animals: tuple[str, ...]
    embeddings: np.ndarray
    note: str = ""  # what was left out

    @classmethod
    def of_photos(cls, embeddings: np.ndarray, animals: Sequence[str]) -> Gallery:
        """Fuse the photos (n, D) of each animal; photos that could not be read are left out."""
        good, listed = np.isfinite(embeddings).all(axis=1), np.array(animals, object).astype(str)
        names, number = np.unique(listed[good], return_inverse=True)
        if not len(names):
            raise UserError("the gallery holds no photo that can be read")
        lost = [short(name) for name in np.setdiff1d(listed, names).tolist()]
        note = f"the gallery has {(~good).sum()} photos that cannot be read"
        note += f"; {len(lost)} animals are not in it: {', '.join(lost[:5])}" * bool(lost)
        fused = fuse(embeddings[good], number, len(names))
        return cls(tuple(names.tolist()), fused, "" if good.all() else note)

    def answers(
        self,
        groups: Sequence[Sequence[str]],
        rows: np.ndarray,
        topk: int,
        threshold: float | None,
    ) -> list[dict[str, Any]]:
        """Name the animal of each group of photos, whose embeddings (n, D) stand in their order.

        The photos of a group are fused. "animal" is "unknown" where the most similar one does not
        reach the threshold; None = it always does. `topk` holds (animal, similarity). Where a group
        has no embedding, "status" is "unreadable" or "non_finite". Ready for JSON.
        """
        number = np.repeat(np.arange(len(groups)), [*map(len, groups)])
        good = np.isfinite(rows).all(axis=1)
        is_there = np.bincount(number[good], minlength=len(groups)) > 0
        size = self.embeddings.shape[1]
        if good.any() and rows.shape[1] != size:
            raise UserError(f"the gallery has {size} numbers a photo, not {rows.shape[1]}")
        asked = fuse(rows[good].reshape(-1, size), number[good], len(groups))
        places, values = search(asked, self.embeddings, topk)
        found: list[dict[str, Any]] = []
        for k, photos in enumerate(groups):
            if not is_there[k]:
                status = "non_finite" if np.isinf(rows[number == k]).any() else "unreadable"
                found.append({"photos": [*photos], "status": status})
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
    values, places = [], []
    for start in range(0, len(gallery), _BLOCK):
        found = asked @ torch.from_numpy(gallery[start : start + _BLOCK]).T
        best = found.topk(min(topk, found.shape[1]), dim=1)
        values.append(best.values)
        places.append(best.indices + start)
    best = torch.cat(values, dim=1).topk(topk, dim=1)
    return torch.cat(places, dim=1).gather(1, best.indices).numpy(), best.values.numpy()


def open_gallery(place: str | Path, embedder: Embedder, **how: Any) -> Gallery:
    """Make a gallery of a folder, <animal>/<photo>, or of embeddings; see `Embedder.embed`."""
    if Path(place).is_dir():
        found, _ = find_photos([str(place)])
        names = [os.path.relpath(photo, place) for photo in found]
        rows = checked(embed_files(embedder, found, title="gallery", **how), embedder.name)
    else:
        names, rows = load_embeddings(Path(place), embedder.sha256)
    animals = [os.path.dirname(name) or Path(name).stem for name in names]  # noqa: PTH120
    return Gallery.of_photos(rows, animals)


def embed_files(embedder: Embedder, photos: Sequence[str], **how: Any) -> np.ndarray:
    """Embed photo files: (n, D), NaN where one cannot be read."""
    source = FileImages(listed_files(Path.cwd(), photos), embedder.network.preprocessing)
    return embedder.embed(source, np.arange(len(photos)), **how)


def check_place(path: Path) -> None:
    """Refuse a file that is no .npy, and one whose .csv would replace somebody's own."""
    if path.suffix != ".npy":
        raise UserError(f"{path}: embeddings are written as .npy; name such a file")
    table = path.with_suffix(".csv")
    if table.exists() and not path.exists():
        raise UserError(f"{table} is in the way and no table of embeddings; take another name")


def save_embeddings(path: Path, photos: Sequence[str], rows: np.ndarray, sha256: str) -> None:
    """Write (n, D) float32; the photo of each row, and its network, into a .csv beside it."""
    check_place(path)
    path.with_suffix(".csv").unlink(missing_ok=True)  # never old names beside new numbers
    with files.atomic_write(path) as handle:
        np.save(handle, rows)
    cells = ([photo, sha256] for photo in photos)
    files.write_csv(path.with_suffix(".csv"), ["image", "network"], cells)


def load_embeddings(path: Path, sha256: str) -> tuple[list[str], np.ndarray]:
    """Read what `save_embeddings` wrote; `UserError` where it is broken or of another network."""
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder")
    try:
        with path.open("rb") as handle:
            rows = np.lib.format.read_array(handle, allow_pickle=False)
        lines = [cells for _, cells in strict_rows(path.with_suffix(".csv"))][1:]
        photos, networks = zip(*lines, strict=True)
    except (OSError, ValueError) as error:  # a UserError, too
        what = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: no embeddings of python -m tools.embed ({what})") from error
    if rows.dtype != np.float32 or rows.ndim != 2 or len(rows) != len(photos) or not rows.size:
        raise UserError(f"{path}: {rows.dtype} {rows.shape} for {len(photos)} photos; embed again")
    if {*networks} != {sha256}:
        raise UserError(f"{path}: embeddings of another network than this one; embed again")
    if not (np.einsum("nd,nd->n", rows, rows) < 1.01).all():  # nor NaN
        raise UserError(f"{path}: rows that are not of length 1; embed again")
    return [files.plain_cell(photo) for photo in photos], rows
