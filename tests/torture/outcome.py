"""What a part of the torture showed, the ways to damage a file, and what comes of each file."""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from petface.errors import UserError

_MAX_SHOWN = 10  # failures of a row that are printed
_SPANS = 1, 2, 8, 300  # bytes that are damaged together


@dataclass
class Outcome:
    """A row of the table: what was done, how often, and everything that went wrong."""

    part: str
    what: str
    counts: dict[str, object] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time of a block."""
        begun = time.monotonic()
        yield
        self.seconds += time.monotonic() - begun

    def line(self) -> str:
        """Format the row."""
        counts = ", ".join(f"{name} {_shown(value)}" for name, value in self.counts.items())
        state = f"FAILED {len(self.failures)}" if self.failures else "ok"
        return f"{self.part:14s} {self.what:22s} {state:10s} {self.seconds:7.1f} s  {counts}"


def table(outcomes: Sequence[Outcome]) -> str:
    """Format every row, then what went wrong in each."""
    lines = [outcome.line() for outcome in outcomes]
    for outcome in outcomes:
        lines += [
            f"  {outcome.part}, {outcome.what}: {text}" for text in outcome.failures[:_MAX_SHOWN]
        ]
        if len(outcome.failures) > _MAX_SHOWN:
            lines.append(f"  ... and {len(outcome.failures) - _MAX_SHOWN} more")
    return "\n".join(lines)


def begin_peak() -> int:
    """Forget the most memory that this process has had, where the system can; return what it has.

    On Linux `ru_maxrss` is never less than what the process had that started this one.
    """
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def peak_bytes() -> int:
    """Return the most bytes of memory since `begin_peak`; 0 where the system does not tell."""
    with suppress(OSError):
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) * 1024 if found else 0
    return 0


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def read_damaged(
    outcome: Outcome,
    path: Path,
    files: Iterable[tuple[str, bytes]],
    read: Callable[[Path], Any],
    is_refusal: Callable[[str], bool],
    difference: Callable[[Any], str],
) -> None:
    """Read damaged files, given as (kind, content), one after the other at `path`.

    Each is refused with a message that `is_refusal` accepts, or read with no `difference`.
    """
    results: Counter[str] = Counter()
    for number, (kind, data) in enumerate(files):
        path.write_bytes(data)
        result, why = "identical", ""
        try:
            found = read(path)
        except UserError as error:
            result = "refused"
            if not is_refusal(str(error)):
                result, why = "wrong", f"message {str(error)!r}"
        except BaseException as error:
            result, why = "wrong", f"{type(error).__name__}: {error}"
        else:
            if why := difference(found):
                result = "altered"
        results[result] += 1
        if why:
            outcome.failures.append(f"file {number} ({kind}): {why}")
    outcome.counts |= {name: results[name] for name in ("refused", "identical", "altered", "wrong")}


# The ways to damage the bytes of a file between two places, the same for the same draw.


def flipped_bit(data: bytes, begin: int, end: int, draw: random.Random) -> bytes:
    place = draw.randrange(begin, end)
    return data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]


def overwritten(data: bytes, begin: int, end: int, draw: random.Random) -> bytes:
    place, span = draw.randrange(begin, end), draw.choice(_SPANS)
    content = draw.choice([bytes(span), b"\xff" * span, draw.randbytes(span)])
    return data[:place] + content + data[place + span :]


def block_gone(data: bytes, begin: int, end: int, draw: random.Random) -> bytes:
    place = draw.randrange(begin, end)
    return data[:place] + data[place + draw.choice(_SPANS) :]


def block_more(data: bytes, begin: int, end: int, draw: random.Random) -> bytes:
    place = draw.randrange(begin, end)
    return data[:place] + draw.randbytes(draw.choice(_SPANS)) + data[place:]


def cut_short(data: bytes, begin: int, end: int, draw: random.Random) -> bytes:
    return data[: draw.randrange(begin, end)]


DAMAGES = (flipped_bit, overwritten, block_gone, block_more, cut_short)
