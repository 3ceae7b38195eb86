"""One way to obtain a model: a checkpoint or an export becomes a `Stage` ready to predict."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor
from torch.nn import functional

from petface.calibration import HeadCalibration
from petface.data.annotations import read_species, stored_reading
from petface.data.fingerprint import Data
from petface.devices import choose_device, choose_precision, to_device
from petface.errors import SettingsError, UserError
from petface.files import sha256_of_file
from petface.inference import onnx_models as exported
from petface.models import checkpoints, layouts
from petface.models.checkpoints import CheckpointError
from petface.models.network import Answerer, Network, Outputs
from petface.training import runs

TORCH, ONNX = "torch", "onnxruntime"  # the engines: of checkpoints, of exported models
Views = Literal["none", "flip", "five"]
_CROP: Final = 7 / 8  # of each side, what a corner view of "five" shows


@dataclass(frozen=True)
class ComputeOptions:
    """How networks compute; make it with `choose`, which resolves "auto"."""

    device: str
    precision: str
    compiled: bool = False
    views: Views = "none"  # of each photo, whose logits are averaged
    engine: str = TORCH

    @classmethod
    def choose(
        cls,
        device: str | None,
        precision: str = "fp32",
        compiled: bool = False,
        views: Views = "none",
        *,
        stage1: str | Path = "",
    ) -> ComputeOptions:
        """Resolve device and precision; `SettingsError` for what does not go together.

        `stage1` says what is asked: the models of a bundle bring their precision along.
        """
        on = choose_device(device or "auto")
        if Path(stage1).suffix != exported.SUFFIX and not exported.is_bundle(stage1):
            return cls(str(on), str(choose_precision(precision, on)), compiled, views)
        if precision != "auto":
            raise SettingsError("exported models compute as they were exported: leave PRECISION")
        return cls(str(on), "exported", False, views, ONNX)

    def identity(self) -> dict[str, Any]:
        """Return JSON values that differ wherever the answers might."""
        own = {"torch": str(torch.__version__)}
        return {
            "engine": self.engine,
            "packages": own if self.engine == TORCH else exported.versions(),
            "precision": self.precision,
            "device": torch.device(self.device).type,
            "compiled": self.compiled,
            "views": self.views,
        }


@dataclass(eq=False)
class Stage:
    """Stage 1 or a specialist, ready to predict; `load_stage` makes it.

    `names[head][k]` is the class of logit k; heads stand in the order of the outputs. `sources`
    says where the names of a head came from.
    """

    path: Path
    species: str | None  # None: stage 1
    network: Answerer
    names: Mapping[str, tuple[str, ...]]
    sources: Mapping[str, str]
    calibration: Mapping[str, HeadCalibration]
    data: Data | None = None  # what it learnt from, where the file says so


def load_stage(
    path: str | Path,
    species: str | None,
    options: ComputeOptions,
    annotations_root: str | Path = "",
) -> Stage:
    """Load stage 1 (`species` None) or a specialist from a checkpoint, an export or a bundle.

    A specialist is also found in its run's folder and in the folder of all specialists.
    Labels under `annotations_root` name the classes of a head that nothing else names.
    `CheckpointError` with file and reason where there is none or it cannot be used.
    """
    file = find_model(path, species)
    content = _read(file, species, annotations_root)
    for note in content.notes:
        print(f"{file}: {note}", file=sys.stderr)
    network: Answerer
    if isinstance(content, exported.Exported):
        network = content.network(options.device)
    else:
        network = Network.for_inference(
            content.model,
            content.preprocessing,
            options.device,
            options.precision,
            content.temperatures,
            options.compiled,
        )
    if options.views != "none":
        network = AveragedViews(network, options.views)
    heads, sources = content.heads, content.sources
    return Stage(file, species, network, heads, sources, content.calibration, content.data)


def describe_model(
    path: str | Path, species: str | None, annotations_root: str | Path = ""
) -> dict[str, Any]:
    """Describe a checkpoint or export as JSON values: its file, class names and calibration."""
    content = _read(Path(path), species, annotations_root)
    return {
        "path": str(path),
        "sha256": sha256_of_file(path),
        "preprocessing": asdict(content.preprocessing),
        "heads": content.heads,
        "sources": content.sources,
        "calibration": {head: asdict(fitted) for head, fitted in content.calibration.items()},
        "split": content.data and content.data["split"],
        "num_animals": content.data and len(content.data["records"]["train"]),
        "made_up": content.data and bool(content.data["made_up"]),
    }


def find_model(path: str | Path, species: str | None) -> Path:
    """Find the file of stage 1 (`species` None) or of a specialist; see `load_stage`."""
    if species is None:
        return exported.find(path, None) or Path(path)
    file = find_specialist(species, path)
    if file is None:
        raise CheckpointError(path, f"holds no {species}_best.pt", "train the specialist")
    return file


def find_specialist(species: str, checkpoint_or_folder: str | Path | None) -> Path | None:
    """Find a specialist's file, None where a folder holds none; refuse names that leave it."""
    if checkpoint_or_folder is None:
        return None
    path = Path(checkpoint_or_folder)
    if runs.run_path(str(path), species).name != species:
        raise UserError(f"species {species!r} must be a plain name")
    if path.is_file():
        return path
    old = f"stage2_{species}_noaug"  # beside our own folder, or in it
    folders = path / species, path, path / old, path.absolute().parent / old
    for candidate in (folder / f"{species}_best.pt" for folder in folders):
        if candidate.is_file():
            return candidate
    return exported.find(path, species)


def reading_of(species: str, stage2_folder: str | Path | None) -> dict[str, Any]:
    """Return the arguments of `read_species` that a specialist or its export was trained with."""
    path = find_specialist(species, stage2_folder)
    read = exported.card_of if path and path.suffix == exported.SUFFIX else checkpoints.load
    return stored_reading(read(path)) if path else {}


def _read(
    path: Path, species: str | None, annotations_root: str | Path = ""
) -> checkpoints.Checkpoint | exported.Exported:
    if path.suffix == exported.SUFFIX:
        return exported.read(path, species)
    if species is None:
        return checkpoints.read_stage1(path)
    table = Path(annotations_root, f"{species}.csv")

    def labels_of() -> Mapping[str, tuple[str, ...]]:
        is_there = bool(annotations_root) and table.is_file()
        return read_species(table, str(species)).vocabularies if is_there else {}

    return layouts.read_stage2(path, species, labels_of)


class AveragedViews:
    """A network of any engine that predicts each view.

    "flip": the photo and its mirror image, twice the work; "five": the photo, and each corner of it
    enlarged from 7/8 of the sides, five times the work. Every view counts the same.
    """

    def __init__(self, network: Answerer, views: Views) -> None:
        self.network, self.views = network, views
        self.preprocessing, self.temperatures = network.preprocessing, network.temperatures
        self.device = network.device

    def answer_pixels(self, pixels: Tensor) -> Outputs:
        """(B, size, size, 3) uint8 -> (B, K) float32 logits per head, on the device."""
        views = views_of(to_device(pixels, self.device), self.views)
        answers = [self.network.answer_pixels(view) for view in views]
        return tuple(torch.stack(heads).mean(dim=0) for heads in zip(*answers, strict=True))


def views_of(pixels: Tensor, views: Views) -> list[Tensor]:
    """Return the views of (B, H, W, 3) uint8, each of the same shape and type.

    The first is the photo itself.
    """
    if views == "flip":
        return [pixels, pixels.flip(2)]
    if views == "five":
        height, width = pixels.shape[1:3]
        rows, columns = round(height * _CROP), round(width * _CROP)
        places = [(y, x) for y in (0, height - rows) for x in (0, width - columns)]
        x = pixels.permute(0, 3, 1, 2).float()
        crops = [x[:, :, top : top + rows, left : left + columns] for top, left in places]
        enlarged = (functional.interpolate(c, (height, width), mode="bilinear") for c in crops)
        return [pixels, *(x.round().to(torch.uint8).permute(0, 2, 3, 1) for x in enlarged)]
    return [pixels]
