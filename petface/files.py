"""The one way to write a file: whole or not at all; and the one rule for text in CSV cells."""

from __future__ import annotations

import csv
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import socket
import sys
import time
import weakref
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import IO, Any, TypeVar

from petface.errors import MachineError, UserError

TEMPORARY_SUFFIX = ".partial-write"
_held: weakref.WeakSet[FileIO] = weakref.WeakSet()
# A loader worker would keep what its parent holds, and outlives a killed parent by some seconds.
os.register_at_fork(after_in_child=lambda: list(map(FileIO.close, list(_held))))
# What a path itself can be guilty of; every other number is the machine's.
_OF_THE_PATH = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
_OF_THE_PATH |= {errno.EILSEQ}
_OF_THE_MACHINE = (MemoryError, PermissionError, TimeoutError, InterruptedError, ConnectionError)
_PAUSES_S = (0.1, 0.4, 1.0)  # between two tries
_Found = TypeVar("_Found")
_has_warned = False  # that a file system has no locks


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; on success flush it to disk and rename it over `path`.

    A crash, a full disk or an exception leaves the old file as it was. A stale temporary file of an
    earlier crash is overwritten. A full disk raises `UserError` with the path and the free bytes.
    """
    path = Path(path)
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    as_text = {"encoding": "utf-8", "newline": "", "errors": "backslashreplace"}  # odd file names
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open(mode, **({} if "b" in mode else as_text)) as handle:  # type: ignore
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        with suppress(OSError), _opened(path.parent) as folder:
            os.fsync(folder)  # the rename itself, where the system allows it
    except BaseException as error:
        with suppress(OSError):  # what went wrong first is what counts
            temporary.unlink()
        if isinstance(error, OSError):
            raise write_error(path, error) from error
        raise


def write_error(path: str | Path, error: OSError) -> UserError:
    """Return an error: which file could not be written, why, and how many bytes are free there."""
    folder = Path(path).parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    text = f"cannot write {path}: {error.strerror or error}"
    with suppress(OSError):  # the working folder may be gone
        text += f" ({shutil.disk_usage(folder).free:,} bytes free)"
    return UserError(text)


def is_of_machine(error: BaseException) -> bool:
    """Return whether disk, network or system failed, not the file: only that may pass by itself."""
    number = error.errno if isinstance(error, OSError) else None
    return isinstance(error, _OF_THE_MACHINE) or (number or errno.ENOENT) not in _OF_THE_PATH


def patiently(read: Callable[[], _Found], name: str | bytes | Path) -> _Found:
    """Return what `read` does with the file or folder `name`; a failure of the machine is retried.

    Raises `MachineError` with the path and the error's number where it does not pass, and what else
    `read` raises at once.
    """
    for pause_s in (*_PAUSES_S, None):
        try:
            return read()
        except (OSError, MemoryError) as error:
            if not is_of_machine(error):
                raise
            if pause_s is None:
                number = getattr(error, "errno", None)
                code = f" ({errno.errorcode.get(number, '')}, errno {number})" if number else ""
                what = getattr(error, "strerror", None) or str(error) or type(error).__name__
                raise MachineError(
                    f"{readable_name(name)}: {what}{code}, {len(_PAUSES_S) + 1} times. Disk, "
                    "network or system fail, not the file, so nothing was noted about it: mend "
                    "that; the same command resumes"
                ) from error
        time.sleep(pause_s)
    raise AssertionError("the last try returns or raises")


def readable_name(path: str | bytes | os.PathLike[str]) -> str:
    """Return a path as text that can be printed: bytes that are not UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def dead_link(path: str | Path) -> str:
    """Return where the link leads that makes a path nothing, for a message; "" for any other."""
    for part in (Path(path), *Path(path).parents):
        with suppress(OSError):
            if part.is_symlink() and not part.exists():
                target = readable_name(os.readlink(part))
                return f" (the link {readable_name(part)} leads to {target}, which is not there)"
    return ""


def take(handle: FileIO) -> str:
    """Hold an open file alone until it is closed or this process ends.

    "" where that works, else who holds it already. Where nothing can be locked, as on some network
    file systems, a warning says so once and nobody is refused.
    """
    if not (holder := _lock(handle.fileno(), handle.name)):
        _held.add(handle)
    return holder


@contextmanager
def turn_in(folder: str | Path, *, wait: bool = True) -> Iterator[None]:
    """Let one process at a time into the block, of all that name the same folder.

    The folder may be renamed meanwhile. Without `wait`, `UserError` says who is in there. Where a
    folder cannot be locked nobody waits and nobody is refused.
    """
    with _opened(folder) as descriptor:
        if holder := _lock(descriptor, folder, 0 if wait else fcntl.LOCK_NB):
            raise UserError(f"{folder} is in use by {holder}; wait for it or take another name")
        yield


def _lock(descriptor: int, name: object, waiting: int = fcntl.LOCK_NB) -> str:
    """Lock a file; return who else holds it, where the system tells (Linux, same container)."""
    global _has_warned
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | waiting)
    except BlockingIOError:
        found = os.fstat(descriptor)
        place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
        with suppress(OSError):
            for line in Path("/proc/locks").read_text(encoding="utf-8").splitlines():
                words = line.split()  # 1: FLOCK ADVISORY WRITE <process> <device>:<inode> 0 EOF
                if words[1] == "FLOCK" and words[5] == place and words[4] > "0":
                    return f"process {words[4]}"
        return "another process"
    except OSError as error:
        if not _has_warned:
            _has_warned = True
            print(
                f"warning: {name} cannot be locked ({error.strerror}), as on some network file "
                "systems: let no second process write there at the same time",
                file=sys.stderr,
            )
    return ""


@contextmanager
def _opened(folder: str | Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object; `UserError` with the path for any other content."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
        raise ValueError("it holds no JSON object")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON; NaN is refused because other readers refuse it too."""
    with atomic_write(path, "w") as handle:
        json.dump(value, handle, indent=2, ensure_ascii=False, allow_nan=False)
        handle.write("\n")


def write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a whole CSV (UTF-8, LF); text cells go through `safe_cell`."""
    with atomic_write(path, "w") as handle:
        handle.write(csv_line(header))
        handle.writelines(csv_line([safe_cell(cell) for cell in row]) for row in rows)


def csv_line(cells: Iterable[object]) -> str:
    """Format a CSV row that ends in LF; every cell with a line break of any kind is quoted.

    Before Python 3.13 the writer quotes a carriage return only where its own lines end in one, and
    readers take a bare one for the end of the row.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue()[:-2] + "\n"


def safe_cell(cell: object) -> object:
    """Neutralise text that a spreadsheet would run as a formula: an apostrophe goes in front.

    Numbers pass unchanged, so a negative number stays a number. `plain_cell` is the inverse.
    """
    if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r", "'")):
        return "'" + cell
    return cell


def plain_cell(cell: str) -> str:
    """Undo `safe_cell` for a text cell read back from a CSV."""
    return cell[1:] if cell.startswith("'") else cell


def sha256_of_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes in hex."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def archive_damage(path: str | Path) -> str:
    """Return what is wrong with a zip archive as torch writes it; "" where it is whole.

    A record that stands twice is refused because readers differ in which one they take, and a
    compressed one because a few bytes of it can fill the memory. torch writes neither.
    """
    with zipfile.ZipFile(path) as archive:
        seen = set()
        for record in archive.infolist():
            if record.filename in seen:
                return f"{record.filename} stands in it twice"
            if record.compress_type != zipfile.ZIP_STORED:
                return f"{record.filename} is compressed"
            seen.add(record.filename)
        damaged = archive.testzip()
    return "" if damaged is None else f"checksum of {damaged} is wrong"


@contextmanager
def network_patience(seconds: float) -> Iterator[None]:
    """Bound each network wait, so that a silent firewall cannot hold a run up for minutes."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
