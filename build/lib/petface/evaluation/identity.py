"""Whether an evaluation fits its networks: records they have learnt from, classes they lack."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from petface.data.dataset import Dataset
from petface.data.fingerprint import Data, contaminated, record_hashes, seen_by
from petface.data.splits import TEST, TRAIN
from petface.data.twins import spelling

_NAMED = 5  # classes of a head that are named in a line


def mark_contaminated(
    learnt: Sequence[Data | None], species: str, records: np.ndarray, split: np.ndarray
) -> np.ndarray:
    """Mark the records (R,) of a species that networks know as another part than they are here.

    "1" for a test record that one of them learnt from, was chosen by or inherits, and for a
    validation record that one learnt from; "" where a network does not say it, else "0".
    """
    hashes = record_hashes([species] * len(records), records.tolist())
    is_marked, is_known = np.zeros(len(records), bool), True
    for data in learnt:
        is_known &= data is not None and not data["unknown"]
        if data is not None:
            is_marked |= (split == TEST) & seen_by(data, hashes)
            is_marked |= (split != TRAIN) & seen_by(data, hashes, chosen=False)
    return np.where(is_marked, "1", np.where(is_known | (split == TRAIN), "0", "")).astype(object)


def describe_contamination(rows: pd.DataFrame) -> dict[str, Any]:
    """Count the test records that a network has seen, and those of which that is not known."""
    test = rows[rows["split"] == "test"].drop_duplicates(["species", "record"])
    num = int((test["contaminated"] == "1").sum())
    return {
        "contaminated": contaminated(num, len(test)),
        "num": num,
        "not_known": int((test["contaminated"] == "").sum()),
    }


def contamination_lines(summary: dict[str, Any]) -> list[str]:
    """Format what forbids to call the test split unseen; none where nothing does."""
    found = summary.get("contamination")
    if not isinstance(found, dict) or not {"contaminated", "num", "not_known"} <= found.keys():
        return ["contaminated: not known, the summary is of an earlier version"]
    told = f"contaminated: {found['contaminated']} of the test split are known to the networks"
    lines = [f"{told}, which learnt from them or were chosen by them"] * (found["num"] > 0)
    what = f"not known whether the networks have seen {found['not_known']} records of the test "
    return lines + [f"{what}split: a checkpoint does not say it"] * (found["not_known"] > 0)


def class_differences(dataset: Dataset, models: dict[str, Any]) -> dict[str, Any]:
    """Compare the classes of data and networks: per head what each lacks, with the nearest name."""
    pairs = {"species": (models["stage1"]["heads"]["species"], dataset.catalog.classes)}
    for name, model in models["specialists"].items():
        if table := dataset.annotations.get(name):
            heads = {head: own for head, own in table.vocabularies.items() if own}
            pairs |= {f"{name} {h}": (model["heads"].get(h, ()), own) for h, own in heads.items()}
    found = {}
    for head, (known, there) in pairs.items():
        new = {name: _nearest(name, known) for name in there if name not in known}
        gone = {name: _nearest(name, there) for name in known if name not in there}
        if known and (new or gone):
            found[head] = {"not_in_the_network": new, "not_in_the_data": gone}
    return found


def difference_lines(found: dict[str, Any]) -> list[str]:
    """Format `class_differences`, a line for each head and side."""
    lines = []
    for head, sides in found.items():
        for side, names in sides.items():
            told = [
                f"{name!r}" + f" (nearest: {near!r})" * bool(near) for name, near in names.items()
            ]
            more = f" and {len(told) - _NAMED} more" if len(told) > _NAMED else ""
            what = f"{head}: {side.replace('_', ' ')}: {', '.join(told[:_NAMED])}{more}"
            lines += [what] * bool(told)
    return lines


def _nearest(name: str, others: Sequence[str]) -> str:
    plain = {spelling(other): other for other in others}
    near = difflib.get_close_matches(spelling(name), list(plain), n=1)
    return plain[near[0]] if near else ""
