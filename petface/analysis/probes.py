"""Small changes to photos that leave the animal what it is: does the network's answer stay, too?

Every change takes and returns (B, 3, S, S) uint8 of any device, and is deterministic. Lengths are
shares of the side S, rounded to whole pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from petface import files
from petface.data.catalog import Catalog
from petface.data.loading import OK, FileImages, even_slices, read_ahead
from petface.metrics import gain_interval
from petface.models.network import Network, tempered
from petface.progress import progress

_COLUMNS: Final = (
    "head", "group", "probe", "accuracy", "change", "low_95", "high_95", "agreement", "confidence",
)  # fmt: skip
_DIRECTIONS: Final = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}


def shift(photos: Tensor, *, down_frac: float = 0.0, right_frac: float = 0.0) -> Tensor:
    """Move the content; what moves in is the photo mirrored at its edge."""
    for axis, frac in ((2, down_frac), (3, right_frac)):
        side = photos.shape[axis]
        source = (torch.arange(side, device=photos.device) - round(frac * side)) % (2 * side)
        photos = photos.index_select(axis, torch.minimum(source, 2 * side - 1 - source))
    return photos


def mask_border(photos: Tensor, *, frac: float, mean_colour: bool = False) -> Tensor:
    """Paint a frame of this width black, or in the mean colour of what it leaves of each photo."""
    side = photos.shape[-1]
    inside = slice(round(frac * side), side - round(frac * side))
    inner = photos[:, :, inside, inside]
    masked = torch.zeros_like(photos)
    if mean_colour:
        masked += inner.float().mean(dim=(2, 3), keepdim=True).round().to(torch.uint8)
    masked[:, :, inside, inside] = inner
    return masked


# (group, name): those of a group ask the same question, of a poorer alignment or another border
PROBES: Final[dict[tuple[str, str], Callable[[Tensor], Tensor]]] = {
    **{
        ("shift", f"{name} {frac * 100:.0f} %"): partial(
            shift, down_frac=down * frac, right_frac=right * frac
        )
        for frac in (0.05, 0.10, 0.20)
        for name, (down, right) in _DIRECTIONS.items()
    },
    **{
        ("border", f"outer {frac * 100:.0f} % {name}"): partial(
            mask_border, frac=frac, mean_colour=name != "black"
        )
        for name in ("black", "mean colour")
        for frac in (0.05, 0.10, 0.15)
    },
}


def predict_under_probes(
    network: Network, catalog: Catalog, places: np.ndarray, num_heads: int, *, batch_size: int,
    num_workers: int, description: str = "probes",
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Predict the photos at `places` (M,) of a catalog as they are, then under P `PROBES`.

    Returns class numbers, -1 where a photo cannot be read or an answer is not finite, and their
    probabilities, NaN likewise: (1 + P, M, heads) int16 and float32. A probe changes the resized
    pixels on the device. A bar shows predictions per second.
    """
    shape = 1 + len(PROBES), len(places), num_heads
    predicted, confidence = np.full(shape, -1, np.int16), np.full(shape, np.nan, np.float32)
    slices = even_slices(np.arange(len(places)), batch_size)
    source = FileImages(catalog, network.preprocessing)
    decoded = read_ahead(source, [places[part] for part in slices], num_workers)
    with progress(total=shape[0] * len(places), desc=description) as bar:
        for part, item in zip(slices, decoded, strict=True):
            rows = part[item.status == OK]
            photos = item.arrays[0].permute(0, 3, 1, 2).to(network.device)
            for k, change in enumerate([Tensor.clone, *PROBES.values()]):
                bar.update(len(part))
                if not len(rows):
                    continue
                heads = tempered(network.logits(change(photos)), network.temperatures)
                for head, p in enumerate(heads):
                    best, number = p.cpu().max(dim=1)
                    confidence[k, rows, head] = best.numpy()
                    predicted[k, rows, head] = np.where(best.isfinite(), number, -1)
    return predicted, confidence


def probe_figures(
    predicted: np.ndarray, confidence: np.ndarray, true: np.ndarray, records: np.ndarray
) -> dict[str, Any]:
    """Describe the answers of one head to M photos: as they are, and under P probes.

    predicted and confidence (1 + P, M), the first row without a change; true (M,) in numbers that
    compare with predicted, records (M,) numbers. Change is in accuracy, with a 95 % interval of the
    paired difference. Agreement is the share of unchanged answers.
    """
    right = predicted == true
    accuracy, confidence = right.mean(axis=1).tolist(), np.nanmean(confidence, axis=1).tolist()
    baseline = {
        "num": len(true),
        "num_records": len(np.unique(records)),
        "accuracy": accuracy[0],
        "confidence": confidence[0],
    }
    found = [
        {
            "name": name,
            "group": group,
            "accuracy": accuracy[k],
            "change": accuracy[k] - accuracy[0],
            "interval_95": gain_interval(right[k].astype(np.int64) - right[0], records),
            "agreement": float((predicted[k] == predicted[0]).mean()),
            "confidence": confidence[k],
        }
        for k, (group, name) in enumerate(PROBES, start=1)
    ]
    return {"baseline": baseline, "probes": found}


def write_probes(path: Path, figures: Mapping[str, Any]) -> None:
    """Write every head's answer to every probe as a row of a CSV."""
    rows = [
        (head, p["group"], p["name"], p["accuracy"], p["change"],
         *(p["interval_95"] or ("", "")), p["agreement"], p["confidence"])
        for head, entry in figures.items()
        for p in entry["probes"]
    ]  # fmt: skip
    files.write_csv(path, _COLUMNS, rows)
