"""Standard output and error of a script: any encoding, closed, full, or with nobody who reads."""

from __future__ import annotations

import os
import select
import sys
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import Any

_goes_on = False


class _Stream(FileIO):
    """The bytes of a stream. What cannot be written raises once, or not at all."""

    failure: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            while self.failure is None:
                if (written := super().write(content)) is not None:
                    return written
                select.select((), (self,), ())  # a pipe that somebody made non-blocking
        except OSError as error:
            self.failure = error
            if not _goes_on and self.fileno() == 1:
                raise
        return len(content)


def guard() -> None:
    """Make the streams of this process safe.

    Names print escaped where the encoding lacks them, whole lines are written at once, and a closed
    descriptor is opened, so that no file of the script takes its number and what is printed to it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        old = getattr(sys, name)
        if isinstance(old, TextIOWrapper) and old is getattr(sys, f"__{name}__"):
            raw = BufferedWriter(_Stream(descriptor, "w", closefd=False))
            new = TextIOWrapper(raw, old.encoding, "backslashreplace", line_buffering=True)
            setattr(sys, name, new)
            setattr(sys, f"__{name}__", new)


def outlive_reader() -> None:
    """Go on in silence from here on where standard output breaks: the work is worth more."""
    global _goes_on
    _goes_on = True


def failure() -> OSError | None:
    """Return why standard output could not be written, where that ends the script."""
    raw = getattr(getattr(sys.__stdout__, "buffer", None), "raw", None)
    return raw.failure if isinstance(raw, _Stream) and not _goes_on else None
