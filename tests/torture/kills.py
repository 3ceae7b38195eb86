"""`kill -9` at random moments, again and again: the results are those of the undisturbed run.

A third of the kills come at any moment of the run, a third in its first tenth, and a third when a
file is seen to be written. The moments are random; what is killed goes on with the same command
until it has ended, and then a fresh run begins, until there were enough kills.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests import scripts
from tests.torture import fault_injection as hooks
from tests.torture.fixtures import Command, Workshop
from tests.torture.outcome import Outcome
from tests.torture.sameness import broken_files, num_being_written, run_differences, stale_files

PROGRAMS = ("stage1", "stage2", "pack", "evaluate")
_LOOK_EVERY_S = 0.0005
_MAX_WRITES = 8  # how many writes of one start are let pass before a kill
_START_SHARE = 0.1  # of a run, that counts as its start
ENDED = ("holds a finished run", "is a finished table", "is there already")  # killed at the end
Comparison = Callable[[Path, Path], list[str]]


def torture_kills(
    workshop: Workshop,
    program: str,
    num_kills: int,
    seed: int,
    compare: Comparison = run_differences,
) -> Outcome:
    """Kill a program until it was killed `num_kills` times; compare every run that ended."""
    workshop.straight("stage1")  # makes the split
    straight, splits = workshop.straight(program), workshop.data / "splits.csv"
    begun, outcome = time.monotonic(), Outcome("kills", program)
    draw = random.Random(f"{seed} {program}")
    made_splits, patience_s = splits.read_bytes(), workshop.seconds[program]
    num_done = num_runs = num_writing = num_lost = num_stale = 0
    while num_done < num_kills:
        num_runs += 1
        folder = workshop.place / "killed" / program
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True)
        if program == "stage1":  # the split is made by whoever comes first
            splits.unlink()
            splits.with_suffix(".json").unlink()
        before = _names(workshop.data)
        command = workshop.command(program, folder)
        for killed in _one_run(command, workshop, draw, num_kills - num_done, patience_s):
            num_done += 1
            num_writing += num_being_written([folder, workshop.data]) > 0
            outcome.failures += [f"after kill {num_done}: {text}" for text in broken_files(folder)]
            outcome.failures += [f"kill {num_done}: {text}" for text in killed]
        lost = compare(straight, folder)
        if splits.read_bytes() != made_splits:
            lost.append("splits.csv differs")
        stale = stale_files(straight, folder)
        stale += sorted(_names(workshop.data) - before - {"splits.csv", "splits.json"})
        num_lost, num_stale = num_lost + len(lost), num_stale + len(stale)
        outcome.failures += [f"run {num_runs}: {text}" for text in lost]
        outcome.failures += [f"run {num_runs}: {text} is left over" for text in stale]
    outcome.counts = {"kills": num_done, "while writing": num_writing, "runs": num_runs}
    outcome.counts |= {"lost": num_lost, "stale files": num_stale}
    outcome.seconds = time.monotonic() - begun
    return outcome


def _one_run(
    command: Command, workshop: Workshop, draw: random.Random, max_kills: int, patience_s: float
) -> Iterator[list[str]]:
    """Start a command until it ends, killed `max_kills` times at most.

    Yields after each kill what went wrong until then.
    """
    num_kills = 0
    while True:
        way = draw.choice(["any", "start", "writing"])
        hook = hooks.SlowDisk() if way == "writing" else None
        running = scripts.start(
            command.script, command.arguments, workshop.scratch("streams"), hook
        )
        if num_kills < max_kills:
            if way == "writing":
                _wait_for_write(running, [command.folder, workshop.data], draw)
            else:
                share = draw.uniform(0, 1 if way == "any" else _START_SHARE)
                _wait(running, patience_s * share)
            running.kill()
        done = running.wait()
        if done.code == 0 or any(text in done.message for text in ENDED):
            return
        if done.code != -9:
            yield [f"the command does not go on: {done.last_words()}"]
            return
        num_kills += 1
        yield []


def _wait(running: scripts.Running, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not running.is_over():
        time.sleep(min(0.01, seconds))


def _wait_for_write(running: scripts.Running, folders: list[Path], draw: random.Random) -> None:
    """Wait until some writes were seen, or the end of the script."""
    left, before = draw.randint(1, _MAX_WRITES), _being_written(folders)
    while left and not running.is_over():
        time.sleep(_LOOK_EVERY_S)
        now = _being_written(folders)
        left -= bool(now - before) and left > 0
        before = now


def _being_written(folders: list[Path]) -> set[tuple[str, int]]:
    """Give name and size of every file that has not its final name."""
    found = set()
    for folder in folders:
        for path in [*folder.glob("*"), *folder.glob("*/*.partial-write")]:
            if path.name.endswith((".partial-write", ".unfinished", ".unfinished.index")):
                try:
                    found.add((path.name, path.stat().st_size))
                except FileNotFoundError:
                    continue
    return found


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
