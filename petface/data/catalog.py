"""Image tables in a few arrays that loader workers share, and strict reading of CSV files."""

from __future__ import annotations

import csv
import io
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from petface import files
from petface.errors import UserError

_WIDE_ARRAY_CHARACTERS = 16_000_000  # 64 MB at four bytes a character


@dataclass(frozen=True, eq=False)
class Catalog:
    """N images of R records, ordered by class, then record, then path.

    Paths are bytes, because a file name need not be UTF-8. Class and record names are text.
    """

    root: bytes  # absolute folder; every path is relative to it
    classes: tuple[str, ...]  # sorted
    path_bytes: np.ndarray  # (total length of all paths,) uint8
    path_offsets: np.ndarray  # (N + 1,) int64
    class_index: np.ndarray  # (N,) int16
    record_index: np.ndarray  # (N,) int32, into the two arrays below
    record_names: np.ndarray  # (R,) str, canonical, sorted inside each class
    record_class: np.ndarray  # (R,) int16

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.class_index)

    @property
    def num_records(self) -> int:
        """Return the number of records, each of which is in exactly one class."""
        return len(self.record_names)

    def relative_path(self, i: int) -> bytes:
        """Return the path of image `i` relative to the root, in the file system's spelling."""
        start, end = self.path_offsets[i : i + 2]
        return self.path_bytes[start:end].tobytes()

    def path(self, i: int) -> str:
        """Return the absolute path of image `i`; undecodable bytes become surrogate escapes."""
        return os.fsdecode(os.path.join(self.root, self.relative_path(i)))  # noqa: PTH118 (hot)

    def stamps(self, places: np.ndarray) -> np.ndarray:
        """Return size and mtime in ns of the files at `places`: (n, 2) int64; -1, 0 if missing."""

        def stamp(place: int) -> tuple[int, int]:
            path = self.path(place)
            try:
                found = files.patiently(partial(os.stat, path), path)
            except OSError:
                return -1, 0
            return found.st_size, found.st_mtime_ns

        return np.array([*map(stamp, places.tolist())], np.int64).reshape(-1, 2)


class CatalogBuilder:
    """Collect records in ascending order, then `build` the catalog in about its own memory."""

    def __init__(self, root: str | bytes | Path) -> None:
        self._root = os.fsencode(os.path.abspath(root))
        self._records: list[tuple[str, str]] = []  # class and name
        self._sizes = array("q")  # images of each record
        self._paths, self._offsets = bytearray(), array("q", [0])

    def add(self, class_name: str, record: str, relative_paths: Iterable[bytes]) -> None:
        """Add the images of the next record in order; a record without images is not kept."""
        if not (paths := sorted(relative_paths)):
            return
        assert not self._records or self._records[-1] < (class_name, record), "not in order"
        self._records.append((class_name, record))
        self._sizes.append(len(paths))
        for path in paths:
            self._paths += path
            self._offsets.append(len(self._paths))

    def build(self) -> Catalog:
        """Return the catalog, ordered by class, record and path."""
        classes = tuple(sorted({name for name, _ in self._records}))
        assert len(classes) <= np.iinfo(np.int16).max, "too many classes for int16"
        number = {name: place for place, name in enumerate(classes)}
        record_class = np.array([number[name] for name, _ in self._records], dtype=np.int16)
        record_index = np.repeat(np.arange(len(self._records), dtype=np.int32), self._sizes)
        return Catalog(
            root=self._root,
            classes=classes,
            path_bytes=np.frombuffer(self._paths, dtype=np.uint8),
            path_offsets=np.array(self._offsets, dtype=np.int64),
            class_index=record_class[record_index],
            record_index=record_index,
            record_names=string_array([record for _, record in self._records]),
            record_class=record_class,
        )


def listed_files(root: str | Path, names: Sequence[str]) -> Catalog:
    """List the given files below `root` as images of one record, in the given order."""
    paths = [os.fsencode(name) for name in names]
    zeros = np.zeros(len(paths), np.int32)
    return Catalog(
        root=os.fsencode(os.path.abspath(root)),
        classes=("",),
        path_bytes=np.frombuffer(b"".join(paths), np.uint8),
        path_offsets=np.cumsum([0, *map(len, paths)]).astype(np.int64),
        class_index=zeros.astype(np.int16),
        record_index=zeros,
        record_names=string_array([""]),
        record_class=np.zeros(1, np.int16),
    )


def string_array(names: Sequence[str]) -> np.ndarray:
    """Build a (len,) array of text.

    Its dtype has a fixed width, or is object if one long name would make every row wide.
    """
    width = max(map(len, names), default=1)
    if width * len(names) > _WIDE_ARRAY_CHARACTERS:
        wide = np.empty(len(names), dtype=object)
        wide[:] = names
        return wide
    return np.array(names, dtype=f"U{max(width, 1)}")


def strict_rows(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (first line, cells) of every row that is not blank, header first.

    Raises `UserError` with file and line for bytes that are not UTF-8, a NUL byte, an unclosed
    quote, or a row whose length differs from the header's. An empty file raises it, too.
    """
    if Path(path).exists() and not Path(path).is_file():  # a pipe or a device may never end
        raise UserError(f"cannot read {path}: it is not a regular file")
    try:
        data = files.patiently(Path(path).read_bytes, path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if (position := data.find(b"\0")) >= 0:
        raise line_error(path, _line_at(data, position), "a NUL byte; save the file as UTF-8 text")
    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise line_error(path, _line_at(data, error.start), what) from error
    width, line = 0, 1
    reader = csv.reader(
        io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline=""), strict=True
    )
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            what = f"the row that begins here is not valid CSV ({error}); is a quote unclosed?"
            raise line_error(path, line, what) from error
        if cells is None:
            break
        if _is_blank(cells, width):
            continue
        width = width or len(cells)
        if len(cells) != width:
            what = f"{len(cells)} cells where the header has {width}; quote labels with commas"
            raise line_error(path, line, what)
        yield line, cells
    if not width:
        raise UserError(f"{path} is empty; it needs a header with a Name column")


def line_error(path: str | Path, line: int, what: str) -> UserError:
    """Return an error that names the file and line the user should fix."""
    return UserError(f"{path}, line {line}: {what}")


def _is_blank(cells: list[str], width: int) -> bool:
    """Check for a blank line, or a row of as many blank cells as the header has cells."""
    if cells and cells[0].strip():
        return False
    return len(cells) in (0, 1, width) and not any(cell.strip() for cell in cells)


def _line_at(data: bytes, position: int) -> int:
    return 1 + len(re.findall(rb"\r\n|\r|\n", data[:position]))
