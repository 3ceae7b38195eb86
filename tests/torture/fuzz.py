"""Rows of the torture, and the runner of all fuzzers: one draws a file and judges what comes of it.

    python -m tests.torture.fuzz MODULE:FUZZER FOLDER SEED FIRST END

A new fuzzer is two small functions, run by `fuzz` in this process, or by `fuzz_apart` where what is
attacked may crash, hang or take all memory. A file is refused in one line or read; nothing in it
is executed, none is changed, and all take less memory than a ceiling.
"""

from __future__ import annotations

import hashlib
import json
import os
import pkgutil
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from petface.errors import UserError
from tests.scripts import ENVIRONMENT, REPOSITORY

CANARY = "executed"  # what is hostile tries to make this file beside its own
_NEVER = "executed", "hang", "crash", "altered", "traceback", "wrong"
# A file's bytes, where a link leads, a file that is the same, a pipe nobody writes into, a folder.
Content = bytes | str | Path | None
FOLDER = "/"
Files = Mapping[str, Content]  # by the path in their folder
# Instead of a file: a pipe, a folder, links: to nothing, to itself, to what never ends, away.
ODD_FILES: tuple[str | None, ...] = (
    *(None, FOLDER, "nothing", "/dev/zero", "/proc/self/mem", "/dev/tty", "/etc/hostname"),
    *(".", "../secret.bin", "preset.toml", "splits.csv", "cat.onnx"),
)
Judged = tuple[str, str, str, int, float, int]  # kind, result, fault, bytes, seconds, ceiling


@dataclass
class Outcome:
    """A row of the table: what was done, how often, and everything that went wrong."""

    part: str
    what: str
    counts: Counter[str] | dict[str, Any] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time of a block."""
        begun = time.monotonic()
        yield
        self.seconds += time.monotonic() - begun


def table(outcomes: Sequence[Outcome]) -> str:
    """Format every row, then the first ten things that went wrong in each."""
    lines = []
    for row in outcomes:
        counts = {k: f"{v:,.2f}" if isinstance(v, float) else v for k, v in row.counts.items()}
        state = f"FAILED {len(row.failures)}" if row.failures else "ok"
        told = ", ".join(f"{name} {value}" for name, value in counts.items())
        lines.append(f"{row.part:14s} {row.what:22s} {state:10s} {row.seconds:7.1f} s  {told}")
    for row in outcomes:
        lines += [f"  {row.part}, {row.what}: {text}" for text in row.failures[:10]]
        lines += [f"  ... and {len(row.failures) - 10} more"] * (len(row.failures) > 10)
    return "\n".join(lines)


def begin_peak(process: int | str = "self") -> int:
    """Forget the most memory that this process has had, where the system can; return what it has.

    On Linux `ru_maxrss` is never less than what the process had that started this one.
    """
    with suppress(OSError):
        Path(f"/proc/{process}/clear_refs").write_text("5")
    return peak_bytes(process)


def peak_bytes(process: int | str = "self") -> int:
    """Return the most bytes of memory since `begin_peak`; 0 where the system does not tell."""
    with suppress(OSError):
        found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{process}/status").read_text())
        return int(found[1]) * 1024 if found else 0
    return 0


@dataclass(frozen=True)
class Fuzzer:
    """How one kind of file is attacked."""

    draw_file: Callable[[int, random.Random], tuple[str, Any]]  # number -> its kind, its bytes
    judge: Callable[[Any], tuple[str, str]]  # -> a word for what came of it; what is wrong, or ""
    ceiling_bytes: int = 700_000_000  # that one file may take beyond what the process had
    memory_bytes: int = 12 * 10**9  # address space of a process of `fuzz_apart`
    patience_s: float = 60.0  # there, for one file; any takes below a second on a quiet machine

    def judged(self, number: int, seed: int, patience_s: float = 0.0) -> Judged:
        """Draw a file, the same in every process, and judge what comes of it.

        Beyond `patience_s` a signal ends the process; 0: it has all the time it wants.
        """
        kind, data = self.draw_file(number, random.Random(f"{seed} {number}"))
        before, begun = begin_peak(), time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, patience_s)
        result, fault = self.judge(data)
        signal.setitimer(signal.ITIMER_REAL, 0)
        taken, seconds = peak_bytes() - before, time.monotonic() - begun
        if taken > self.ceiling_bytes and not fault:
            result, fault = "wrong", f"took {taken / 1e6:.0f} MB"
        return kind, result, fault, taken, seconds, self.ceiling_bytes


def fuzz(outcome: Outcome, fuzzer: Fuzzer, num_files: int, seed: int) -> Outcome:
    """Judge the files of a fuzzer one after the other."""
    return _count(outcome, (fuzzer.judged(n, seed) for n in range(num_files)), seed)


def fuzz_apart(outcome: Outcome, fuzzer: str, folder: Path, num_files: int, seed: int) -> Outcome:
    """Judge the files of `fuzzer` ("module:function", called with `folder`) in processes.

    A process has little address space and a timer whose signal ends it: a crash or a hang of C code
    is seen from outside, by the signal that it died of. The next one goes on behind that file.
    """

    def judged() -> Iterator[Judged]:
        first = 0
        while first < num_files:
            words = ["-m", "tests.torture.fuzz", fuzzer, folder, seed, first, num_files]
            environment = {**os.environ, **ENVIRONMENT, "OPENBLAS_NUM_THREADS": "1"}
            done = subprocess.run(
                [sys.executable, *map(str, words)], capture_output=True, text=True, env=environment,
                cwd=REPOSITORY,
            )  # fmt: skip
            found = [json.loads(line) for line in done.stdout.splitlines() if line.endswith("]")]
            yield from found
            first += len(found) + 1
            if done.returncode == 0:
                return
            end = "hang" if done.returncode == -signal.SIGALRM else "crash"
            words = f"exit code {done.returncode} {done.stderr.strip().rpartition(chr(10))[2]}"
            yield "last", end, f"{end}, {words}", 0, 0.0, 0

    return _count(outcome, judged(), seed)


def _count(outcome: Outcome, judged: Iterable[Judged], seed: int) -> Outcome:
    """Count what comes of files, and end with how often what must never be was, with peaks."""
    peak, slowest_s, ceiling = 0, 0.0, 0
    with outcome.timed():
        for number, (kind, result, fault, taken, seconds, most) in enumerate(judged):
            outcome.counts[result] += 1
            if fault:
                outcome.failures.append(f"file {number} of seed {seed} ({kind}): {fault}")
            peak, slowest_s, ceiling = max(peak, taken), max(slowest_s, seconds), max(ceiling, most)
    never = {word: outcome.counts.pop(word, 0) for word in _NEVER}
    most_mb = {"peak_mb": peak // 1_000_000, "ceiling_mb": ceiling // 1_000_000}
    outcome.counts.update({**never, **most_mb, "slowest_s": slowest_s})
    return outcome


def one_line(message: str, name: object) -> str:
    """Return what is wrong with a refusal: it is one line of some length that names the file."""
    is_good = "\n" not in message and str(name) in message and len(message) < 1500
    return "" if is_good else f"says {message[:300]!r}"


def judge_reading(
    path: Path,
    data: bytes | Files,
    read: Callable[[Path], Any],
    wrong_message: Callable[[str], str] | None = None,
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
        fault = wrong_message(str(error)) if wrong_message else one_line(str(error), path)
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
        if content is None:
            os.mkfifo(file)
        elif content == FOLDER:
            file.mkdir()
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


def damaged(data: bytes, draw: random.Random, begin: int = 0, end: int | None = None) -> bytes:
    """Damage between two places as a broken disk or transfer does."""
    place = draw.randrange(begin, len(data) if end is None else end)
    span = draw.choice((1, 2, 8, 300))
    content = draw.choice([bytes(span), b"\xff" * span, draw.randbytes(span)])
    before, after = data[:place], data[place:]
    flipped = bytes([data[place] ^ 1 << draw.randrange(8)])
    more, cut = before + draw.randbytes(span) + after, before
    overwritten, gone = before + content + after[span:], before + after[span:]
    return draw.choice([before + flipped + after[1:], overwritten, gone, more, cut])


if __name__ == "__main__":
    _fuzzer = pkgutil.resolve_name(sys.argv[1])(Path(sys.argv[2]))
    resource.setrlimit(resource.RLIMIT_AS, (_fuzzer.memory_bytes, _fuzzer.memory_bytes))
    warnings.simplefilter("ignore")
    _seed, _first, _end = map(int, sys.argv[3:])
    for _number in range(_first, _end):
        print(json.dumps(_fuzzer.judged(_number, _seed, _fuzzer.patience_s)), flush=True)
