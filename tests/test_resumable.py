"""A table killed after any byte goes on to the same bytes; nobody else's rows are touched."""

from __future__ import annotations

import csv
import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from petface.errors import UserError
from petface.resumable import ResumableRecords, ResumableTable, write_behind

HEADER = ("image", "label", "correct")
RECORD = np.dtype([("number", "<i2"), ("pair", "<f4", (2,))])
IDENTITY = {"stage1": "abc", "batch_size": 2, "specialists": {"cat": None}}
BATCHES = [
    [["a.png", "Bulldog, Olde mix", 1], ["b.png", 'two\nlines "x"\n', 0]],
    [["c\rd.png", "=1+1", ""]],
    [["", '"', ""], ["naïve 🐈.png", "x\r\ny", 1], ["e.png", "'", 0]],
]


def go_on(path: Path, identity: dict[str, Any] = IDENTITY, **options: Any) -> int:
    """Write what is missing; give how many batches were there."""
    with ResumableTable(path, HEADER, identity, **options) as table:
        kept = table.batches_kept([len(batch) for batch in BATCHES])
        for batch in BATCHES[kept:]:
            table.write(batch)
        table.finish()
    return kept


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "rows.csv"


@pytest.fixture
def unfinished(path: Path) -> Path:
    """A table whose writer was killed before its last batch."""
    with ResumableTable(path, HEADER, IDENTITY) as table:
        assert table.batches_kept([2, 1, 3]) == 0
        for batch in BATCHES[:2]:
            table.write(batch)
    return table.unfinished


def test_straight(path: Path) -> None:
    assert go_on(path) == 0
    with path.open(newline="", encoding="utf-8") as handle:
        header, *rows = csv.reader(handle)
    assert header == list(HEADER)
    assert [row[0] for row in rows] == [row[0] for batch in BATCHES for row in batch]
    assert rows[1][1] == 'two\nlines "x"\n' and rows[2][1] == "'=1+1"
    assert list(path.parent.iterdir()) == [path]


def test_killed_after_any_byte(path: Path) -> None:
    go_on(path)
    whole = path.read_bytes()
    ends = [len(whole)]
    for batch in reversed(BATCHES):
        table = ResumableTable(path.with_name("part.csv"), HEADER, IDENTITY, force=True)
        with table:
            table.write(batch)
        ends.insert(0, ends[0] - table.unfinished.stat().st_size)
    for place in range(len(whole) + 1):
        path.unlink(missing_ok=True)
        with ResumableTable(path, HEADER, IDENTITY) as table:
            pass
        table.unfinished.write_bytes(whole[:place])
        kept = go_on(path)
        assert path.read_bytes() == whole, place
        assert kept == max(sum(end <= place for end in ends) - 1, 0), place


def test_a_finished_table_is_refused(path: Path) -> None:
    go_on(path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"rows\.csv is a finished table; use --force"):
        go_on(path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    assert go_on(path, force=True) == 0
    assert path.read_bytes() == before


def test_with_force_the_old_table_stands_until_the_new_one_is_whole(path: Path) -> None:
    go_on(path)
    before = path.read_bytes()
    with ResumableTable(path, HEADER, {"other": 1}, force=True) as table:
        table.batches_kept([2])
        table.write([["x", "y", 1]])
    assert path.read_bytes() == before


def test_another_identity_is_refused(path: Path, unfinished: Path) -> None:
    before = unfinished.read_bytes()
    with pytest.raises(UserError, match=r"begun with other checkpoints.*--force"):
        go_on(path, {**IDENTITY, "stage1": "abd"})
    assert unfinished.read_bytes() == before
    assert go_on(path) == 2


def test_rows_of_unknown_identity_are_not_continued(path: Path, unfinished: Path) -> None:
    path.with_name("rows_identity.json").unlink()
    assert unfinished.exists() and go_on(path) == 0


def test_rows_beyond_the_plan_are_cut(path: Path, unfinished: Path) -> None:
    with ResumableTable(path, HEADER, IDENTITY) as table:
        assert table.batches_kept([2]) == 1
    assert unfinished.read_bytes().count(b".png") == 2


def test_header_only(path: Path) -> None:
    with ResumableTable(path, HEADER, IDENTITY) as table:
        assert table.batches_kept([]) == 0
        assert table.batches_kept([2, 1]) == 0  # again: nothing is written twice
        table.finish()
    assert path.read_bytes() == b"image,label,correct\n"


def test_a_second_writer_is_refused(path: Path, unfinished: Path) -> None:
    before = unfinished.read_bytes()
    with ResumableTable(path, HEADER, IDENTITY):
        for force in (False, True):
            with pytest.raises(UserError, match="is being written by"):
                go_on(path, force=force)
        lock = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        other = subprocess.run([sys.executable, "-c", lock, unfinished], capture_output=True)
        assert b"BlockingIOError" in other.stderr  # another process, too
    assert unfinished.read_bytes() == before
    assert go_on(path) == 2


@pytest.mark.parametrize("force", [False, True])
def test_a_table_finished_in_the_meantime_is_left_alone(
    path: Path, force: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first writer finishes between the second one's opening and locking."""
    lock = fcntl.flock
    with ResumableTable(path, HEADER, IDENTITY) as first:
        first.batches_kept([2])
        first.write(BATCHES[0])

        def finish_first(*arguments: Any) -> None:
            first.finish()
            first._handle.close()
            lock(*arguments)

        monkeypatch.setattr(fcntl, "flock", finish_first)
        with pytest.raises(UserError, match="is being written by another process"):
            go_on(path, force=force)
    assert path.read_bytes().count(b".png") == 2


class NearlyFull(FileIO):
    """A file on a disk with room for a few bytes."""

    room = 10

    def write(self, data: Any) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = super().write(bytes(data)[: self.room])
        self.room -= written
        return written


def test_a_full_disk_leaves_whole_rows(path: Path, unfinished: Path) -> None:
    before = unfinished.read_bytes()
    with ResumableTable(path, HEADER, IDENTITY) as table:
        assert table.batches_kept([2, 1, 3]) == 2
        table._handle.close()
        table._handle = NearlyFull(unfinished, "a+")
        with pytest.raises(UserError, match=r"rows\.csv\.unfinished: No space left.*bytes free"):
            table.write(BATCHES[2])
    assert unfinished.read_bytes() == before
    assert go_on(path) == 2


def test_short_writes_are_continued(path: Path) -> None:
    with ResumableTable(path, HEADER, IDENTITY) as table:
        table.batches_kept([2])
        table._handle.close()
        table._handle = NearlyFull(table.unfinished, "a+")
        table._handle.write = lambda data: FileIO.write(table._handle, bytes(data)[:3])
        table.write(BATCHES[0])
        table.finish()
    assert b'"Bulldog, Olde mix",1\n' in path.read_bytes()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot write .*bytes free"):
        go_on(tmp_path / "file" / "rows.csv")


def test_records_survive_stops(tmp_path: Path) -> None:
    path, wanted = tmp_path / "x.npy", np.zeros(10, RECORD)
    wanted["number"], wanted["pair"][:, 1] = np.arange(10), 7
    new = lambda: ResumableRecords(path, RECORD, 10)  # noqa: E731
    assert new().num_kept() == 0
    first = new()
    first.begin(0)
    first.write(0, wanted[:4])
    first.write(4, wanted[4:7])
    with first.unfinished.open("ab") as handle:
        handle.write(b"torn")
    second = new()
    assert second.num_kept() == 7
    second.begin(4)  # the table beside it kept fewer
    assert new().num_kept() == 4
    second.write(4, wanted[4:])
    second.finish()
    assert np.array_equal(np.load(path), wanted) and not second.unfinished.exists()
    assert new().num_kept() == 10, "stopped between this rename and the table's"
    assert new().unfinished.exists() and not path.exists()
    assert ResumableRecords(path, RECORD, 11).num_kept() == 0, "another number of images"


def test_items_are_written_in_order_by_another_thread() -> None:
    written: list[tuple[int, bool]] = []
    main = threading.main_thread()
    write_behind(range(50), lambda n: written.append((n, threading.current_thread() is main)))
    assert written == [(n, False) for n in range(50)]


def test_what_the_writer_raises_surfaces_and_nothing_is_written_after_it() -> None:
    written, made = [], []

    def make():
        for n in range(10_000):
            made.append(n)
            yield n

    def write(n: int) -> None:
        if n == 5:
            raise OSError("disk full")
        written.append(n)

    with pytest.raises(OSError, match="disk full"):
        write_behind(make(), write, waiting=2)
    assert written == [0, 1, 2, 3, 4] and len(made) < 10_000
    assert not [t for t in threading.enumerate() if t.name.startswith("write rows")]


def test_where_the_maker_raises_what_came_before_is_written() -> None:
    written = []

    def make():
        yield from range(3)
        raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        write_behind(make(), lambda n: (time.sleep(0.01), written.append(n)))
    assert written == [0, 1, 2]


def test_no_more_than_a_few_items_wait() -> None:
    most, made, written = [0], [0], [0]

    def make():
        for n in range(30):
            made[0] += 1
            most[0] = max(most[0], made[0] - written[0])
            yield n

    def write(_: int) -> None:
        time.sleep(0.002)
        written[0] += 1

    write_behind(make(), write, waiting=2)
    assert written[0] == 30 and most[0] <= 2 + 2  # one being written, one just made


RECORDS = np.array([(1, 0.5), (2, 0.25), (3, 0.125)], [("label", "<i4"), ("p", "<f4")])


@pytest.mark.parametrize("slices", [[3], [1, 2], [1, 1, 1], []])
@pytest.mark.parametrize("kill_after", [0, 1, 2])
def test_records_are_one_npy_file_however_they_were_cut(tmp_path, slices, kill_after):
    """One slice too has its header; what was half written is cut off."""
    path, place = tmp_path / "answers.npy", 0
    whole = RECORDS[: sum(slices)]
    table = ResumableRecords(path, RECORDS.dtype, len(whole))
    assert table.num_kept() == 0
    table.begin(0)
    for number, size in enumerate(slices):
        if number == kill_after:
            with table.unfinished.open("ab") as handle:
                handle.write(b"abc")
            table = ResumableRecords(path, RECORDS.dtype, len(whole))
            assert table.num_kept() == place
            table.begin(place)
        table.write(place, whole[place : place + size])
        place += size
    table.finish()
    assert np.load(path).tolist() == whole.tolist() and list(tmp_path.iterdir()) == [path]
    assert ResumableRecords(path, RECORDS.dtype, 9).num_kept() == 0  # of another plan
