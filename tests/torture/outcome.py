"""What a part of the torture showed, as a row of its table, and the memory of this process."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_MAX_SHOWN = 10  # failures of a row that are printed


@dataclass
class Outcome:
    """A row of the table: what was done, how often, and everything that went wrong."""

    part: str
    what: str
    counts: Counter[str] | dict[str, Any] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def count(self, name: str, result: str, fault: str) -> None:
        """Count what came of one file, and keep what is wrong with that."""
        self.counts[result] += 1
        if fault:
            self.failures.append(f"{name}: {fault}")

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time of a block."""
        begun = time.monotonic()
        yield
        self.seconds += time.monotonic() - begun

    def line(self) -> str:
        """Format the row."""
        shown = [
            f"{name} {value:,.2f}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.counts.items()
        ]
        state = f"FAILED {len(self.failures)}" if self.failures else "ok"
        row = f"{self.part:14s} {self.what:22s} {state:10s} {self.seconds:7.1f} s"
        return f"{row}  {', '.join(shown)}"


def table(outcomes: Sequence[Outcome]) -> str:
    """Format every row, then what went wrong in each."""
    lines = [outcome.line() for outcome in outcomes]
    for outcome in outcomes:
        for text in outcome.failures[:_MAX_SHOWN]:
            lines.append(f"  {outcome.part}, {outcome.what}: {text}")
        if len(outcome.failures) > _MAX_SHOWN:
            lines.append(f"  ... and {len(outcome.failures) - _MAX_SHOWN} more")
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
