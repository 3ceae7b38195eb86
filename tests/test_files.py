"""Whole files or none, also on a full disk; text that survives CSV, spreadsheets and pandas."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import threading
from io import FileIO
from multiprocessing import get_context

import pandas as pd
import pytest

from petface import files
from petface.errors import UserError

HOSTILE = [
    "plain", "", "'", "''", "'quoted'", "=1+1", "+1", "-1", "@x", "\ttab", "\rreturn", "a\rb",
    "a\r\nb", "line\nbreak", 'say "x"', "a, b", " blank ", "NA", "nan", "None", "000007",
    "\u202eright to left", "🐈", "<script>", "Bulldog, Olde mix", "'=1",
]  # fmt: skip


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "figures.json"
    path.write_bytes(b"old")
    return path


def only_old_is_there(path):
    return path.read_bytes() == b"old" and list(path.parent.iterdir()) == [path]


def test_a_file_is_written_whole_into_folders_that_are_made(tmp_path):
    path = tmp_path / "a/b/c.txt"
    for before, text in ((False, "naïve\n"), (True, "caf\udce9")):
        with files.atomic_write(path, "w") as handle:
            handle.write(text)
            handle.flush()
            assert path.exists() == before  # nobody sees a half of it
    assert path.read_text(encoding="utf-8") == "caf\\udce9"  # a file name that is no UTF-8
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt(), UserError("x")])
def test_an_exception_leaves_the_old_file(old, error):
    with pytest.raises(type(error)) as caught, files.atomic_write(old) as handle:
        handle.write(b"half")
        raise error
    assert caught.value is error and only_old_is_there(old)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(old, call, monkeypatch):
    monkeypatch.setattr(os, call, full)
    with pytest.raises(UserError, match=r"figures\.json: No space left.*[\d,]+ bytes free"):
        files.write_json(old, {"a": 1})
    assert only_old_is_there(old)


def test_a_file_in_place_of_a_folder(old):
    with pytest.raises(UserError, match=r"cannot write .*figures\.json/deep/x\.csv: .*bytes free"):
        files.write_csv(old / "deep" / "x.csv", ["a"], [])
    assert only_old_is_there(old)


def test_what_a_crash_left_is_overwritten(old):
    old.with_name(old.name + files.TEMPORARY_SUFFIX).write_bytes(b"much longer than the new file")
    files.write_json(old, [])
    assert old.read_text() == "[]\n" and list(old.parent.iterdir()) == [old]


def test_json_is_utf8_and_has_no_nan(old):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(old, {"a": float("nan")})
    assert only_old_is_there(old)
    files.write_json(old, {"ü": [1, None]})
    assert json.loads(old.read_text(encoding="utf-8")) == {"ü": [1, None]}
    assert "ü" in old.read_text(encoding="utf-8")


def test_text_cells_are_no_formula_and_numbers_stay_numbers():
    for text in HOSTILE:
        assert files.safe_cell(text)[:1] not in {"=", "+", "-", "@", "\t", "\r"}
    for number in (-1, -0.5, 7, None, True):
        assert files.safe_cell(number) is number


def python_reader(path):
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.reader(handle))


def pandas_reader(path):
    table = pd.read_csv(path, dtype=str, keep_default_na=False, header=None, encoding="utf-8")
    return table.to_numpy().tolist()


@pytest.mark.parametrize("read", [python_reader, pandas_reader])
def test_csv_round_trips(read, tmp_path):
    path = tmp_path / "t.csv"
    files.write_csv(path, ["a", "b", "c"], [[text, -1.5, text[::-1]] for text in HOSTILE])
    header, *rows = read(path)
    assert header == ["a", "b", "c"]
    assert [[files.plain_cell(a), b, files.plain_cell(c)] for a, b, c in rows] == [
        [text, "-1.5", text[::-1]] for text in HOSTILE
    ]


def test_csv_rows_end_in_lf_alone():
    assert files.csv_line(["a", 1, "b c"]) == "a,1,b c\n"
    assert files.csv_line(["x\ny", "", 'q"']) == '"x\ny",,"q"""\n'
    assert next(csv.reader(io.StringIO(files.csv_line(["a\rb"]), newline=""))) == ["a\rb"]


def test_sha256(tmp_path):
    data = bytes(range(256)) * 5000  # more than one block
    (tmp_path / "x").write_bytes(data)
    assert files.sha256_of_file(tmp_path / "x") == hashlib.sha256(data).hexdigest()


def test_two_starts_wait_for_each_other_in_one_folder(tmp_path):
    seen = []

    def enter():
        with files.turn_in(tmp_path):
            seen.append("second")

    with files.turn_in(tmp_path):
        with pytest.raises(UserError, match="is in use by"), files.turn_in(tmp_path, wait=False):
            pass
        other = threading.Thread(target=enter)
        other.start()
        other.join(0.2)
        seen.append("first")
    other.join(10)
    assert seen == ["first", "second"]


def test_a_hold_ends_with_its_process_although_a_worker_of_it_lives_on(tmp_path):
    """A killed run leaves its loader workers behind for some seconds."""
    with FileIO(tmp_path / "a", "a+") as mine:
        assert files.take(mine) == ""
        workers = get_context("fork").Pool(1)
        workers.apply(int)  # it is there
    with workers, FileIO(tmp_path / "a", "a+") as other:
        assert files.take(other) == ""
