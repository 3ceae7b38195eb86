"""A disk that is full at every write in turn: whole files, one clear line, and on it goes.

A small file system in memory grows a little after each failure, so that the same command gets to
its next write and fails there. Where nothing can be mounted, a limit on the size of each file
stands for it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from petface.files import TEMPORARY_SUFFIX
from tests import scripts
from tests.torture.fixtures import Command, Workshop
from tests.torture.outcome import Outcome
from tests.torture.sameness import broken_files, run_differences, stale_files

PROGRAMS = ("stage1", "stage2", "pack", "evaluate", "predict", "splits", "report")
_PAGE = 4096
_FASTER = 4  # times as much more, where the same write fails again
_MAX_STARTS = 200
_FREE = ("bytes free", "GB are free")


@dataclass
class Space:
    """A folder with room for so many bytes, and what makes a script see that limit."""

    folder: Path
    num_bytes: int
    is_mounted: bool

    def grow(self, num_bytes: int) -> None:
        """Make room for more."""
        self.num_bytes += num_bytes
        if self.is_mounted:
            _mount("-o", f"remount,size={self.num_bytes}", self.folder)

    @property
    def hook(self) -> scripts.Hook | None:
        """What a script needs to be limited."""
        return None if self.is_mounted else scripts.FullDisk(self.num_bytes)


@contextmanager
def small_space(folder: Path, num_bytes: int = _PAGE) -> Iterator[Space]:
    """Give a folder without room for a single byte; it is gone afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    is_mounted = os.geteuid() == 0 and _mount(
        "-t", "tmpfs", "-o", f"size={num_bytes}", "full", folder
    )
    if is_mounted:
        (folder / "ballast").write_bytes(bytes(num_bytes))  # a size of 0 would mean no limit
    try:
        yield Space(folder, num_bytes, is_mounted)
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _mount(*arguments: object) -> bool:
    command = ["mount", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def torture_disk(workshop: Workshop, program: str) -> Outcome:
    """Run a program on a disk that is full at each of its writes in turn."""
    outcome, straight = Outcome("disk", program), _straight(workshop, program)
    begun, places, num_starts = time.monotonic(), set(), 0
    with small_space(workshop.place / "full") as space:
        command = _prepare(workshop, program, space)
        step, last = _PAGE, ""
        while num_starts < _MAX_STARTS:
            num_starts += 1
            done = scripts.run_forked(
                command.script, command.arguments, workshop.scratch("streams"), space.hook
            )
            if done.code == 0:
                break
            path, wrong = _judge(done, space.folder)
            outcome.failures += [f"start {num_starts}: {text}" for text in wrong]
            if wrong and not path:
                break
            places.add(path)
            step = step * _FASTER if path == last else _PAGE
            last = path
            space.grow(step)
        else:
            outcome.failures.append(f"it does not end in {num_starts} starts")
        outcome.failures += _compare(straight, command.folder, workshop, space)
        limited = "tmpfs" if space.is_mounted else "file size limit"
    outcome.counts = {"starts": num_starts, "places": len(places), "by": limited}
    outcome.seconds = time.monotonic() - begun
    return outcome


def _straight(workshop: Workshop, program: str) -> Path:
    if program == "splits":
        workshop.straight("stage1")
        return workshop.data / "splits.csv"
    return workshop.straight("evaluate" if program == "report" else program)


def _prepare(workshop: Workshop, program: str, space: Space) -> Command:
    """Give the command that writes into the space; what it needs beforehand is put there."""
    folder = space.folder / program
    if program == "splits":  # a training that has no room for the split
        command = workshop.command("stage1", workshop.place / "beside" / "run")
        shutil.rmtree(command.folder, ignore_errors=True)
        return Command(
            command.script,
            [*command.arguments, "--splits-file", folder / "splits.csv", "--epochs", 1],
            folder,
        )
    if program == "report":
        straight = workshop.straight("evaluate")
        is_report = shutil.ignore_patterns("report.html")
        space.grow(_size(straight))
        shutil.copytree(straight, folder, ignore=is_report)
        (folder / "report.html").write_text("<html>the old one</html>")
        return Command(scripts.REPORT, [folder], folder)
    return workshop.command(program, folder)


def _size(folder: Path) -> int:
    """Give the room that the files of a folder take, without the report and one page more."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "report.html"]
    return _PAGE * (1 + sum(-(-path.stat().st_size // _PAGE) for path in files))


def _judge(done: scripts.Result, folder: Path) -> tuple[str, list[str]]:
    """Give the file that could not be written, and what is wrong with the way it failed."""
    wrong = []
    if done.code != 1 or "Traceback" in done.err or not done.message:
        wrong.append(f"no clear end: {done.last_words()}")
    if not any(words in done.message for words in _FREE):
        wrong.append(f"the free bytes are not named: {done.message}")
    if str(folder) not in done.message:
        wrong.append(f"the file is not named: {done.message}")
        return "", wrong
    wrong += broken_files(folder)
    wrong += [f"{path.name} is left" for path in folder.rglob(f"*{TEMPORARY_SUFFIX}")]
    for table in folder.rglob("*.csv.unfinished"):
        content = table.read_bytes()
        if content and not content.endswith(b"\n"):
            wrong.append(f"{table.name} does not end on a whole line")
    path = str(folder) + done.message.partition(str(folder))[2].partition(": ")[0]
    return path, wrong


def _compare(straight: Path, folder: Path, workshop: Workshop, space: Space) -> list[str]:
    if straight.name == "splits.csv":
        made = folder / straight.name
        same = made.exists() and made.read_bytes() == straight.read_bytes()
        left = sorted({path.name for path in folder.iterdir()} - {"splits.csv", "splits.json"})
        return [f"{name} is left over" for name in left] + ["splits.csv differs"] * (not same)
    if not list(folder.rglob("report.html")) and list(straight.rglob("report.html")):
        space.grow(1_000_000)  # what was trained is finished; its report is made on request
        scripts.run_forked(scripts.REPORT, [folder], workshop.scratch("streams"), space.hook)
    lost = run_differences(straight, folder)
    return lost + [f"{name} is left over" for name in stale_files(straight, folder)]
