"""Hooks: what is done to the process of a script before the script runs."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class SlowDisk:
    """Write long tables in halves and wait before each flush, so that a kill meets half a file."""

    pause_s: float = 0.002

    def __call__(self) -> None:
        from petface import resumable as rows
        from petface.data import packing

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
        rows.FileIO = packing.FileIO = SlowFile  # type: ignore[misc]


@dataclass(frozen=True)
class FillDiskAt:
    """Fill the disk with `ballast` when a file that will have this name is about to be written."""

    name: str
    ballast: Path

    def __call__(self) -> None:
        from petface import resumable as rows
        from petface.data import packing
        from petface.training import runs

        opened = Path.open

        def opening(path: Path, mode: str = "r", *arguments: Any, **named: Any) -> IO[Any]:
            handle = opened(path, mode, *arguments, **named)
            if "r" not in mode or "+" in mode:
                self._note(path.name)
            return handle

        note = self._note

        class NotedFile(rows.FileIO):  # type: ignore[name-defined]
            def write(self, content: Any) -> int:
                note(Path(str(self.name)).name)
                return int(super().write(content))

        Path.open = opening  # type: ignore[method-assign, assignment]
        for module in (packing, rows, runs):
            module.FileIO = NotedFile  # type: ignore[misc]

    def _note(self, name: str) -> None:
        if name.removesuffix(".partial-write").removesuffix(".unfinished") != self.name:
            return
        with suppress(OSError), open(self.ballast, "ab", buffering=0) as handle:  # noqa: PTH123
            for size in (_BLOCK_BYTES, 4096):
                with suppress(OSError):
                    while handle.write(bytes(size)):
                        pass
