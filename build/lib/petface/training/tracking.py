"""The figures of every epoch for TensorBoard and for Weights & Biases, where a run wants them."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petface.errors import UserError, install_line


@dataclass(frozen=True)
class Tracking:
    """Which trackers a run writes to besides metrics.csv."""

    tensorboard: bool = False
    wandb_project: str = ""  # "" = off; WANDB_MODE=offline in the environment needs no network

    def check(self) -> None:
        """Raise `UserError` where a package is missing: said before the training, not after it."""
        wished = {
            "TENSORBOARD": "torch.utils.tensorboard" if self.tensorboard else "",
            "WANDB": "wandb" if self.wandb_project else "",
        }
        for constant, package in wished.items():
            try:
                importlib.import_module(package or "sys")
            except ImportError as error:
                raise UserError(
                    f"{constant} needs a package that is missing ({error}): {install_line('track')}"
                ) from error

    def write(self, folder: Path, row: Mapping[str, Any]) -> None:
        """Add the numbers of an epoch's row of metrics.csv.

        A row of an epoch that is there already, as after a kill, stands twice; both are shown. To
        Weights & Biases a resumed run is a second one of the same group.
        """
        figures = {k: v for k, v in row.items() if k != "epoch" and isinstance(v, int | float)}
        if self.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            with SummaryWriter(str(folder / "tensorboard")) as writer:
                for name, value in figures.items():
                    writer.add_scalar(name, value, row["epoch"])
        if self.wandb_project:
            _wandb_run(self.wandb_project, folder).log(figures, step=row["epoch"])


@functools.cache
def _wandb_run(project: str, folder: Path) -> Any:
    """Begin a run of Weights & Biases once for each folder; the next, or the end, finishes it."""
    wandb: Any = importlib.import_module("wandb")
    name = "/".join(folder.parts[-2:])
    return wandb.init(project=project, dir=folder, name=name, group=name, reinit="finish_previous")
