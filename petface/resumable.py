"""Long tables that are written batch by batch and can go on after a kill."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from io import FileIO
from os.path import samestat
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from petface import files
from petface.errors import UserError

_Item = TypeVar("_Item")


def refuse_finished(path: Path, force: bool) -> None:
    """Raise `UserError` where a table is finished and `force` does not replace it."""
    if path.exists() and not force:
        _identity_path(path).unlink(missing_ok=True)  # its maker was killed before this was done
        raise UserError(f"{path} is a finished table; use --force or another folder")


def _identity_path(path: Path) -> Path:
    return path.with_name(path.name + ".identity.json")


class ResumableTable:
    """Rows go into `<path>.unfinished`, which becomes `path` at the end.

    A CSV with a `header`, or JSON lines without one. `identity` (JSON values) says what the rows
    depend on; it is kept beside the table, and an unfinished table is continued only where it is
    the same. A finished one is refused unless `force`, which starts over, and deletes the files
    `replaced` before the finished table; its own unfinished rows are continued, too.
    Use: enter, `batches_kept`, `write` for each further batch, `finish`.
    """

    def __init__(
        self,
        path: Path,
        header: Sequence[str] | None,
        identity: dict[str, Any],
        *,
        force: bool = False,
        replaced: Sequence[Path] = (),
    ) -> None:
        self.path, self.unfinished = path, path.with_name(path.name + ".unfinished")
        self._header = None if header is None else files.csv_line(header)
        self._identity, self._force = json.loads(json.dumps(identity)), force
        self._replaced = (*replaced, path)
        self._handle: FileIO

    def __enter__(self) -> ResumableTable:
        refuse_finished(self.path, self._force)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = FileIO(self.unfinished, "a+")
        except OSError as error:
            raise files.write_error(self.unfinished, error) from error
        try:
            holder = files.take(self._handle)
            own = os.fstat(self._handle.fileno())  # nobody may have finished it before it was held
            is_there = self.unfinished.exists() and samestat(own, self.unfinished.stat())
            if holder := holder or ("" if is_there else "another process"):
                raise UserError(f"{self.unfinished} is being written by {holder}")
            self._take_up()
        except BaseException:
            self._handle.close()
            raise
        return self

    def _take_up(self) -> None:
        """Keep an unfinished table of the same identity, else begin with an empty one."""
        found = None
        with suppress(FileNotFoundError, *((UserError,) if self._force else ())):
            found = files.read_json(_identity_path(self.path))
        if found is not None and found != self._identity and not self._force:
            both = {**found, **self._identity}
            what = [name for name in both if found.get(name) != self._identity.get(name)]
            raise UserError(
                f"{self.unfinished} was begun with other checkpoints, data or settings "
                f"({', '.join(what)}); use --force to start over, or another folder"
            )
        if found != self._identity:
            self._handle.truncate(0)
        for file in self._replaced if self._force else ():
            file.unlink(missing_ok=True)
        files.write_json(_identity_path(self.path), self._identity)

    def __exit__(self, *_: object) -> None:
        self._handle.close()

    def batches_kept(self, batch_sizes: Sequence[int], max_rows: int | None = None) -> int:
        """Cut the table back to whole batches, `max_rows` at most, and return how many it holds."""
        is_csv = self._header is not None
        ends = [] if is_csv else [0]  # byte offset after the header and after each whole row
        offset, in_quotes = 0, False  # in CSV a line break inside quotes does not end a row
        with self.unfinished.open("rb") as lines:
            for line in lines:
                offset += len(line)
                in_quotes ^= is_csv and line.count(b'"') % 2 == 1
                if not in_quotes and line.endswith(b"\n"):
                    ends.append(offset)
        if not ends:  # not even a header
            self._handle.truncate(0)
            self.write_lines(self._header or "")
            return 0
        num_rows = min(len(ends) - 1, len(ends) if max_rows is None else max_rows)
        totals = np.cumsum([0, *batch_sizes])
        num_batches = int(np.searchsorted(totals, num_rows, side="right")) - 1
        self._handle.truncate(ends[totals[num_batches]])
        return num_batches

    def write(self, rows: Sequence[Sequence[object]]) -> None:
        """Append whole rows in one write; text cells go through `files.safe_cell`."""
        self.write_lines("".join(files.csv_line(map(files.safe_cell, row)) for row in rows))

    def write_lines(self, text: str) -> None:
        """Append rows that are formatted already, in one write.

        On a full disk `UserError` names path and free bytes, and the table ends on a whole row.
        """
        self._append(text.encode("utf-8", "backslashreplace"))

    def take_in(self, part: Path) -> None:
        """Append the rows of another unfinished table with the same columns."""
        with part.open("rb") as rows:
            rows.seek(len((self._header or "").encode()))
            while block := rows.read(1 << 24):
                self._append(block)

    def _append(self, content: bytes) -> None:
        left = memoryview(content)
        begin = self._handle.seek(0, os.SEEK_END)
        try:
            while left:  # a nearly full disk takes a part first, then raises
                left = left[self._handle.write(left) :]
        except OSError as error:
            self._handle.truncate(begin)
            raise files.write_error(self.unfinished, error) from error

    def finish(self) -> None:
        """Flush to disk and give the table its final name."""
        os.fsync(self._handle.fileno())
        os.replace(self.unfinished, self.path)
        _identity_path(self.path).unlink(missing_ok=True)


class ResumableRecords:
    """Records of one size go into `<path>.unfinished`, and at the end into the .npy file `path`.

    Stands beside a `ResumableTable`, under its lock and identity: write here first, finish here
    first, and delete `unfinished` after the table is finished.
    """

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.path, self.dtype = path, dtype
        self.unfinished = path.with_name(path.name + ".unfinished")

    def num_kept(self) -> int:
        """Count the whole records that are there."""
        with suppress(FileNotFoundError):
            return self.unfinished.stat().st_size // self.dtype.itemsize
        return 0

    def write(self, first: int, records: np.ndarray) -> None:
        """Write records to the places from `first` on; what was behind them is cut off."""
        assert records.dtype == self.dtype
        try:
            with self.unfinished.open("r+b" if first else "wb") as handle:
                handle.truncate(first * self.dtype.itemsize)
                handle.seek(0, os.SEEK_END)
                handle.write(records.tobytes())
        except OSError as error:
            raise files.write_error(self.unfinished, error) from error

    def finish(self) -> None:
        """Write the .npy file, whole or not at all."""
        with files.atomic_write(self.path) as handle:
            np.save(handle, np.fromfile(self.unfinished, self.dtype))


def write_behind(
    items: Iterable[_Item], write: Callable[[_Item], None], *, waiting: int = 4
) -> None:
    """Call `write` for each of `items` in order, in a thread of its own, while the next is made.

    What it raises is raised here; nothing is written after that. Where `items` raises, what came
    before is written first. At most `waiting` items lie between the two.
    """

    def write_after(previous: Future[None], item: _Item) -> None:
        previous.result()  # done by now; what it raised is raised by all that follow
        write(item)

    with ThreadPoolExecutor(1, thread_name_prefix="write rows") as writer:
        between = deque([writer.submit(lambda: None)])
        for item in items:
            between.append(writer.submit(write_after, between[-1], item))
            if len(between) > waiting:
                between.popleft().result()
        between[-1].result()
