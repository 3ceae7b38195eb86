"""Small changes to photos that leave the animal what it is: does the network's answer stay, too?

Every change takes and returns (B, 3, S, S) uint8 of any device, and is deterministic. Lengths are
shares of the side S, rounded to whole pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from petface import files
from petface.data.catalog import Catalog
from petface.data.loading import OK, FileImages, even_slices, read_ahead
from petface.metrics import gain_interval
from petface.models.network import Network
from petface.progress import progress

_COLUMNS: Final = (
    "head", "group", "probe", "accuracy", "change", "low_95", "high_95", "agreement", "confidence",
)  # fmt: skip
DIRECTIONS: Final = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}


class Probe(NamedTuple):
    """One change; probes of one `group` ask the same question."""

    name: str
    group: str
    apply: Callable[[Tensor], Tensor]


def all_probes() -> list[Probe]:
    """List the probes: the face shifted, as a poorer alignment does, and its border painted."""
    found = []
    for frac in (0.05, 0.10, 0.20):
        for name, (rows, columns) in DIRECTIONS.items():
            move = partial(shift, down_frac=rows * frac, right_frac=columns * frac)
            found.append(Probe(f"{name} {frac * 100:.0f} %", "shift", move))
    for name, mean_colour in (("black", False), ("mean colour", True)):
        for frac in (0.05, 0.10, 0.15):
            mask = partial(mask_border, frac=frac, mean_colour=mean_colour)
            found.append(Probe(f"outer {frac * 100:.0f} % {name}", "border", mask))
    return found


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


class Answers(NamedTuple):
    """What a network of H heads answered to M photos, unchanged and under P probes."""

    predicted: np.ndarray  # (1 + P, M, H) int16 class numbers, -1 where not readable or not finite
    confidence: np.ndarray  # (1 + P, M, H) float32 probability of the answer; NaN likewise
    readable: np.ndarray  # (M,) bool


def predict_under_probes(
    network: Network,
    catalog: Catalog,
    places: np.ndarray,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    description: str = "probes",
) -> Answers:
    """Predict the photos at `places` (M,) of a catalog as they are, then under `all_probes`.

    A probe changes the resized pixels on the device. A bar shows photos per second.
    """
    changes = [lambda photos: photos, *(probe.apply for probe in all_probes())]
    side = network.preprocessing.size_px
    black = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=network.device)
    shape = len(changes), len(places), len(network.logits(black))
    predicted, confidence = np.full(shape, -1, np.int16), np.full(shape, np.nan, np.float32)
    readable = np.zeros(len(places), bool)
    slices = even_slices(np.arange(len(places)), batch_size)
    source = FileImages(catalog, network.preprocessing)
    decoded = read_ahead(source, [places[part] for part in slices], num_workers)
    with progress(total=len(places), desc=description) as bar:
        for part, item in zip(slices, decoded, strict=True):
            rows = part[item.status == OK]
            readable[rows] = True
            photos = item.arrays[0].permute(0, 3, 1, 2).to(network.device)
            for k, change in enumerate(changes if len(rows) else ()):
                heads = network.probabilities(network.logits(change(photos)))
                for head, p in enumerate(heads):
                    best, number = p.cpu().max(dim=1)
                    confidence[k, rows, head] = best.numpy()
                    predicted[k, rows, head] = np.where(best.isfinite(), number, -1)
            bar.update(len(part))
    return Answers(predicted, confidence, readable)


def probe_figures(
    predicted: np.ndarray,
    confidence: np.ndarray,
    true: np.ndarray,
    records: np.ndarray,
) -> dict[str, Any]:
    """Describe the answers of one head to M photos: as they are, and under P probes.

    predicted and confidence (1 + P, M), the first row without a change; true (M,) in numbers that
    compare with predicted, records (M,) numbers. Change is in accuracy, with a 95 % interval of the
    paired difference. Agreement is the share of unchanged answers.
    """
    probes = all_probes()
    assert len(predicted) == len(confidence) == 1 + len(probes), (len(predicted), len(probes))
    right = predicted == true
    baseline = {
        "num": len(true),
        "num_records": len(np.unique(records)),
        "accuracy": float(right[0].mean()),
        "confidence": float(np.nanmean(confidence[0])),
    }
    found = []
    for k, probe in enumerate(probes, start=1):
        gain = right[k].astype(np.int64) - right[0]
        found.append(
            {
                "name": probe.name,
                "group": probe.group,
                "accuracy": float(right[k].mean()),
                "change": float(right[k].mean() - right[0].mean()),
                "interval_95": gain_interval(gain, records),
                "agreement": float((predicted[k] == predicted[0]).mean()),
                "confidence": float(np.nanmean(confidence[k])),
            }
        )
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
