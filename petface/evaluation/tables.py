"""Confusion matrices and per-class figures as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from petface import files


def write_confusion(path: Path, confusion: np.ndarray, class_names: Sequence[str]) -> None:
    """Write a (K, K) matrix as CSV: a row per true class, a column per answer, with the names."""
    names = list(class_names)
    rows = [[name, *counts] for name, counts in zip(names, confusion.tolist(), strict=True)]
    files.write_csv(path, ["true \\ predicted", *(str(files.safe_cell(n)) for n in names)], rows)
