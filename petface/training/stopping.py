"""SIGINT and SIGTERM as a wish that is obeyed between two steps, in all processes at once."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType
from typing import Any

from petface import distributed

_COPY_S = 5.0  # between two signals that count as one under torchrun


class StopRequest:
    """While entered, SIGINT and SIGTERM only ask to stop; a second signal leaves at once."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._noted_at = 0.0
        self._is_over = False  # nothing is left that a signal must wait for
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.signal_number is not None:
            # a launcher may send its own copy of a signal that went to every process
            if distributed.local_rank() is None or time.monotonic() - self._noted_at > _COPY_S:
                os._exit(128 + number)
            return
        self.signal_number, self._noted_at = number, time.monotonic()
        if self._is_over:
            self._leave()
        if not distributed.shows():
            return
        print("\nstopping after this step; once more to leave at once", file=sys.stderr)

    def asked(self) -> bool:
        """Tell whether a signal has come to any process; all must ask at the same place."""
        asked = max(numbers[0] for numbers in distributed.gather_numbers(self.signal_number or 0))
        if asked:  # not where nobody was: one may have come since
            self.signal_number = self.signal_number or asked
        return asked > 0

    def leave_at_once(self) -> None:
        """Let a signal end the process from here on, or now: what is left can be done anew."""
        self._is_over = True
        if self.signal_number is not None:
            self._leave()

    def _leave(self) -> None:
        print("\nstopped; the same command goes on there", file=sys.stderr)
        sys.exit(self.exit_code)

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, 143 after SIGTERM, 0 if nobody asked."""
        return 128 + self.signal_number if self.signal_number is not None else 0
