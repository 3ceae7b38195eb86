"""Hooks: what is done to the process of a script before the script runs."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SlowDisk:
    """Write long tables in halves and wait before each flush, so that a kill meets half a file."""

    pause_s: float = 0.002

    def __call__(self) -> None:
        from petface import resumable as rows
        from petface.data import pack

        pause_s, fsync = self.pause_s, os.fsync

        class SlowFile(rows.FileIO):  # type: ignore[name-defined]
            def write(self, content: Any) -> int:
                part = memoryview(content)[: max(1, len(content) // 2)]
                time.sleep(pause_s)
                return int(super().write(part))

        def slow_fsync(descriptor: int) -> None:
            time.sleep(pause_s)
            fsync(descriptor)

        os.fsync = slow_fsync  # type: ignore[assignment]
        rows.FileIO = pack.FileIO = SlowFile  # type: ignore[misc]
