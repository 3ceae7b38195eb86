"""Find duplicates: records with identical files, and names that differ only in spelling."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final
from unicodedata import normalize

import numpy as np

from petface.data.catalog import Catalog
from petface.files import patiently, sha256_of_file
from petface.progress import progress

MAX_SHARING: Final = 5
_TAIL_BYTES: Final = 1024  # the checksums at a file's end tell most files of one size apart
_THREADS: Final = 16  # reading small pieces is waiting
_AT_ONCE: Final = 8192
_Groups = list[list[int]]


def identical_records(catalog: Catalog) -> np.ndarray:
    """Map each record to the first record that shares a file with it, directly or via others.

    Returns (R,) int64; a record that shares none maps to itself. Files are compared by content, so
    links count. Ignored are empty and unreadable files, and placeholders, which are files of more
    than `MAX_SHARING` records.
    """
    sizes = catalog.stamps(np.arange(len(catalog)))[:, 0]
    order = np.argsort(sizes, kind="stable")
    order = order[sizes[order] > 0]
    cuts = np.flatnonzero(np.diff(sizes[order])) + 1
    groups = [own.tolist() for own in np.split(order, cuts)]
    record = catalog.record_index
    for read in (_tail, sha256_of_file):
        groups = [own for own in groups if len({*record[own].tolist()}) > 1]
        groups = _regroup(groups, catalog, read)
    first = np.arange(catalog.num_records)

    def root(number: int) -> int:
        while first[number] != number:
            number = int(first[number])
        return number

    for group in groups:
        if not 1 < len({*record[group].tolist()}) <= MAX_SHARING:
            continue
        roots = [root(int(record[place])) for place in group]
        first[roots] = min(roots)
    return np.array([root(number) for number in range(len(first))], np.int64)


def _regroup(groups: _Groups, catalog: Catalog, read: Callable[[str], Any]) -> _Groups:
    """Split groups of images by what `read` returns of their files; drop unreadable ones."""

    def key(place: int) -> Any:
        path = catalog.path(place)
        try:
            return patiently(lambda: read(path), path)
        except OSError:
            return None

    asked = [(number, place) for number, group in enumerate(groups) for place in group]
    parts: dict[Any, list[int]] = {}
    bar = progress(total=len(asked), desc="identical files", delay=2.0, leave=False)
    with bar, ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(asked), _AT_ONCE):  # a million at once would take 2 GB
            some = asked[start : start + _AT_ONCE]
            values = pool.map(key, [place for _, place in some])
            for (number, place), value in zip(some, values, strict=True):
                if value is not None:
                    parts.setdefault((number, value), []).append(place)
            bar.update(len(some))
    return list(parts.values())


def _tail(path: str) -> bytes:
    with Path(path).open("rb") as handle:
        handle.seek(max(os.fstat(handle.fileno()).st_size - _TAIL_BYTES, 0))
        return hashlib.sha256(handle.read()).digest()


def spelling(name: str) -> str:
    """Normalise a name so that case, blanks, width and composition do not matter."""
    return " ".join(normalize("NFKC", name).casefold().split())


def spelling_twins(names: Iterable[str]) -> list[Sequence[str]]:
    """Group the names that differ only in spelling."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(spelling(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]
