"""Stopped at random steps, a training is the straight one to the last bit.

With and without a pack, with one process and with two; the pack must not change a bit either.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from petface.models import checkpoints
from tests import scripts
from tests.torture.fixtures import Command, Workshop
from tests.torture.outcome import Outcome
from tests.torture.sameness import run_differences, stale_files

PROGRAMS = ("stage1", "stage2")
NUM_PROCESSES = (1, 2)
PACKS = ((), ("--pack", "auto"))
_MANY_BATCHES = ["--batch-size", 16]  # more steps to be stopped at
Comparison = Callable[[Path, Path], list[str]]


def torture_resume(
    workshop: Workshop,
    program: str,
    num_processes: int,
    num_stops: int,
    seed: int,
    packs: Sequence[Sequence[str]] = PACKS,
    compare: Comparison = run_differences,
) -> Outcome:
    """Stop a training at random steps, with each of the flags `packs`; compare with the straight,
    which has the first of them.
    """
    workshop.straight("stage1")
    begun, outcome = time.monotonic(), Outcome("resume", f"{program} x {num_processes}")
    draw = random.Random(f"{seed} {program} {num_processes}")
    straight = _straight(workshop, program, num_processes, packs[0])
    for pack in packs[1:]:
        packed = _straight(workshop, program, num_processes, pack)
        outcome.failures += [f"straight, {' '.join(pack)}: {t}" for t in compare(straight, packed)]
    num_steps, num_stopped = _num_steps(straight), 0
    for pack in packs:
        folder = _fresh(workshop, f"resumed{'_pack' if pack else ''}", program, num_processes)
        command = _command(workshop, program, folder, pack)
        chosen = sorted(draw.sample(range(1, num_steps), min(num_stops, num_steps - 1)))
        for before, step in zip([0, *chosen], chosen, strict=False):
            number = draw.choice([signal.SIGTERM, signal.SIGINT])
            stop = scripts.SignalAtStep(step - before, number)
            asked = draw.randrange(num_processes)  # one of them is enough to stop all
            own = [stop if rank == asked else None for rank in range(num_processes)]
            done = _run(command, workshop, own)
            if [one.code for one in done] != [128 + number] * num_processes:
                outcome.failures.append(f"not stopped at step {step}: {done[0].last_words()}")
                break
            num_stopped += 1
        done = _run(command, workshop, [None] * num_processes)
        if any(one.code for one in done):
            outcome.failures.append(f"it does not go on: {done[0].last_words()}")
        outcome.failures += [f"{' '.join(pack)} {text}" for text in compare(straight, folder)]
        outcome.failures += [f"{name} is left over" for name in stale_files(straight, folder)]
    outcome.counts = {"steps": num_steps, "stops": num_stopped}
    outcome.seconds = time.monotonic() - begun
    return outcome


def _straight(workshop: Workshop, program: str, num_processes: int, pack: Sequence[str]) -> Path:
    folder = _fresh(workshop, f"straight{'_pack' if pack else ''}", program, num_processes)
    command = _command(workshop, program, folder, pack)
    done = _run(command, workshop, [None] * num_processes)
    assert not any(one.code for one in done), done[0].last_words()
    return folder


def _command(workshop: Workshop, program: str, folder: Path, pack: Sequence[str]) -> Command:
    one = ["--species", workshop.species[0]] if program == "stage2" else []
    return workshop.command(program, folder).with_flags(*_MANY_BATCHES, *pack, *one)


def _run(
    command: Command, workshop: Workshop, own: list[scripts.Hook | None]
) -> list[scripts.Result]:
    return scripts.run_together(command.script, command.arguments, workshop.scratch("streams"), own)


def _num_steps(folder: Path) -> int:
    """Count the steps that the optimizer took, in the last phase, and those of the ones before."""
    last = checkpoints.load(next(folder.rglob("*last.pt")))
    in_last = max(int(state["step"]) for state in last["optimizer"]["state"].values())
    epochs = [row.get("phase") for row in last["history"]]
    return in_last * len(epochs) // max(epochs.count(epochs[-1]), 1)


def _fresh(workshop: Workshop, name: str, program: str, num_processes: int) -> Path:
    folder = workshop.scratch("resume") / f"{program}_{num_processes}_{name}"
    shutil.rmtree(folder, ignore_errors=True)
    return folder
