"""The runner of all fuzzers: a fuzzer draws a file and judges what comes of it.

    python -m tests.torture.fuzz MODULE:FUZZER ARGUMENT PATIENCE_S SEED FIRST END BYTES

A new fuzzer is two small functions, run by `fuzz` in this process, or by `fuzz_apart` where what is
attacked may crash, hang or take all memory.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petface.errors import UserError
from tests.scripts import ENVIRONMENT, REPOSITORY
from tests.torture.outcome import Outcome, peak_bytes

MEMORY_BYTES = 1_000_000_000  # address space of a process of `fuzz_apart`
PATIENCE_S = 20.0  # for one file; any takes well below a second on a machine that is not busy
_SPANS = 1, 2, 8, 300  # bytes that are damaged together


@dataclass(frozen=True)
class Fuzzer:
    """How one kind of file is attacked."""

    draw_file: Callable[[int, random.Random], tuple[str, bytes]]  # number -> its kind, its bytes
    judge: Callable[[bytes], tuple[str, str]]  # -> a word for what came of it; what is wrong, or ""

    def file(self, number: int, seed: int) -> tuple[str, bytes]:
        """Draw a file, the same in every process."""
        return self.draw_file(number, random.Random(f"{seed} {number}"))


def fuzz(outcome: Outcome, fuzzer: Fuzzer, num_files: int, seed: int) -> Outcome:
    """Judge the files of a fuzzer one after the other."""
    with outcome.timed():
        for number in range(num_files):
            kind, data = fuzzer.file(number, seed)
            outcome.count(f"file {number} of seed {seed} ({kind})", *fuzzer.judge(data))
    return outcome


def fuzz_apart(
    outcome: Outcome,
    fuzzer: str,
    argument: str,
    num_files: int,
    seed: int,
    patience_s: float = PATIENCE_S,
    memory_bytes: int = MEMORY_BYTES,
) -> Outcome:
    """Judge the files of `fuzzer` ("module:function", called with `argument`) in processes.

    A process has little address space and a timer whose signal ends it: a crash or a hang of C code
    is seen from outside, by the signal that it died of. The next one goes on behind that file.
    """
    peak, slowest_s, first = 0, 0.0, 0
    with outcome.timed():
        while first < num_files:
            numbers = [str(number) for number in (patience_s, seed, first, num_files, memory_bytes)]
            done = subprocess.run(
                [sys.executable, "-m", "tests.torture.fuzz", fuzzer, argument, *numbers],
                capture_output=True,
                text=True,
                env={**os.environ, **ENVIRONMENT, "OPENBLAS_NUM_THREADS": "1"},
                cwd=REPOSITORY,
            )
            for line in (line for line in done.stdout.splitlines() if line.endswith("]")):
                kind, result, fault, took, seconds = json.loads(line)
                outcome.count(f"file {first} of seed {seed} ({kind})", result, fault)
                peak, slowest_s, first = max(peak, took), max(slowest_s, seconds), first + 1
            if done.returncode == 0:
                break
            end = "hang" if done.returncode == -signal.SIGALRM else "crash"
            words = f"exit code {done.returncode} {done.stderr.strip().rpartition(chr(10))[2]}"
            outcome.count(f"file {first} of seed {seed}", end, f"{end}, {words}")
            first += 1
    outcome.counts |= {"peak_mb": peak // 1_000_000, "slowest_s": slowest_s}
    return outcome


def _work(fuzzer: Fuzzer, patience_s: float, seed: int, first: int, end: int, most: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    warnings.simplefilter("ignore")
    for number in range(first, end):
        kind, data = fuzzer.file(number, seed)
        signal.setitimer(signal.ITIMER_REAL, patience_s)  # its signal ends the process
        begun = time.monotonic()
        result, fault = fuzzer.judge(data)
        seconds = time.monotonic() - begun
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps([kind, result, fault, peak_bytes(), seconds]), flush=True)


def judge_reading(
    path: Path,
    data: bytes,
    read: Callable[[Path], Any],
    wrong_message: Callable[[str], str],
    difference: Callable[[Any], str],
) -> tuple[str, str]:
    """Read a file: refused with a message that is not wrong, or read without a difference."""
    path.write_bytes(data)
    try:
        found = read(path)
    except UserError as error:
        fault = wrong_message(str(error))
        return "wrong" if fault else "refused", fault
    except BaseException as error:
        return "wrong", f"{type(error).__name__}: {error}"
    fault = difference(found)
    return "altered" if fault else "read", fault


def flipped_bit(data: bytes, place: int, draw: random.Random) -> bytes:
    """Flip one bit of a byte."""
    return data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]


def damaged(data: bytes, draw: random.Random, begin: int = 0, end: int | None = None) -> bytes:
    """Damage between two places as a broken disk or transfer does."""
    place, span = draw.randrange(begin, len(data) if end is None else end), draw.choice(_SPANS)
    content = draw.choice([bytes(span), b"\xff" * span, draw.randbytes(span)])
    before, after = data[:place], data[place:]
    ways = {
        "flipped": flipped_bit(data, place, draw),
        "overwritten": before + content + after[span:],
        "gone": before + after[span:],
        "more": before + draw.randbytes(span) + after,
        "cut short": before,
    }
    return draw.choice(list(ways.values()))


if __name__ == "__main__":
    module, _, function = sys.argv[1].partition(":")
    made = getattr(importlib.import_module(module), function)(sys.argv[2])
    _work(made, float(sys.argv[3]), *map(int, sys.argv[4:]))
