"""What a part of the torture showed, and the table of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

_MAX_SHOWN = 10  # failures of a row that are printed


@dataclass
class Outcome:
    """A row of the table: what was done, how often, and everything that went wrong."""

    part: str
    what: str
    counts: dict[str, object] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def line(self) -> str:
        """Lay the row out."""
        counts = ", ".join(f"{name} {_shown(value)}" for name, value in self.counts.items())
        state = f"FAILED {len(self.failures)}" if self.failures else "ok"
        return f"{self.part:14s} {self.what:22s} {state:10s} {self.seconds:7.1f} s  {counts}"


def table(outcomes: Sequence[Outcome]) -> str:
    """Give every row, then what went wrong in each."""
    lines = [outcome.line() for outcome in outcomes]
    for outcome in outcomes:
        lines += [
            f"  {outcome.part}, {outcome.what}: {text}" for text in outcome.failures[:_MAX_SHOWN]
        ]
        if len(outcome.failures) > _MAX_SHOWN:
            lines.append(f"  ... and {len(outcome.failures) - _MAX_SHOWN} more")
    return "\n".join(lines)


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
