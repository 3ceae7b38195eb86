"""Repeated runs as tables: a row per run, mean and standard deviation per preset."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from petface import files


@dataclass(frozen=True)
class SweepRun:
    """One finished run: its preset, its seed or fold, its species in stage 2, its final.json."""

    preset: str
    variant: str
    species: str
    final: Mapping[str, Any]

    @property
    def figures(self) -> dict[str, float]:
        """Return the accuracies of both splits by name, without those that are not known."""
        return {
            key: float(value)
            for key, value in self.final.items()
            if key.startswith(("val_", "test_"))
            and key.endswith(("_accuracy", "_auc", "_top1"))
            and isinstance(value, int | float)
        }


def write_sweep(folder: Path, runs: Sequence[SweepRun]) -> str:
    """Write runs.csv and summary.csv into `folder`.

    Return the comparison as text, the best preset of each species first: by the validation figures
    of all heads, the balanced ones where there are any. A preset that lacks one that another has is
    never best; one run alone is taken to vary as much as the least steady other preset.
    """
    rows = [
        {"preset": run.preset, "variant": run.variant, "species": run.species,
         "train_minutes": float(run.final["train_minutes"]),
         # what the first weights learnt from of the test split
         "contaminated": str(run.final.get("contaminated", "")), **run.figures}
        for run in runs
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    keys = list(table.columns[5:])
    groups = table.groupby(["preset", "species"], sort=False)
    summary = groups.agg(
        runs=("variant", "size"),
        contaminated_runs=("contaminated", lambda own: (own != "").sum()),
        train_minutes=("train_minutes", "mean"),
    )
    for key in keys:
        mean = summary[f"{key}_mean"] = groups[key].mean()
        # of a sample; one run has no spread
        summary[f"{key}_std"] = groups[key].std().fillna(0.0).where(mean.notna())
    summary = summary.reset_index()
    for name, found in (("runs.csv", table), ("summary.csv", summary)):
        cells = found.round(4).astype(object).where(found.notna(), "")
        files.write_csv(folder / name, cells.columns.tolist(), cells.itertuples(index=False))
    own = [key for key in keys if key.startswith("val_")]
    watched = [key for key in own if key.endswith("balanced_accuracy")] or own
    summary["score"] = math.nan
    for species, presets in summary.groupby("species"):
        of_species = table[table["species"] == species]
        heads = [key for key in watched if of_species[key].notna().any()]
        by_preset = of_species[heads].mean(axis=1, skipna=False).groupby(of_species["preset"])
        deviation = by_preset.std()
        deviation = deviation.fillna(deviation.max()).fillna(0.0)
        score = by_preset.apply(lambda own: own.mean(skipna=False)) - deviation
        summary.loc[presets.index, "score"] = presets["preset"].map(score)
    told = table[table["contaminated"] != ""].itertuples()
    lines = [f"contaminated: {run.contaminated}: {run.preset} {run.variant}" for run in told]
    return "\n".join([_text(summary, keys, watched), *lines])


def _text(summary: pd.DataFrame, keys: Sequence[str], watched: Sequence[str]) -> str:
    way = "nothing to choose by"
    # NaN, a metric not known, stands last
    summary = summary.sort_values(["species", "score"], ascending=[True, False], kind="stable")
    best = summary.dropna(subset=["score"]).drop_duplicates("species")
    if len(best):
        pairs = best[["preset", "species"]].itertuples(index=False)
        chosen = ", ".join(f"{preset} for {of}" if of else str(preset) for preset, of in pairs)
        way = f"best by {', '.join(watched).replace('_', ' ')}: {chosen}"
    shown = summary[["preset", "species", "runs"]].assign(minutes=summary["train_minutes"].round(1))
    for key in keys:
        own = summary[[f"{key}_mean", f"{key}_std"]] * 100
        rows = zip(own.to_numpy().tolist(), summary["runs"], strict=True)
        shown[key.replace("_", " ")] = [
            "-" if math.isnan(m) else f"{m:.1f} ± {s:.1f}" if num > 1 else f"{m:.1f}"
            for (m, s), num in rows
        ]
    rule = "Chosen by the validation split alone: mean - standard deviation, of all heads."
    return f"{shown.set_index('preset').rename_axis(None).to_string()}\n\n{way}. {rule}"
