"""The wrong answers of an evaluation's test part, the surest first: where to look for faults."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from petface import files
from petface.evaluation.details import HEADS, Evaluation

COLUMNS: Final = (
    "image", "species", "record", "head", "true", "predicted", "probability", "true_probability",
    "rank",
)  # fmt: skip


def asked_places(evaluation: Evaluation, head: str) -> np.ndarray:
    """Find the rows of the test part that a head answered and whose label is known: (M,) int64.

    For attributes these are rows whose species was answered right; others were not asked.
    """
    rows = evaluation.rows
    is_asked = rows[f"{head}_correct"].notna().to_numpy()
    return np.flatnonzero((rows["split"] == "test").to_numpy() & is_asked)


def worst_mistakes(evaluation: Evaluation, head: str, num: int | None = None) -> pd.DataFrame:
    """List a head's wrong answers in the test part, the most confident first: `COLUMNS` and
    `place`.

    `place` is the row of the evaluation. `true_probability` is exp(-nll), NaN where the network has
    no class of that name; `rank` is the place of the truth among the answers, 1 = first. `num` of
    them or all; equally confident ones in the order of the evaluation.
    """
    rows, places = evaluation.rows, asked_places(evaluation, head)
    wrong = places[rows[f"{head}_correct"].to_numpy()[places] == 0]
    confidence = rows[f"{head}_prob"].to_numpy()[wrong]
    chosen = wrong[np.argsort(-confidence, kind="stable")][:num]
    own, details = rows.iloc[chosen], evaluation.details[head][chosen]
    true = own["species"] if head == "species" else own[f"{head}_true"]
    return pd.DataFrame(
        {
            "image": evaluation.image_names(chosen),
            "species": own["species"].astype(str).to_numpy(),
            "record": own["record"].astype(str).to_numpy(),
            "head": head,
            "true": true.astype(str).to_numpy(),
            "predicted": own[f"{head}_pred"].astype(str).to_numpy(),
            "probability": own[f"{head}_prob"].to_numpy(np.float64),
            "true_probability": np.exp(-details["nll"].astype(np.float64)),
            "rank": details["rank"].astype(np.int64),
            "place": chosen,
        }
    )


def write_mistakes(path: Path, evaluation: Evaluation, num_kept: int = 20) -> dict[str, Any]:
    """Write every wrong answer of the test part as a CSV; give the worst per head, for JSON."""
    found = {head: worst_mistakes(evaluation, head) for head in HEADS}
    files.write_csv(path, COLUMNS, (cells for table in found.values() for cells in _cells(table)))
    return {
        head: [
            {name: None if cell == "" else cell for name, cell in zip(COLUMNS, cells, strict=True)}
            for cells in _cells(table.head(num_kept))
        ]
        for head, table in found.items()
        if len(asked_places(evaluation, head))
    }


def _cells(table: pd.DataFrame) -> list[tuple[Any, ...]]:
    columns = [table[name].tolist() for name in COLUMNS]
    for name in ("probability", "true_probability"):
        place = COLUMNS.index(name)
        columns[place] = ["" if math.isnan(p) else round(p, 6) for p in columns[place]]
    return list(zip(*columns, strict=True))
