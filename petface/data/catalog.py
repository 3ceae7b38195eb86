"""Image tables in a few arrays that loader workers share, and strict reading of CSV files."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from petface import files
from petface.errors import UserError
from petface.progress import progress

MAX_SHARING: Final = 5
_WIDE_ARRAY_CHARACTERS = 16_000_000  # 64 MB at four bytes a character
_TAIL_BYTES: Final = 1024  # the checksums at a file's end tell most files of one size apart
_THREADS: Final = 16  # reading small pieces is waiting
_FILES_PER_TASK: Final = 512  # a million tasks would take 2 GB


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

    def records_of(self, class_name: str) -> np.ndarray:
        """Return the names of the records of one class, in order: (n,) str."""
        return self.record_names[self.record_class == self.classes.index(class_name)]

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


def build_catalog(
    root: str | bytes | Path, records: Iterable[tuple[str, str, Sequence[bytes]]]
) -> Catalog:
    """Build a catalog of ascending (class, record, relative paths) in about its own memory.

    A record without images is not kept.
    """
    names: list[tuple[str, str]] = []
    sizes, offsets, paths = array("q"), array("q", [0]), bytearray()
    for class_name, record, images in records:
        if not images:
            continue
        assert not names or names[-1] < (class_name, record), "not in order"
        names.append((class_name, record))
        sizes.append(len(images))
        for path in images:
            paths += path
            offsets.append(len(paths))
    classes = tuple(sorted({name for name, _ in names}))
    assert len(classes) <= np.iinfo(np.int16).max, "too many classes for int16"
    number = {name: place for place, name in enumerate(classes)}
    record_class = np.array([number[name] for name, _ in names], dtype=np.int16)
    record_index = np.repeat(np.arange(len(names), dtype=np.int32), sizes)
    return Catalog(
        root=os.fsencode(os.path.abspath(root)),
        classes=classes,
        path_bytes=np.frombuffer(paths, dtype=np.uint8),
        path_offsets=np.array(offsets, dtype=np.int64),
        class_index=record_class[record_index],
        record_index=record_index,
        record_names=string_array([record for _, record in names]),
        record_class=record_class,
    )


def listed_files(root: str | Path, names: Sequence[str]) -> Catalog:
    """List the given files below `root` as images of one record, in the given order."""
    return build_catalog(root, [("", "", [os.fsencode(name) for name in names])])


def identical_records(catalog: Catalog) -> np.ndarray:
    """Map each record to the first record that shares a file with it, directly or via others.

    Returns (R,) int64; a record that shares none maps to itself. Files are compared by content, so
    links count. Ignored are empty and unreadable files, and placeholders, which are files of more
    than `MAX_SHARING` records.
    """
    import pandas  # loading processes do not need it
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    sizes = catalog.stamps(np.arange(len(catalog)))[:, 0]
    images = pandas.DataFrame({"record": catalog.record_index, "content": sizes})[sizes > 0]
    for read in (_tail, files.sha256_of_file):
        num = images.groupby("content")["record"].transform("nunique")
        images = images[num > 1]
        images = images.assign(content=_read_all(catalog, images.index.to_numpy(), read)).dropna()
    of_content = images.groupby("content")["record"]
    images = images.assign(first=of_content.transform("min"), num=of_content.transform("nunique"))
    images = images[images["num"] <= MAX_SHARING]
    ends, shape = (images["record"], images["first"]), (catalog.num_records,) * 2
    links = coo_array((np.ones(len(images)), ends), shape)
    _, group = connected_components(links, directed=False)
    return np.unique(group, return_index=True)[1][group]


def _read_all(catalog: Catalog, places: np.ndarray, read: Callable[[str], str]) -> np.ndarray:
    """Return what `read` makes of the files at `places`, (n,) str; None for unreadable ones."""

    def contents(part: np.ndarray) -> list[str | None]:
        found: list[str | None] = []
        for path in map(catalog.path, part.tolist()):
            try:
                found.append(files.patiently(partial(read, path), path))
            except OSError:
                found.append(None)
        return found

    parts = np.array_split(places, len(places) // _FILES_PER_TASK + 1)
    found: list[str | None] = []
    bar = progress(total=len(places), desc="identical files", delay=2.0, leave=False)
    with bar, ThreadPoolExecutor(_THREADS) as pool:
        for some in pool.map(contents, parts):
            found += some
            bar.update(len(some))
    return np.array(found, object)


def _tail(path: str) -> str:
    with Path(path).open("rb") as handle:
        handle.seek(max(os.fstat(handle.fileno()).st_size - _TAIL_BYTES, 0))
        return hashlib.sha256(handle.read()).hexdigest()[:16]


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
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise line_error(path, _line_at(data, error.start), what) from error
    width, line = 0, 1
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for cells in reader:
            if "".join(cells).strip() or len(cells) not in (0, 1, width):
                width = width or len(cells)
                if len(cells) != width:
                    what = (
                        f"{len(cells)} cells where the header has {width}; quote labels with commas"
                    )
                    raise line_error(path, line, what)
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        what = f"the row that begins here is not valid CSV ({error}); is a quote unclosed?"
        raise line_error(path, line, what) from error
    if not width:
        raise UserError(f"{path} is empty; it needs a header with a Name column")


def line_error(path: str | Path, line: int, what: str) -> UserError:
    """Return an error that names the file and line the user should fix."""
    return UserError(f"{path}, line {line}: {what}")


def _line_at(data: bytes, position: int) -> int:
    return 1 + len(re.findall(rb"\r\n|\r|\n", data[:position]))
