"""Progress over photos: a bar in a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

LINE_EVERY_S = 30.0


class _Lines:
    """What a log takes of a bar: whole lines, no carriage returns."""

    def __init__(self, to: TextIO) -> None:
        self._to = to

    def write(self, text: str) -> None:
        if line := text.strip():
            self._to.write(f"{line}\n")

    def flush(self) -> None:
        self._to.flush()


def progress(items: Iterable[Any] | None = None, *, shown: bool = True, **options: Any) -> tqdm:
    """Return a bar of tqdm on standard error, or what prints a line every half minute in a log.

    `options` are tqdm's. What takes less than half a minute leaves no line in a log.
    """
    options = {"unit": "img", "mininterval": 0.5, **options}
    if sys.stderr is not None and not sys.stderr.isatty():
        options |= {"file": _Lines(sys.stderr), "mininterval": LINE_EVERY_S, "ascii": True}
        options["delay"] = LINE_EVERY_S
    return tqdm(items, disable=not shown or sys.stderr is None, **options)
