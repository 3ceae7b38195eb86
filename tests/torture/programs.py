"""Kills, full disks, rivals and stops: whatever happens, the result is the undisturbed one."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petface.files import TEMPORARY_SUFFIX
from petface.models import checkpoints
from tests import scripts
from tests.sameness import broken_files, num_being_written, run_differences, stale_files
from tests.torture.fixtures import PAGE, Command, Space, Workshop, small_space
from tests.torture.fuzz import Outcome


def _lost_and_left(straight: Path, folder: Path) -> list[str]:
    """List what differs from the undisturbed run, and the files that it does not have."""
    left = [f"{name} is left over" for name in stale_files(straight, folder)]
    return run_differences(straight, folder) + left


# ---- Kills ----

KILLED = ("stage1", "stage2", "pack", "evaluate")
_ENDED = ("holds a finished run", "is a finished table", "already exists")  # killed at the end


@dataclass(frozen=True)
class SlowDisk:
    """Write long tables in halves and wait before each flush, so that a kill meets half a file."""

    pause_s: float = 0.002

    def __call__(self) -> None:
        from petface import resumable as rows
        from petface.data import pack

        pause_s, fsync = self.pause_s, os.fsync

        class SlowFile(rows.FileIO):  # type: ignore[name-defined]
            def write(self, content: Any) -> int:
                time.sleep(pause_s)
                return int(super().write(memoryview(content)[: max(1, len(content) // 2)]))

        def slow_fsync(number: int) -> None:
            time.sleep(pause_s)
            fsync(number)

        os.fsync = slow_fsync  # type: ignore[assignment]
        rows.FileIO = pack.FileIO = SlowFile  # type: ignore[misc]


def torture_kills(workshop: Workshop, program: str, num_kills: int, seed: int) -> Outcome:
    """Kill a program with `kill -9` until it was killed `num_kills` times.

    A third of the kills come at any moment of the run, a third in its first tenth, and a third
    when a file is seen to be written. What is killed resumes with the same command until it has
    ended; then it is compared, and a fresh run begins.
    """
    workshop.straight("stage1")  # makes the split
    straight, splits = workshop.straight(program), workshop.data / "splits.csv"
    outcome, draw = Outcome("kills", program), random.Random(f"{seed} {program}")
    made_splits, counts = splits.read_bytes(), outcome.counts
    counts["kills"] = 0
    with outcome.timed():
        while counts["kills"] < num_kills:
            counts["runs"] += 1
            folder = workshop.fresh("killed", program)
            if program == "stage1":  # the split is made by whoever comes first
                splits.unlink()
                splits.with_suffix(".json").unlink()
            before = {path.name for path in workshop.data.iterdir()}
            command = workshop.command(program, folder)
            while _is_killed(command, workshop, draw, outcome, num_kills):
                counts["while writing"] += num_being_written([folder, workshop.data]) > 0
                wrong = broken_files(folder)
                outcome.failures += [f"after kill {counts['kills']}: {text}" for text in wrong]
            lost = _lost_and_left(straight, folder)
            lost += ["splits.csv differs"] * (splits.read_bytes() != made_splits)
            now = {path.name for path in workshop.data.iterdir()}
            lost += sorted(now - before - {"splits.csv", "splits.json"})
            outcome.failures += [f"run {counts['runs']}: {text}" for text in lost]
    return outcome


def _is_killed(
    command: Command, workshop: Workshop, draw: random.Random, outcome: Outcome, max_kills: int
) -> bool:
    """Start a command and kill it, if that many kills are not done; return whether it was."""
    way = draw.choice(["any", "start", "writing"])
    running = workshop.start(command, SlowDisk() if way == "writing" else None)
    if outcome.counts["kills"] < max_kills:
        if way == "writing":
            _wait_for_writes(running, [command.folder, workshop.data], draw.randint(1, 8))
        else:
            share = draw.uniform(0, 1 if way == "any" else 0.1)
            until = time.monotonic() + workshop.seconds[outcome.what] * share
            while time.monotonic() < until and not running.is_over():
                time.sleep(0.005)
        running.kill()
    done = running.wait()
    if done.code == -9:
        outcome.counts["kills"] += 1
        return True
    if done.code != 0 and not any(text in done.message for text in _ENDED):
        outcome.counts["kills"] += 1  # so that it ends
        outcome.failures.append(f"the command does not resume: {done.last_words()}")
    return False


def _wait_for_writes(running: scripts.Running, folders: list[Path], num_writes: int) -> None:
    """Wait until some writes to files without their final name were seen, or the script's end."""
    before: set[tuple[str, int]] | None = None
    while num_writes and not running.is_over():
        now = set()
        for path in [p for f in folders for p in [*f.glob("*"), *f.glob(f"*/*{TEMPORARY_SUFFIX}")]]:
            if path.name.endswith((TEMPORARY_SUFFIX, ".unfinished", ".unfinished.index")):
                try:
                    now.add((path.name, path.stat().st_size))
                except FileNotFoundError:
                    continue
        num_writes -= before is not None and bool(now - before)
        before = now
        time.sleep(0.0005)


# ---- A full disk ----

FILLED = ("stage1", "stage2", "pack", "evaluate", "predict", "splits", "report")
_MAX_STARTS = 200


def torture_disk(workshop: Workshop, program: str) -> Outcome:
    """Run a program on a disk that is full at each of its writes in turn.

    The disk grows a little after each failure, so that the same command gets to its next write.
    """
    straight = workshop.straight({"splits": "stage1", "report": "evaluate"}.get(program, program))
    outcome, places = Outcome("disk", program), set()
    with outcome.timed(), small_space(workshop.place / "full") as space:
        command = _prepare(workshop, program, space)
        outcome.counts["by"] = "tmpfs" if space.is_mounted else "file size limit"
        step, last = PAGE, ""
        for number in range(1, _MAX_STARTS):
            outcome.counts["starts"] = number
            done = workshop.start(command, space.hook).wait()
            if done.code == 0:
                break
            path, wrong = judge_full_disk(done, space.folder)
            outcome.failures += [f"start {number}: {text}" for text in wrong]
            if wrong and not path:
                break
            places.add(path)
            step = 4 * step if path == last else PAGE  # more, where the same write fails again
            last = path
            space.grow(step)
        else:
            outcome.failures.append(f"it does not end in {_MAX_STARTS} starts")
        folder = command.folder
        if program == "splits":
            made = (folder / "splits.csv", workshop.data / "splits.csv")
            left = {path.name for path in folder.iterdir()} - {"splits.csv", "splits.json"}
            outcome.failures += [f"{name} is left over" for name in sorted(left)]
            if not made[0].exists() or made[0].read_bytes() != made[1].read_bytes():
                outcome.failures.append("splits.csv differs")
        else:
            if not list(folder.rglob("report.html")) and list(straight.rglob("report.html")):
                space.grow(1_000_000)  # what was trained is finished; its report is made on request
                workshop.start(Command(scripts.REPORT, [folder], folder), space.hook).wait()
            outcome.failures += _lost_and_left(straight, folder)
    outcome.counts["places"] = len(places)
    return outcome


def _prepare(workshop: Workshop, program: str, space: Space) -> Command:
    """Return the command that writes into the space; put there what it needs beforehand."""
    folder = space.folder / program
    if program == "splits":  # a training that has no room for the split
        script, flags, _ = workshop.command("stage1", workshop.fresh("beside", "run"))
        flags = [*flags, "--splits-file", folder / "splits.csv", "--epochs", 1]
        return Command(script, flags, folder)
    if program == "report":
        straight = workshop.straight("evaluate")
        files = [p for p in straight.rglob("*") if p.is_file() and p.name != "report.html"]
        space.grow(PAGE * (1 + sum(-(-path.stat().st_size // PAGE) for path in files)))
        shutil.copytree(straight, folder, ignore=shutil.ignore_patterns("report.html"))
        (folder / "report.html").write_text("<html>the old one</html>")
        return Command(scripts.REPORT, [folder], folder)
    return workshop.command(program, folder)


def judge_full_disk(done: scripts.Result, folder: Path) -> tuple[str, list[str]]:
    """Return the file that could not be written, and what is wrong with the way it failed."""
    wrong = []
    if done.code != 1 or "Traceback" in done.err or not done.message:
        wrong.append(f"no clear end: {done.last_words()}")
    if not any(words in done.message for words in ("bytes free", "GB are free")):
        wrong.append(f"the free bytes are not named: {done.message}")
    if str(folder) not in done.message:
        return "", [*wrong, f"the file is not named: {done.message}"]
    wrong += broken_files(folder)
    wrong += [f"{path.name} is left" for path in folder.rglob(f"*{TEMPORARY_SUFFIX}")]
    for table in folder.rglob("*.csv.unfinished"):
        if not (b"\n" + table.read_bytes()).endswith(b"\n"):
            wrong.append(f"{table.name} does not end on a whole line")
    return str(folder) + done.message.partition(str(folder))[2].partition(": ")[0], wrong


# ---- A second process ----

RIVALS = ("stage1", "stage2", "pack", "evaluate", "predict")
_HOLDS = {
    "pack": "pack.bin.unfinished",
    "evaluate": "petface_eval_per_image.csv.unfinished",
    "predict": "answers.csv.unfinished",
}


def torture_two_processes(workshop: Workshop, program: str) -> Outcome:
    """Freeze a program at work, start it a second time, let the first continue.

    The second is refused, and nothing changes.
    """
    straight, outcome = workshop.straight(program), Outcome("two_processes", program)
    folder, failures = workshop.fresh("rival", program), outcome.failures
    command, holds = workshop.command(program, folder), _HOLDS.get(program, "run.lock")
    with outcome.timed():
        first = workshop.start(command, streams="first")
        until = time.monotonic() + scripts.PATIENCE_S
        while not first.is_over() and time.monotonic() < until:
            if any(path.stat().st_size > 0 for path in folder.rglob(holds)):
                break
            time.sleep(0.001)
        first.send(signal.SIGSTOP)
        second = workshop.start(command).wait()
        if first.is_over():
            failures.append("the first was over before the second began")
        if second.code != 1 or "Traceback" in second.err:
            failures.append(f"the second is not refused, {second.last_words()}")
        if f"process {first.pid}" not in second.message and Path("/proc/locks").exists():
            failures.append(f"who holds it is not said: {second.message}")
        first.send(signal.SIGCONT)
        done = first.wait()
        if done.code != 0:
            failures.append(f"the first does not end well, {done.last_words()}")
        failures += _lost_and_left(straight, folder)
    outcome.counts = {"refused": int(second.code == 1)}
    return outcome


# ---- Stops ----

STOPPED = ("stage1 x 1", "stage2 x 1", "stage1 x 2", "stage2 x 2")  # processes
PACKS = ((), ("--pack", "auto"))


def torture_resume(workshop: Workshop, what: str, num_stops: int, seed: int) -> Outcome:
    """Stop a training at random steps, with each of the flags `PACKS`; it must not change a bit."""
    workshop.straight("stage1")
    program, _, number = what.partition(" x ")
    outcome, num_processes = Outcome("resume", what), int(number)
    late = int(num_processes > 1)  # several stop a step after they are asked
    draw, counts = random.Random(f"{seed} {what}"), outcome.counts
    own = ["--batch-size", 16]  # more steps to be stopped at
    own += ["--species", workshop.species[0]] if program == "stage2" else []
    nothing: list[scripts.Hook | None] = [None] * num_processes

    def run(name: str, pack: Sequence[str], hooks: list[scripts.Hook | None]) -> Any:
        folder = workshop.scratch("resume") / f"{program}_{num_processes}_{name}{len(pack)}"
        script, flags, _ = workshop.command(program, folder)
        streams = workshop.scratch("streams")
        return folder, scripts.run_together(script, [*flags, *own, *pack], streams, hooks)

    with outcome.timed():
        straight, *packed = [run("straight", pack, nothing)[0] for pack in PACKS]
        for other in packed:
            outcome.failures += [f"with a pack: {t}" for t in run_differences(straight, other)]
        last = checkpoints.load(next(straight.rglob("*last.pt")))
        in_last = max(int(state["step"]) for state in last["optimizer"]["state"].values())
        phases = [row.get("phase") for row in last["history"]]  # each has an optimizer of its own
        counts["steps"] = num_steps = in_last * len(phases) // max(phases.count(phases[-1]), 1)
        for pack in PACKS:
            steps = range(1, num_steps, 1 + late)
            chosen = sorted(draw.sample(steps, min(num_stops, len(steps))))
            for before, step in zip([-late, *chosen], chosen, strict=False):
                signal_number = draw.choice([signal.SIGTERM, signal.SIGINT])
                hooks = nothing[:]  # to ask one of the processes is enough to stop all
                stop = scripts.SignalAtStep(step - before - late, signal_number)
                hooks[draw.randrange(num_processes)] = stop
                _, done = run("resumed", pack, hooks)
                if [ended.code for ended in done] != [128 + signal_number] * num_processes:
                    outcome.failures.append(f"not stopped at {step}: {done[0].last_words()}")
                    break
                counts["stops"] += 1
            folder, done = run("resumed", pack, nothing)
            if any(ended.code for ended in done):
                outcome.failures.append(f"it does not resume: {done[0].last_words()}")
            outcome.failures += _lost_and_left(straight, folder)
    return outcome
