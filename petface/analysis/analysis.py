"""The steps of an error analysis: which photos, what networks answered, what is written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from petface.analysis import attention, probe_figures, sheets
from petface.analysis.mistakes import asked_places, worst_mistakes
from petface.analysis.probes import all_probes
from petface.analysis.slices import record_numbers
from petface.data.catalog import Catalog, listed_files
from petface.errors import UserError
from petface.evaluation.details import HEADS, Evaluation, class_numbers
from petface.models.network import Network
from petface.taxonomy import UNKNOWN

_KINDS = {
    "mistakes": "surest mistakes: photo, what speaks for the answer, what for the truth",
    "right": "right answers chosen by a seed: photo, what speaks for the answer",
}


@dataclass(eq=False)
class Work:
    """The photos of an analysis, and what the networks have shown so far.

    `rows` (M,) int64 are rows of the evaluation, ascending; the catalog has their files and
    `names` their names. `sample` (S,) are those of them that stand for the whole test part, and
    `examples[head, "mistakes" | "right"]` those of the pictures.
    """

    evaluation: Evaluation
    rows: np.ndarray
    names: list[str]
    catalog: Catalog
    sample: np.ndarray
    examples: dict[tuple[str, str], np.ndarray]
    records: np.ndarray  # (N,) int64 record number of every row of the evaluation
    maps: dict[str, attention.HeadMaps] = field(default_factory=dict)
    tiles: dict[tuple[str, str], dict[int, sheets.Tile]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    answers: dict[str, list[tuple[np.ndarray, ...]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Find rows of the evaluation in the catalog."""
        return np.searchsorted(self.rows, rows)

    def true_labels(self, head: str, rows: np.ndarray) -> list[str]:
        """Give the true labels of some rows; "" where unknown."""
        column = "species" if head == "species" else f"{head}_true"
        return self.evaluation.rows[column].iloc[rows].astype(str).tolist()

    def answered_labels(self, head: str, rows: np.ndarray) -> list[str]:
        """Give what the evaluation answered to some rows; "" where nothing."""
        return self.evaluation.rows[f"{head}_pred"].iloc[rows].astype(str).tolist()

    def correct(self, head: str, rows: np.ndarray) -> np.ndarray:
        """Give 1, 0 or NaN for some rows."""
        return self.evaluation.rows[f"{head}_correct"].to_numpy()[rows]

    def of_species(self, species: str | None, rows: np.ndarray) -> np.ndarray:
        """Tell which rows are of a species, (len(rows),) bool; None means any."""
        if species is None:
            return np.ones(len(rows), bool)
        return (self.evaluation.rows["species"].iloc[rows] == species).to_numpy()


def prepare(
    evaluation: Evaluation, images_root: str, num_sampled: int, num_examples: int, seed: int
) -> Work:
    """Choose the photos to look at, and list their files.

    The sample is `num_sampled` rows of the test part at equal distances, 0 = all, so that species
    keep their shares. Per head `num_examples` of the surest mistakes, and of the right answers
    drawn by the seed.
    """
    test = np.flatnonzero((evaluation.rows["split"] == "test").to_numpy())
    if not len(test):
        raise UserError(f"{evaluation.folder} has no photo in the test part")
    sample = spread(test, num_sampled)
    examples = {}
    for head in HEADS:
        examples[head, "mistakes"] = worst_mistakes(evaluation, head, num_examples)[
            "place"
        ].to_numpy()
        asked = asked_places(evaluation, head)
        right = asked[evaluation.rows[f"{head}_correct"].to_numpy()[asked] == 1]
        generator = np.random.default_rng(seed)
        drawn = generator.choice(right, min(num_examples, len(right)), replace=False)
        examples[head, "right"] = np.sort(drawn)
    rows = np.unique(np.concatenate([sample, *examples.values()]))
    names = evaluation.image_names(rows)
    root = images_root or evaluation.models["images_root"]
    return Work(
        evaluation, rows, names, listed_files(root, names), sample, examples,
        record_numbers(evaluation),
    )  # fmt: skip


def spread(rows: np.ndarray, num: int) -> np.ndarray:
    """Take `num` rows at equal distances; 0 takes all."""
    if num == 0 or num >= len(rows):
        return rows
    return rows[(np.arange(num) * len(rows)) // num]


def note_answers(
    work: Work,
    head: str,
    rows: np.ndarray,
    answers: probe_figures.Answers,
    number: int,
    names: Sequence[str],
) -> None:
    """Keep the answers of head `number` to rows of the evaluation that can be read and whose label
    is known; a label that the network does not know counts as a wrong answer.
    """
    true = class_numbers(work.true_labels(head, rows), names)
    predicted, confidence = answers.predicted[:, :, number], answers.confidence[:, :, number]
    kept = (predicted[0] >= 0) & (true != UNKNOWN)
    records = work.records[rows]
    work.answers[head].append((predicted[:, kept], confidence[:, kept], true[kept], records[kept]))


def explain(
    work: Work,
    network: Network,
    head: str,
    number: int,
    names: Sequence[str],
    species: str | None,
    photos_per_class: int,
    seed: int,
) -> None:
    """Gather the mean maps of head `number` over right answers of the sample, and the tiles of its
    pictures; `species` of a specialist, None for stage 1.
    """
    right = work.sample[work.of_species(species, work.sample)]
    right = right[work.correct(head, right) == 1]
    labels = work.true_labels(head, right)
    chosen = attention.choose_per_class(labels, photos_per_class, seed)
    right, labels = right[chosen], [labels[k] for k in chosen]
    if labels:
        found = work.maps.setdefault(head, attention.HeadMaps())
        classes = class_numbers(labels, names)
        keys = [(species or label, label) for label in labels]
        places = work.places(right)
        attention.add_class_maps(found, network, work.catalog, places, number, classes, keys)
    for kind in _KINDS:
        shown = work.examples[head, kind]
        shown = shown[work.of_species(species, shown)]
        columns = [class_numbers(work.answered_labels(head, shown), names)]
        if kind == "mistakes":
            columns.append(class_numbers(work.true_labels(head, shown), names))
        tiles = attention.example_tiles(
            network, work.catalog, work.places(shown), number, np.stack(columns, axis=1),
            [_caption(work, row, head) for row in shown.tolist()],
        )  # fmt: skip
        work.tiles[head, kind] |= {int(shown[k]): tile for k, tile in tiles.items()}


def _caption(work: Work, row: int, head: str) -> list[str]:
    """Say what was answered, how surely, and what is true."""
    places = np.array([row])
    probability = work.evaluation.rows[f"{head}_prob"].iloc[row]
    lines = [f"{work.answered_labels(head, places)[0]} {probability * 100:.0f} %"]
    if work.correct(head, places)[0] == 0:
        nll = work.evaluation.details[head]["nll"][row]
        chance = "" if np.isnan(nll) else f" {np.exp(-nll) * 100:.0f} %"
        lines.append(f"truth: {work.true_labels(head, places)[0]}{chance}")
    return [*lines, work.names[int(work.places(places)[0])]]


def draw_maps(work: Work, out: Path) -> dict[str, Any]:
    """Draw the pictures of every head; give their names and the border's share of the maps."""
    result = {}
    for head in HEADS:
        found = work.maps.get(head, attention.HeadMaps())
        entry = {**attention.summarise_maps(found), "files": [], "photo_files": []}
        if found.classes:
            entry["files"].append(f"gradcam_{head}.png")
            attention.draw_class_maps(out / f"gradcam_{head}.png", head, found)
        for kind, meaning in _KINDS.items():
            tiles = work.tiles[head, kind]
            ordered = [tiles[row] for row in work.examples[head, kind].tolist() if row in tiles]
            if ordered:
                name = f"photos/gradcam_{head}_{kind}.png"
                sheets.draw_sheet(out / name, [f"{head}, test part", meaning], ordered)
                entry["photo_files"].append(name)
        if entry["files"] or entry["photo_files"]:
            result[head] = entry
    return result


def draw_probes(work: Work, out: Path, resamples: int) -> dict[str, Any]:
    """Turn the answers of every head into figures, a table and a picture each."""
    names = [(probe.name, probe.group) for probe in all_probes()]
    figures = {}
    for head in HEADS:
        parts = [part for part in work.answers[head] if len(part[2])]
        if not parts:
            continue
        # each row holds class numbers of one specialist only, so they may stand side by side
        predicted, confidence = (np.concatenate([p[k] for p in parts], axis=1) for k in (0, 1))
        true, records = (np.concatenate([p[k] for p in parts]) for k in (2, 3))
        figures[head] = probe_figures.probe_figures(
            names, predicted, confidence, true, records, resamples
        )
        probe_figures.draw_probes(head, figures[head], out / f"probes_{head}.png")
    probe_figures.write_probes(out / "probes.csv", figures)
    return figures


def describe_analysis(result: dict[str, Any]) -> str:
    """Lay out what an analysis found in a few lines."""
    chance = result["slices_standing_out"]
    lines = [
        f"test part: {result['num_test']:,} photos; {result['sample']:,} looked at, "
        f"{result['num_unreadable']:,} cannot be read; {result['probe_sample']:,} probed",
        f"slices: {chance['stand_out']} of {chance['bins']} bins stand out; about "
        f"{chance['by_chance']} would by chance",
        f"{'':10s} {'probed':>8s} {'right, %':>9s}  change in points under",
    ]
    shown = ("outer 10 % black", "outer 10 % mean colour", "inner 50 % black", "mirrored", "grey")
    for head, entry in result["probes"].items():
        changes = {p["name"]: p["change"] * 100 for p in entry["probes"]}
        parts = ", ".join(f"{name} {changes[name]:+.1f}" for name in shown)
        base = entry["baseline"]
        lines.append(f"{head:10s} {base['num']:8,d} {base['accuracy'] * 100:9.1f}  {parts}")
    for head, entry in result["gradcam"].items():
        share, area = entry.get("border_energy_frac"), entry.get("border_area_frac")
        if share is not None and area is not None:
            lines.append(
                f"{head:10s} border ring: {share * 100:.0f} % of Grad-CAM on {area * 100:.0f} % "
                f"of the area, {entry['layer']}"
            )
    return "\n".join(lines)
