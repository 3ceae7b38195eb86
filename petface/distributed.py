"""What torchrun tells a process about its place among others; alone, everything is a no-op."""

from __future__ import annotations

import os


def rank() -> int:
    """Place of this process among all, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes that work together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Tell whether this process is the one that writes files and prints."""
    return rank() == 0
