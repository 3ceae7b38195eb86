"""What a run writes besides its weights: what made it, trackers, a picture of its first batch."""

from __future__ import annotations

import importlib
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional

from petface import distributed, files
from petface.data.fingerprint import versions
from petface.data.loading import Batch
from petface.errors import UserError, install_line
from petface.training.augment.mixing import Mixed

_GIT_S = 10.0
NUM_ACROSS, NUM_SHOWN, TILE_PX, TEXT_PX = 8, 32, 128, 26
_LETTERS = 21  # of a line under a tile


def run_entry(model: nn.Module, device: object, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Describe what made a checkpoint: code, time, device, torch, parameters, epoch metrics."""
    commit, is_dirty = _code_version()
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return {
        "commit": commit,
        "dirty": is_dirty,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "device": str(device),
        "torch": str(torch.__version__),
        "parameters": sum(size for size, _ in sizes),
        "trainable": sum(size for size, is_trained in sizes if is_trained),
        "metrics": dict(figures),
    }


@cache
def _code_version() -> tuple[str, bool | None]:
    """Return git's commit of this code and whether files differ from it; "" outside of git."""
    root = Path(__file__).resolve().parents[2]

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=_GIT_S
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        if Path(git("rev-parse", "--show-toplevel") or "/") != root:  # another project's
            return "", None
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "-uno"))
    except (OSError, subprocess.TimeoutExpired):
        return "", None


def environment() -> dict[str, Any]:
    """Collect what a run's figures depend on: versions, processor, accelerator, command."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {name: text for name, text in versions().items() if name != "python"},
        "system": platform.platform(),
        "processor": _processor(),
        "num_threads": torch.get_num_threads(),
        "num_processes": distributed.world_size(),
        "gpu": gpu,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


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


@cache
def _wandb_run(project: str, folder: Path) -> Any:
    """Begin a run of Weights & Biases once for each folder; the next, or the end, finishes it."""
    wandb: Any = importlib.import_module("wandb")
    name = "/".join(folder.parts[-2:])
    return wandb.init(project=project, dir=folder, name=name, group=name, reinit="finish_previous")


@dataclass(frozen=True)
class BatchPicture:
    """Where batch.png goes, and the classes of each head."""

    folder: Path
    names: Mapping[str, Sequence[str]]

    def draw(self, batch: Batch, x: Tensor, mixed: Mixed | None) -> None:
        """Draw (B, 3, H, W) float images; labels of minority classes red, two where it is mixed."""
        tiles = functional.interpolate(x[:NUM_SHOWN].cpu().clamp(0, 1), size=(TILE_PX, TILE_PX))
        num_rows = -(-len(tiles) // NUM_ACROSS)
        sheet = Image.new("RGB", (NUM_ACROSS * TILE_PX, num_rows * (TILE_PX + TEXT_PX)), "white")
        draw = ImageDraw.Draw(sheet)
        for i, tile in enumerate((tiles * 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()):
            left, top = i % NUM_ACROSS * TILE_PX, i // NUM_ACROSS * (TILE_PX + TEXT_PX)
            sheet.paste(Image.fromarray(tile), (left, top))
            of = [i] if mixed is None else [i, int(mixed.partner[i])]
            texts = [", ".join(self._labels(batch, k)) for k in of]
            lines = [text[:_LETTERS] for text in (*texts, texts[0][_LETTERS:])[:2]]
            colour = "firebrick" if batch.is_tail[i] else "black"
            draw.text((left + 2, top + TILE_PX), "\n".join(lines), colour, spacing=1)
        with files.atomic_write(self.folder / "batch.png") as handle:
            sheet.save(handle, format="PNG")

    def _labels(self, batch: Batch, number: int) -> list[str]:
        found = [(names, int(batch.labels[head][number])) for head, names in self.names.items()]
        return [names[k].encode("ascii", "replace").decode() for names, k in found if k >= 0]
