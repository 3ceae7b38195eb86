"""Two processes on one thing: the second is refused, nothing changes."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

from tests import scripts
from tests.torture.fixtures import Workshop
from tests.torture.outcome import Outcome
from tests.torture.sameness import run_differences, stale_files

_HOLDS = {"pack": "pack.bin.unfinished", "evaluate": "petface_eval_per_image.csv.unfinished",
          "predict": "answers.csv.unfinished"}  # fmt: skip
_PATIENCE_S = 300.0


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
    second = scripts.run_forked(command.script, command.arguments, workshop.scratch("second"))
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


def _fresh(workshop: Workshop, name: str, program: str) -> Path:
    folder = workshop.scratch(name) / program
    shutil.rmtree(folder, ignore_errors=True)
    return folder
