"""The confusion table as other programs read it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from petface.evaluation.tables import write_confusion
from petface.files import plain_cell

NAMES = ["Bulldog, Olde mix", "=1+1", 'so-called "x"', "NA"]


def test_confusion_round_trips(tmp_path: Path) -> None:
    confusion = np.arange(16).reshape(4, 4)
    write_confusion(tmp_path / "confusion.csv", confusion, NAMES)
    table = pd.read_csv(tmp_path / "confusion.csv", index_col=0, keep_default_na=False)
    np.testing.assert_array_equal(table.to_numpy(), confusion)
    assert table.index.name == "true \\ predicted"
    for names in (table.index, table.columns):
        assert [plain_cell(name) for name in names] == NAMES
        assert not any(name.startswith("=") for name in names)


def test_names_and_counts_must_agree(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zip"):
        write_confusion(tmp_path / "confusion.csv", np.zeros((3, 3), int), NAMES)
    assert not list(tmp_path.iterdir())
