"""A table killed after any byte goes on to the same bytes; nobody else's rows are touched."""

from __future__ import annotations

import csv
import errno
import fcntl
import threading
import time
from io import FileIO

import numpy as np
import pytest

from petface.errors import UserError
from petface.resumable import ResumableRecords, ResumableTable, write_behind

HEADER = ("image", "label", "correct")
IDENTITY = {"stage1": "abc", "batch_size": 2, "specialists": {"cat": None}}
BATCHES = [
    [["a.png", "Bulldog, Olde mix", 1], ["b.png", 'two\nlines "x"\n', 0]],
    [["c\rd.png", "=1+1", ""]],
    [["", '"', ""], ["naïve 🐈.png", "x\r\ny", 1], ["e.png", "'", 0]],
]


def go_on(path, identity=IDENTITY, **options):
    """Write what is missing; give how many batches were there."""
    with ResumableTable(path, HEADER, identity, **options) as table:
        kept = table.batches_kept([len(batch) for batch in BATCHES])
        for batch in BATCHES[kept:]:
            table.write(batch)
        table.finish()
    return kept


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "rows.csv"


@pytest.fixture
def unfinished(path):
    """A table whose writer was killed before its last batch."""
    with ResumableTable(path, HEADER, IDENTITY) as table:
        assert table.batches_kept([2, 1, 3]) == 0
        for batch in BATCHES[:2]:
            table.write(batch)
    return table.unfinished


def test_straight(path):
    assert go_on(path) == 0
    with path.open(newline="", encoding="utf-8") as handle:
        header, *rows = csv.reader(handle)
    assert header == list(HEADER)
    assert [row[0] for row in rows] == [row[0] for batch in BATCHES for row in batch]
    assert rows[1][1] == 'two\nlines "x"\n' and rows[2][1] == "'=1+1"
    assert list(path.parent.iterdir()) == [path]


def test_killed_after_any_byte(path):
    go_on(path)
    whole, sizes = path.read_bytes(), []
    for number, batch in enumerate(BATCHES):
        with ResumableTable(path.with_name(f"part{number}.csv"), HEADER, IDENTITY) as table:
            table.write(batch)
        sizes.append(table.unfinished.stat().st_size)
    ends = np.cumsum(sizes) + len(whole) - sum(sizes)
    for place in range(len(whole) + 1):
        path.unlink(missing_ok=True)
        with ResumableTable(path, HEADER, IDENTITY) as table:
            pass
        table.unfinished.write_bytes(whole[:place])
        assert go_on(path) == (ends <= place).sum(), place
        assert path.read_bytes() == whole, place


def test_a_finished_table_goes_first_under_force_which_goes_on_with_its_own_rows(path):
    go_on(path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"rows\.csv is a finished table; use --force"):
        go_on(path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    summary = path.with_name("summary.json")
    for identity, kept in (({"other": 1}, 0), (IDENTITY, 0), (IDENTITY, 1)):
        summary.write_text("old")
        with ResumableTable(path, HEADER, identity, force=True, replaced=[summary]) as table:
            assert not path.exists() and not summary.exists()
            assert table.batches_kept([2, 1, 3]) == kept
            table.write(BATCHES[kept])
    assert go_on(path, force=True) == 2
    assert path.read_bytes() == before


@pytest.mark.usefixtures("unfinished")
def test_tables_of_one_name_and_two_kinds_do_not_meet(path):
    other = path.with_suffix(".jsonl")
    with ResumableTable(other, None, {"photos": "others"}) as table:
        assert table.batches_kept([2]) == 0
        table.write_lines("{}\n")
    assert go_on(path) == 2


def test_another_identity_is_refused_and_none_begins_anew(path, unfinished):
    before = unfinished.read_bytes()
    with pytest.raises(UserError, match=r"begun with other checkpoints.*--force"):
        go_on(path, {**IDENTITY, "stage1": "abd"})
    assert unfinished.read_bytes() == before
    with ResumableTable(path, HEADER, IDENTITY) as table:
        assert table.batches_kept([2, 1, 3]) == 2
    path.with_name("rows.csv.identity.json").unlink()
    assert unfinished.exists() and go_on(path) == 0


@pytest.mark.parametrize(
    ("sizes", "max_rows", "kept", "rows"),
    [([2], None, 1, 2), ([2, 1, 3], 2, 1, 2), ([2, 1, 3], 0, 0, 0), ([4], None, 0, 0)],
)
def test_rows_beyond_the_plan_are_cut(path, unfinished, sizes, max_rows, kept, rows):
    with ResumableTable(path, HEADER, IDENTITY) as table:
        assert table.batches_kept(sizes, max_rows) == kept
    assert unfinished.read_bytes().count(b".png") == rows


@pytest.mark.parametrize(("header", "content"), [(HEADER, b"image,label,correct\n"), (None, b"")])
def test_a_table_without_a_row(path, header, content):
    with ResumableTable(path, header, IDENTITY) as table:
        assert table.batches_kept([]) == 0
        assert table.batches_kept([2, 1]) == 0  # again: nothing is written twice
        table.finish()
    assert path.read_bytes() == content


def test_a_second_writer_is_refused(path, unfinished):
    before = unfinished.read_bytes()
    with ResumableTable(path, HEADER, IDENTITY):
        for force in (False, True):
            with pytest.raises(UserError, match="is being written by"):
                go_on(path, force=force)
    assert unfinished.read_bytes() == before
    assert go_on(path) == 2


@pytest.mark.parametrize("force", [False, True])
def test_a_table_finished_in_the_meantime_is_left_alone(path, force, monkeypatch):
    """The first writer finishes between the second one's opening and locking."""
    lock = fcntl.flock
    with ResumableTable(path, HEADER, IDENTITY) as first:
        first.batches_kept([2])
        first.write(BATCHES[0])

        def finish_first(*arguments):
            first.finish()
            first._handle.close()
            lock(*arguments)

        monkeypatch.setattr(fcntl, "flock", finish_first)
        with pytest.raises(UserError, match="is being written by another process"):
            go_on(path, force=force)
    assert path.read_bytes().count(b".png") == 2


class NearlyFull(FileIO):
    """A file on a disk with room for some bytes, which takes three at once."""

    room = 10

    def write(self, data):
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left")
        written = super().write(bytes(data)[: min(3, self.room)])
        self.room -= written
        return written


def test_a_full_disk_leaves_whole_rows(path, unfinished):
    before = unfinished.read_bytes()
    with ResumableTable(path, HEADER, IDENTITY) as table:
        assert table.batches_kept([2, 1, 3]) == 2
        table._handle.close()
        table._handle = NearlyFull(unfinished, "a+")
        with pytest.raises(UserError, match=r"rows\.csv\.unfinished: No space left.*bytes free"):
            table.write(BATCHES[2])
        assert unfinished.read_bytes() == before
        table._handle.room = 1000
        table.write(BATCHES[2])  # in many short writes
    assert go_on(path) == 3


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot write .*bytes free"):
        go_on(tmp_path / "file" / "rows.csv")


# --- Records beside a table ---

RECORD = np.dtype([("number", "<i2"), ("pair", "<f4", (2,))])
RECORDS = np.array([(1, (0.5, 7)), (2, (0.25, 7)), (3, (0.125, 7))], RECORD)


@pytest.mark.parametrize("slices", [[3], [1, 2], [1, 1, 1], []])
@pytest.mark.parametrize("kill_after", [0, 1, 2])
def test_records_are_one_npy_file_however_they_were_cut(tmp_path, slices, kill_after):
    """What was half written is cut off, and what the table has no row of."""
    path, place = tmp_path / "answers.npy", 0
    table = ResumableRecords(path, RECORD)
    assert table.num_kept() == 0
    table.write(0, RECORDS[:0])
    for number, size in enumerate(slices):
        if number == kill_after:
            with table.unfinished.open("ab") as handle:
                handle.write(b"abc")
            table = ResumableRecords(path, RECORD)
            assert table.num_kept() == place
            table.write(place, RECORDS)
        table.write(place, RECORDS[place : place + size])
        place += size
    table.finish()
    assert np.array_equal(np.load(path), RECORDS[: sum(slices)])
    assert {file.name for file in tmp_path.iterdir()} == {path.name, table.unfinished.name}


# --- Writing behind ---


def test_items_are_written_in_order_by_another_thread_while_a_few_wait():
    written, waiting = [], []

    def make():
        for n in range(30):
            waiting.append(n + 1 - len(written))
            yield n

    def write(n):
        time.sleep(0.002)
        assert threading.current_thread() is not threading.main_thread()
        written.append(n)

    write_behind(make(), write, waiting=2)
    assert written == list(range(30))
    assert max(waiting) <= 2 + 2  # one being written, one just made
    write_behind([], written.append)


def test_what_the_writer_raises_surfaces_and_nothing_is_written_after_it():
    written: list[int] = []
    made: list[int] = []

    def write(n):
        if n == 5:
            raise OSError("disk full")
        written.append(n)

    with pytest.raises(OSError, match="disk full"):
        write_behind((made.append(n) or n for n in range(10_000)), write, waiting=2)
    assert written == [0, 1, 2, 3, 4] and len(made) < 10_000
    assert not [t for t in threading.enumerate() if t.name.startswith("write rows")]


def test_where_the_maker_raises_what_came_before_is_written():
    written: list[int] = []

    def make():
        yield from range(3)
        raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        write_behind(make(), lambda n: (time.sleep(0.01), written.append(n)))
    assert written == [0, 1, 2]
