"""Two processes on one thing, and a clock that steps: the second is told off, nothing changes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

from tools.torture import hooks, scripts
from tools.torture.kills import ENDED
from tools.torture.outcome import Outcome
from tools.torture.sameness import run_differences, stale_files
from tools.torture.workshop import PROGRAMS, Workshop

CLOCK_PROGRAMS = ("stage1", "stage2", "pack", "evaluate")
_HOLDS = {"pack": "pack.bin.unfinished", "evaluate": "petface_eval_per_image.csv.unfinished",
          "predict": "answers.csv.unfinished"}  # fmt: skip
_PATIENCE_S = 300.0
_MAX_RUNS = 10


def torture_two_processes(workshop: Workshop, program: str) -> Outcome:
    """Freeze a program at work, start it a second time, let the first go on."""
    straight = workshop.straight(program)
    begun, outcome = time.monotonic(), Outcome("two_processes", program)
    folder = _fresh(workshop, "rival", program)
    command = workshop.command(program, folder)
    first = scripts.start(command.script, command.arguments, workshop.scratch("first"))
    until = time.monotonic() + _PATIENCE_S
    while not _is_held(folder, program) and not first.is_over() and time.monotonic() < until:
        time.sleep(0.001)
    first.send(signal.SIGSTOP)
    second = scripts.run(command.script, command.arguments, workshop.scratch("second"))
    if first.is_over():
        outcome.failures.append("the first was over before the second began; nothing was shown")
    if second.code != 1 or "Traceback" in second.err:
        outcome.failures.append(f"the second is not refused, {second.last_words()}")
    if f"process {first.pid}" not in second.message and Path("/proc/locks").exists():
        outcome.failures.append(f"who holds it is not said: {second.message}")
    first.send(signal.SIGCONT)
    done = first.wait()
    if done.code != 0:
        outcome.failures.append(f"the first does not end well, {done.last_words()}")
    outcome.failures += run_differences(straight, folder)
    outcome.failures += [f"{name} is left over" for name in stale_files(straight, folder)]
    outcome.counts = {"refused": int(second.code == 1)}
    outcome.seconds = time.monotonic() - begun
    return outcome


def _is_held(folder: Path, program: str) -> bool:
    if program in _HOLDS:
        path = folder / _HOLDS[program]
        return path.exists() and path.stat().st_size > 0
    return any(path.stat().st_size > 0 for path in folder.rglob("run.lock"))


def torture_clock(workshop: Workshop, program: str, num_kills: int, seed: int) -> Outcome:
    """Kill and restart a program whose clock steps back and forth, and so do its files' times."""
    straight = workshop.straight(program)
    begun, outcome, draw = time.monotonic(), Outcome("clock", program), random.Random(seed)
    num_done, num_runs = 0, 0
    while not num_runs or (num_done < num_kills and num_runs < _MAX_RUNS):
        num_runs += 1
        folder = _fresh(workshop, "clock", program)
        command, done = workshop.command(program, folder), None
        while done is None or done.code == -9:
            hook = hooks.SteppingClock(draw.randrange(2**32))
            running = scripts.start(
                command.script, command.arguments, workshop.scratch("streams"), hook
            )
            if num_done < num_kills:
                until = time.monotonic() + workshop.seconds[program] * draw.uniform(0.1, 0.9)
                while time.monotonic() < until and not running.is_over():
                    time.sleep(0.01)
                running.kill()
            done = running.wait()
            num_done += done.code == -9
            _step_times(folder, draw)
        if done.code != 0 and not any(text in done.message for text in ENDED):
            outcome.failures.append(f"it does not go on, {done.last_words()}")
        outcome.failures += run_differences(straight, folder)
        outcome.failures += [f"{name} is left over" for name in stale_files(straight, folder)]
    outcome.counts = {"kills": num_done, "runs": num_runs}
    outcome.seconds = time.monotonic() - begun
    return outcome


def _step_times(folder: Path, draw: random.Random) -> None:
    """Let every file be of another day, past or to come."""
    for path in folder.rglob("*"):
        seconds = time.time() + draw.uniform(-3e8, 3e8)
        os.utime(path, (seconds, seconds))


def _fresh(workshop: Workshop, name: str, program: str) -> Path:
    folder = workshop.scratch(name) / program
    shutil.rmtree(folder, ignore_errors=True)
    return folder


__all__ = ["CLOCK_PROGRAMS", "PROGRAMS", "torture_clock", "torture_two_processes"]
