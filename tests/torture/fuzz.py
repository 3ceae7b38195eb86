"""The runner of all fuzzers: a fuzzer draws a file and judges what comes of it.

    python -m tests.torture.fuzz MODULE:FUZZER ARGUMENT PATIENCE_S SEED FIRST END BYTES CEILING

A new fuzzer is two small functions, run by `fuzz` in this process, or by `fuzz_apart` where what is
attacked may crash, hang or take all memory. A file is refused in one line or read; nothing in it
is executed, none is changed, and all take less memory than a ceiling.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petface.errors import UserError
from tests.scripts import ENVIRONMENT, REPOSITORY
from tests.torture.outcome import Outcome, begin_peak, peak_bytes

MEMORY_BYTES = 1_000_000_000  # address space of a process of `fuzz_apart`
PATIENCE_S = 20.0  # for one file; any takes well below a second on a machine that is not busy
CEILING_BYTES = 700_000_000  # that one file may take beyond what the process had
CANARY = "executed"  # what is hostile tries to make this file beside its own
_SPANS = 1, 2, 8, 300  # bytes that are damaged together
_NEVER = "executed", "hang", "crash", "altered", "traceback", "wrong"
# A file's bytes, where a link leads, a file that is the same, a pipe that nobody writes into.
Content = bytes | str | Path | None
Files = Mapping[str, Content]  # by the path in their folder; a name that ends in / is a folder


@dataclass(frozen=True)
class Fuzzer:
    """How one kind of file is attacked."""

    draw_file: Callable[[int, random.Random], tuple[str, Any]]  # number -> its kind, its bytes
    judge: Callable[[Any], tuple[str, str]]  # -> a word for what came of it; what is wrong, or ""

    def judged(
        self, number: int, seed: int, ceiling: int, patience_s: float = 0.0
    ) -> tuple[str, str, str, int, float]:
        """Draw a file, the same in every process; its kind, what came of it, bytes, seconds.

        Beyond `patience_s` a signal ends the process; 0: it has all the time it wants.
        """
        kind, data = self.draw_file(number, random.Random(f"{seed} {number}"))
        before, begun = begin_peak(), time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, patience_s)
        result, fault = self.judge(data)
        signal.setitimer(signal.ITIMER_REAL, 0)
        taken, seconds = peak_bytes() - before, time.monotonic() - begun
        if taken > ceiling and not fault:
            result, fault = "wrong", f"took {taken / 1e6:.0f} MB"
        return kind, result, fault, taken, seconds


def fuzz(
    outcome: Outcome, fuzzer: Fuzzer, num_files: int, seed: int, ceiling_bytes: int = CEILING_BYTES
) -> Outcome:
    """Judge the files of a fuzzer one after the other."""
    with _counted(outcome, ceiling_bytes) as counted:
        for number in range(num_files):
            counted(number, seed, *fuzzer.judged(number, seed, ceiling_bytes))
    return outcome


@contextmanager
def _counted(outcome: Outcome, ceiling_bytes: int) -> Iterator[Callable[..., None]]:
    """Count what comes of files, and end with how often what must never be was, with peaks."""
    peak, slowest_s = 0, 0.0

    def counted(
        number: int, seed: int, kind: str, result: str, fault: str, taken: int, seconds: float
    ) -> None:
        nonlocal peak, slowest_s
        outcome.count(f"file {number} of seed {seed} ({kind})", result, fault)
        peak, slowest_s = max(peak, taken), max(slowest_s, seconds)

    with outcome.timed():
        yield counted
    never = {word: outcome.counts.pop(word, 0) for word in _NEVER}
    most = {"peak_mb": peak // 1_000_000, "ceiling_mb": ceiling_bytes // 1_000_000}
    outcome.counts.update({**never, **most, "slowest_s": slowest_s})


def fuzz_apart(
    outcome: Outcome,
    fuzzer: str,
    argument: str,
    num_files: int,
    seed: int,
    patience_s: float = PATIENCE_S,
    memory_bytes: int = MEMORY_BYTES,
    ceiling_bytes: int = CEILING_BYTES,
) -> Outcome:
    """Judge the files of `fuzzer` ("module:function", called with `argument`) in processes.

    A process has little address space and a timer whose signal ends it: a crash or a hang of C code
    is seen from outside, by the signal that it died of. The next one goes on behind that file.
    """
    first = 0
    with _counted(outcome, ceiling_bytes) as counted:
        while first < num_files:
            numbers = [patience_s, seed, first, num_files, memory_bytes, ceiling_bytes]
            done = subprocess.run(
                [sys.executable, "-m", "tests.torture.fuzz", fuzzer, argument, *map(str, numbers)],
                capture_output=True,
                text=True,
                env={**os.environ, **ENVIRONMENT, "OPENBLAS_NUM_THREADS": "1"},
                cwd=REPOSITORY,
            )
            for line in (line for line in done.stdout.splitlines() if line.endswith("]")):
                counted(first, seed, *json.loads(line))
                first += 1
            if done.returncode == 0:
                break
            end = "hang" if done.returncode == -signal.SIGALRM else "crash"
            words = f"exit code {done.returncode} {done.stderr.strip().rpartition(chr(10))[2]}"
            counted(first, seed, "last", end, f"{end}, {words}", 0, 0.0)
            first += 1
    return outcome


def _work(
    fuzzer: Fuzzer, patience_s: float, seed: int, first: int, end: int, most: int, ceiling: int
) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    warnings.simplefilter("ignore")
    for number in range(first, end):
        judged = fuzzer.judged(number, seed, ceiling, patience_s)
        print(json.dumps(judged), flush=True)


def one_line(message: str, name: object) -> str:
    """Return what is wrong with a refusal: it is one line of some length that names the file."""
    is_good = "\n" not in message and str(name) in message and len(message) < 1500
    return "" if is_good else f"says {message[:300]!r}"


def judge_reading(
    path: Path,
    data: bytes | Files,
    read: Callable[[Path], Any],
    wrong_message: Callable[[str], str],
    difference: Callable[[Any], str] = lambda _: "",
) -> tuple[str, str]:
    """Read a file, or a folder: refused with a message that is not wrong, or read as it should be.

    What was written is there afterwards, and nothing else; no canary was made.
    """
    lay(path, data)
    before = _state(path)
    try:
        fault = difference(read(path))
        result = "altered" if fault else "read"
    except UserError as error:
        fault = wrong_message(str(error))
        result = "wrong" if fault else "refused"
    except BaseException as error:
        result, fault = "traceback", f"{type(error).__name__}: {str(error)[:300]}"
    if _state(path) != before:
        result, fault = "altered", "what was read is not what it was"
    if (canary := path.parent / CANARY).exists():
        canary.unlink()
        result, fault = "executed", "what it holds was executed"
    return result, fault


def lay(path: Path, data: bytes | Files) -> None:
    """Write a file, or a folder with nothing but these files in it."""
    if isinstance(data, bytes):
        path.write_bytes(data)
        return
    shutil.rmtree(path, ignore_errors=True)
    for name, content in data.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            file.mkdir()
        elif content is None:
            os.mkfifo(file)
        elif isinstance(content, str):
            file.symlink_to(content)
        elif isinstance(content, Path):
            os.link(content, file)
        else:
            file.write_bytes(content)


def _state(path: Path) -> dict[str, object]:
    """Return the kind and the content of a file, and of all in a folder."""
    found: dict[str, object] = {}
    for file in (path, *path.rglob("*")):
        is_plain = file.is_file() and not file.is_symlink()
        content = hashlib.sha256(file.read_bytes()).digest() if is_plain else b""
        found[str(file)] = file.lstat().st_mode, content
    return found


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
