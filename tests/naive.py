"""Independent references: photos through Pillow and torchvision one by one, labels through csv.

Nothing here imports petface.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image

UNKNOWN = {"", "unknown", "unk", "na", "n/a", "nan"}
HEADS = ("breed", "color", "color1", "color2", "gender")


def pixels(path: Path, size_px: int) -> np.ndarray:
    """(size, size, 3) uint8."""
    picture = Image.open(path).convert("RGB")
    return np.asarray(picture.resize((size_px, size_px), Image.Resampling.BILINEAR))


def logits(model: torch.nn.Module, image: np.ndarray) -> torch.Tensor:
    """One image in [0, 1], without normalisation."""
    x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        return model.eval()(x)[0]


def species_network(checkpoint: dict) -> torch.nn.Module:
    """A torchvision ResNet-18 with the weights of a stage-1 checkpoint."""
    model = torchvision.models.resnet18(num_classes=len(checkpoint["class_to_index"]))
    model.load_state_dict(checkpoint["model"])
    return model


def specialist_network(checkpoint: dict, head: str) -> torch.nn.Module:
    """A torchvision ResNet-18 whose one layer at the end is one head of a specialist."""
    weights = checkpoint["model"]
    size = len(weights[f"heads.{head}.bias"])
    model = torchvision.models.resnet18(num_classes=size)
    state = {k.removeprefix("body."): v for k, v in weights.items() if k.startswith("body.")}
    state |= {f"fc.{kind}": weights[f"heads.{head}.{kind}"] for kind in ("weight", "bias")}
    model.load_state_dict(state)
    return model


def photos(images: Path) -> list[str]:
    """Every photo as species/record/file, sorted."""
    return sorted(str(path.relative_to(images)) for path in images.glob("*/*/*.png"))


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, by the names of its columns."""
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def splits(root: Path) -> dict[tuple[str, str], str]:
    """(species, record) -> part, from splits.csv."""
    return {(row["species"], row["record"]): row["split"] for row in rows_of(root / "splits.csv")}


def labels(annotations: Path) -> dict[tuple[str, str], dict[str, str]]:
    """(species, record) -> known labels by feature."""
    found = {}
    for path in annotations.glob("*.csv"):
        for row in rows_of(path):
            known = {k.lower(): v for k, v in row.items() if v.lower() not in UNKNOWN}
            record = f"{int(known.pop('name')):06d}"
            if "gender" in known:
                known["gender"] = known["gender"].lower()
            found[path.stem, record] = known
    return found


def logits_of_all(model: torch.nn.Module, path: Path, size_px: int) -> tuple[torch.Tensor, ...]:
    """One photo through a network of several heads: one (K,) tensor per head."""
    x = torch.from_numpy(pixels(path, size_px).copy()).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        return tuple(head[0] for head in model.eval()(x))
