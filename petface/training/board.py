"""A run's figures for TensorBoard, for those who watch several runs at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from petface.errors import UserError, install_line

FOLDER = "tensorboard"
INSTALL_LINE = install_line("track")


def check_board() -> None:
    """Raise `UserError` where the package is missing: said before the training, not after it."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"TENSORBOARD needs a package that is missing ({error}): {INSTALL_LINE}"
        ) from error


def write_board(folder: Path, row: Mapping[str, Any]) -> None:
    """Add an epoch's row of metrics.csv to the event files in `folder`/tensorboard.

    A row of an epoch that is there already, as after a kill, stands twice; TensorBoard shows both.
    """
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / FOLDER)) as writer:
        for name, value in row.items():
            if name != "epoch" and isinstance(value, int | float):
                writer.add_scalar(name, value, row["epoch"])
