"""Evaluations again and again, and a server under a light load: memory and handles stay flat.

python -m tests.torture.soak <evaluation flags as JSON>    # what the evaluating process does
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import httpx

from tests import scripts
from tests.tools.test_serve import served
from tests.torture.fixtures import Workshop
from tests.torture.outcome import Outcome

NUM_SAMPLES = 200
MAX_GROWTH_BYTES = 16_000_000  # of the floor, from the second quarter to the last
MAX_GROWTH_FRAC = 0.05
_FLOOR_FRAC = 0.1  # of the samples lie below the floor; what lies above comes and goes
MAX_MORE_HANDLES = 2
_PAUSE_S = 0.05  # between two photos for the server


class Sample(NamedTuple):
    """What a process had at some moment."""

    seconds: float
    resident_bytes: int
    num_handles: int


def torture_soak(workshop: Workshop, seconds: float) -> list[Outcome]:
    """Watch a process that evaluates and one that serves, at the same time."""
    begun, folder = time.monotonic(), workshop.scratch("soak")
    stage1, stage2 = workshop.straight("stage1") / "best.pt", workshop.straight("stage2")
    what = {
        "images_root": str(workshop.data / "images"),
        "annotations_root": str(workshop.data / "annotations"),
        "stage1_checkpoint": str(stage1),
        "stage2_folder": str(stage2),
        "out_dir": str(folder / "out"),
    }
    flags = ["--stage1-checkpoint", stage1, "--stage2-folder", stage2]
    with served(folder, *flags) as server, evaluating(what) as evaluator:
        with Load(server.url, sorted(workshop.data.glob("images/*/*/*.png"))) as load:
            evaluator.stdout.readline()  # after the first evaluation
            outcomes = watch({"evaluation": evaluator, "server": server.process}, seconds)
        evaluator.kill()
        num_evaluations = 1 + len(evaluator.stdout.readlines())
    outcomes[0].counts |= {"evaluations": num_evaluations}
    outcomes[1].counts |= {"photos": load.num_answered}
    if load.failures:
        outcomes[1].failures.append(f"{len(load.failures)} went wrong: {load.failures[0]}")
    for outcome in outcomes:
        outcome.seconds = time.monotonic() - begun
    return outcomes


def watch(processes: dict[str, subprocess.Popen[str]], seconds: float) -> list[Outcome]:
    """Take samples of processes, and judge them."""
    taken: dict[str, list[Sample]] = {name: [] for name in processes}
    start = time.monotonic()
    for number in range(NUM_SAMPLES):
        time.sleep(max(0.0, start + seconds * (number + 1) / NUM_SAMPLES - time.monotonic()))
        for name, process in processes.items():
            with contextlib.suppress(OSError):  # it is gone
                taken[name].append(sample(process.pid, time.monotonic() - start))
    outcomes = [Outcome("soak", name, *judge(samples)) for name, samples in taken.items()]
    for outcome, process in zip(outcomes, processes.values(), strict=True):
        if process.poll() is not None:
            outcome.failures.append(f"it ended with code {process.returncode}")
    return outcomes


def sample(pid: int, seconds: float) -> Sample:
    """Read memory and open handles of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    handles = len(os.listdir(f"/proc/{pid}/fd"))
    return Sample(seconds, pages * os.sysconf("SC_PAGE_SIZE"), handles)


def judge(samples: Sequence[Sample]) -> tuple[dict[str, object], list[str]]:
    """Compare the second quarter with the last; the first is for warming up.

    Memory rises and falls with each evaluation, so its floor is what tells a leak.
    """
    quarter = len(samples) // 4
    if quarter < 2:
        return {}, [f"only {len(samples)} samples"]
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    before, after = (
        sorted(s.resident_bytes for s in part)[int(_FLOOR_FRAC * quarter)] for part in (early, late)
    )
    handles = [statistics.median(s.num_handles for s in part) for part in (early, late)]
    x, y = zip(*[(s.seconds / 3600, s.resident_bytes) for s in samples[quarter:]], strict=True)
    slope = statistics.linear_regression(x, y).slope
    failures = []
    if after - before > max(MAX_GROWTH_BYTES, MAX_GROWTH_FRAC * before):
        failures.append(f"memory grew from {before / 1e6:.0f} to {after / 1e6:.0f} MB")
    if handles[1] - handles[0] > MAX_MORE_HANDLES:
        failures.append(f"open handles grew from {handles[0]:.0f} to {handles[1]:.0f}")
    counts: dict[str, object] = {"mb": f"{before / 1e6:.0f} -> {after / 1e6:.0f}"}
    counts |= {"handles": f"{handles[0]:.0f} -> {handles[1]:.0f}", "mb_per_hour": slope / 1e6}
    return counts, failures


class Load:
    """Ask the server about one photo after the other, in a thread, until left."""

    def __init__(self, url: str, photos: Sequence[Path]) -> None:
        self._url, self._photos = url, photos
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._ask_on, daemon=True)
        self.num_answered, self.failures = 0, [""][:0]

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _ask_on(self) -> None:
        for number, photo in enumerate(itertools.cycle(self._photos)):
            if self._is_over.wait(_PAUSE_S):
                return
            path = "/explain?head=species" if number % 20 == 0 else "/predict"
            form = {"photo": photo.read_bytes()}
            try:
                reply = httpx.post(self._url + path, files=form, trust_env=False, timeout=60)
            except httpx.HTTPError as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                continue
            self.num_answered += 1
            if reply.status_code not in (200, 400):  # 400: a photo that is broken on purpose
                self.failures.append(f"{photo.name}: code {reply.status_code}")


@contextlib.contextmanager
def evaluating(flags: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Start a process that evaluates again and again, and says so; end it when left."""
    command = [sys.executable, "-u", "-m", "tests.torture.soak", json.dumps(flags)]
    environment = {**os.environ, **scripts.ENVIRONMENT}
    with subprocess.Popen(
        command, cwd=scripts.REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def evaluate_on(evaluate: Callable[..., object], flags: dict[str, str]) -> None:
    """Evaluate again and again; say after each how often it was.

    What the C library keeps free between two of them is given back, so that what grows is in use.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)  # glibc has it
    for number in itertools.count(1):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            evaluate(**flags, device="cpu", precision="fp32", num_workers=0, force=True)
        trim(0)
        print(f"evaluations: {number}", flush=True)


if __name__ == "__main__":
    from inference_engine import evaluate_full_dataset

    evaluate_on(evaluate_full_dataset, json.loads(sys.argv[1]))
