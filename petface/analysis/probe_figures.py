"""How answers changed under the probes: figures, a table and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from petface import files
from petface.analysis.probes import Probe
from petface.analysis.slices import MIN_RECORDS
from petface.data.catalog import Catalog
from petface.data.loading import OK, FileImages, even_slices, read_ahead
from petface.drawing import figure_maker, save_png, tidy
from petface.metrics import cluster_bootstrap_interval
from petface.models.network import Network

_COLUMNS: Final = (
    "head", "group", "probe", "accuracy", "change", "low_95", "high_95", "agreement", "confidence",
)  # fmt: skip


class Answers(NamedTuple):
    """What a network of H heads answered to M photos, unchanged and under P probes."""

    predicted: np.ndarray  # (1 + P, M, H) int16 class numbers, -1 where not readable or not finite
    confidence: np.ndarray  # (1 + P, M, H) float32 probability of the answer; NaN likewise
    readable: np.ndarray  # (M,) bool


def ask(
    network: Network,
    catalog: Catalog,
    places: np.ndarray,
    probes: Sequence[Probe],
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    description: str = "probes",
) -> Answers:
    """Ask about the photos at `places` (M,) of a catalog as they are, then under every probe.

    A probe changes the resized pixels on the device. A bar shows photos per second.
    """
    slices = even_slices(places, batch_size)
    side = network.preprocessing.size_px
    black = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=network.device)
    num_heads = len(network.logits(black))
    source = FileImages(catalog, network.preprocessing)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    readable = [np.zeros(0, bool)]
    with tqdm(total=len(places), desc=description, unit=" img", mininterval=1, disable=None) as bar:
        for part, item in zip(slices, read_ahead(source, slices, num_workers), strict=True):
            is_ok = item.status == OK
            readable.append(is_ok)
            found.append(_ask_batch(network, item.arrays[0], is_ok, probes, num_heads))
            bar.update(len(part))
    empty = np.zeros((1 + len(probes), 0, num_heads))
    return Answers(
        np.concatenate([p for p, _ in found] or [empty.astype(np.int16)], axis=1),
        np.concatenate([c for _, c in found] or [empty.astype(np.float32)], axis=1),
        np.concatenate(readable),
    )


def _ask_batch(
    network: Network,
    pixels: torch.Tensor,
    is_ok: np.ndarray,
    probes: Sequence[Probe],
    num_heads: int,
) -> tuple[np.ndarray, np.ndarray]:
    photos = pixels.permute(0, 3, 1, 2).to(network.device)
    predicted = np.full((1 + len(probes), len(is_ok), num_heads), -1, np.int16)
    confidence = np.full(predicted.shape, np.nan, np.float32)
    if not len(photos):
        return predicted, confidence
    for row, apply in enumerate([lambda x: x, *(probe.apply for probe in probes)]):
        heads = network.probabilities(network.logits(apply(photos)))
        for head, p in enumerate(heads):
            best, k = p.cpu().max(dim=1)
            confidence[row, is_ok, head] = best.numpy()
            predicted[row, is_ok, head] = np.where(best.isfinite().numpy(), k.numpy(), -1)
    return predicted, confidence


def probe_figures(
    names: Sequence[tuple[str, str]],
    predicted: np.ndarray,
    confidence: np.ndarray,
    true: np.ndarray,
    records: np.ndarray,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Describe the answers of one head to M photos: as they are, and under P probes.

    `names` holds (name, group) per probe; predicted and confidence (1 + P, M), the first row
    without a change; true (M,) in numbers that compare with predicted, records (M,) numbers.
    Change is in accuracy, with a 95 % interval from a bootstrap over records of the paired
    difference, None below `MIN_RECORDS` records. Agreement is the share of unchanged answers.
    """
    assert len(predicted) == len(confidence) == 1 + len(names), (len(predicted), len(names))
    _, row = np.unique(records, return_inverse=True)
    right = predicted == true
    baseline = {
        "num": len(true),
        "num_records": int(row.max()) + 1 if len(row) else 0,
        "accuracy": float(right[0].mean()),
        "confidence": float(np.nanmean(confidence[0])),
    }
    probes = [
        {
            "name": name,
            "group": group,
            "accuracy": float(right[k].mean()),
            "change": float(right[k].mean() - right[0].mean()),
            "interval_95": paired_interval(right[k], right[0], row, resamples),
            "agreement": float((predicted[k] == predicted[0]).mean()),
            "confidence": float(np.nanmean(confidence[k])),
        }
        for k, (name, group) in enumerate(names, start=1)
    ]
    return {"baseline": baseline, "probes": probes}


def paired_interval(
    after: np.ndarray, before: np.ndarray, records: np.ndarray, resamples: int = 1000
) -> list[float] | None:
    """Bound mean(after) - mean(before), (M,) bool of the same photos, when records are resampled.

    Records (M,) are numbered from 0. The bootstrap of `metrics` wants counts between 0 and a
    total; (difference + photos) of (2 x photos) is one, and the interval of its share is moved
    back.
    """
    num = np.bincount(records)
    if len(num) < MIN_RECORDS or resamples == 0:
        return None
    difference = after.astype(np.int64) - before.astype(np.int64)
    moved = np.rint(np.bincount(records, difference)).astype(np.int64) + num
    low, high = cluster_bootstrap_interval(moved, 2 * num, resamples=resamples)
    return [2 * low - 1, 2 * high - 1]


def write_probes(path: Path, figures: Mapping[str, Any]) -> None:
    """Write every head's answer to every probe as a row of a CSV."""
    rows = []
    for head, entry in figures.items():
        for p in entry["probes"]:
            low, high = p["interval_95"] or ("", "")
            numbers = (p["accuracy"], p["change"], low, high, p["agreement"], p["confidence"])
            rows.append((head, p["group"], p["name"], *numbers))
    files.write_csv(path, _COLUMNS, rows)


def draw_probes(head: str, entry: Mapping[str, Any], path: Path) -> bool:
    """Draw a bar per probe, the change of accuracy in points; False where matplotlib is missing."""
    make_figure = figure_maker(path)
    if make_figure is None:
        return False
    probes = entry["probes"]
    places, place, last = [], 0.0, None
    for probe in probes:
        place += 1.0 if probe["group"] == last else 1.7
        last = probe["group"]
        places.append(place)
    figure = make_figure(figsize=(9, 1.3 + 0.2 * place), layout="constrained")
    axes = figure.subplots()
    groups = list(dict.fromkeys(p["group"] for p in probes))
    for y, probe in zip(places, probes, strict=True):
        change = probe["change"] * 100
        axes.barh(y, change, 0.8, color=f"C{groups.index(probe['group']) % 10}", alpha=0.8)
        if probe["interval_95"]:
            low, high = (end * 100 for end in probe["interval_95"])
            axes.plot([low, high], [y, y], color="0.2", linewidth=1)
    axes.axvline(0, color="0.2", linewidth=1)
    axes.set_yticks(places, [f"{p['group']}: {p['name']}" for p in probes], fontsize=8)
    axes.set_ylim(places[-1] + 1, places[0] - 1)
    baseline = entry["baseline"]
    axes.set_title(
        f"{head}: change from {baseline['accuracy'] * 100:.1f} % right "
        f"({baseline['num']:,} test photos of {baseline['num_records']:,} records)",
        fontsize=10,
    )
    has_intervals = any(p["interval_95"] for p in probes)
    meaning = "lines: 95 % interval" if has_intervals else "too few records for intervals"
    axes.set_xlabel(f"points of accuracy; {meaning}")
    tidy(axes, axis="x")
    save_png(figure, path, 110)
    return True
