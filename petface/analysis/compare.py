"""Which of two evaluations is better, in what, and how surely, photo by photo.

Every figure is B minus A on the same photos. `conditional` counts the photos that both predicted,
because both got the species right; `end_to_end` counts a wrong species as a wrong attribute.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pandas as pd

from petface.analysis.paired import (
    Pair,
    holm,
    sign_flip_p_value,
)
from petface.evaluation.details import HEADS, Evaluation
from petface.evaluation.figures import interval, percent, points
from petface.files import plain_cell
from petface.metrics import MIN_RECORDS, gain_interval

PARTS: Final = ("train", "val", "test")
TESTED_PARTS: Final = ("test", "val")
SIGNIFICANT: Final = 0.05  # of the p-value adjusted for the number of tests
CHANGED_COLUMNS: Final = (
    "image", "species", "record", "split", "head", "truth",
    "a_answer", "a_prob", "b_answer", "b_prob", "change",
)  # fmt: skip
VIEWS: Final = {"conditional": "conditional", "end_to_end": "end to end"}
_EXPLANATION = (
    "conditional: photos whose species both got right; end to end: a wrong species counts as a "
    f"wrong answer; too few: fewer than {MIN_RECORDS} records; *: B has more or fewer photos right "
    f"than A in fewer than {MIN_RECORDS} records, so the interval is too narrow; go by p"
)


def compare_evaluations(
    pair: Pair, *, flips: int = 100_000, seed: int = 0
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Return the comparison as a dictionary ready for JSON, and the table of changed answers.

    `flips` of the sign-flip test where it is not exact.
    """
    options = {"flips": flips, "seed": seed}
    figures: dict[str, dict[str, Any]] = {part: {} for part in TESTED_PARTS}
    notes, changed = list(pair.notes), [pd.DataFrame(columns=list(CHANGED_COLUMNS))]
    for head in HEADS:
        table, head_notes = _predictions(pair, head)
        notes += head_notes
        for part in TESTED_PARTS:
            own = table[table["part"] == part]
            views = {view: _figure(own[own[view]], options) for view in VIEWS if own[view].any()}
            if views:
                figures[part][head] = views
        changed += [own] if len(own := _changed(pair, head, table)) else []
    num_tests = {part: len(_adjust(figures[part])) for part in TESTED_PARTS}
    if unanswered := int((~pair.rows["answered"]).sum()):
        what = "have no answer in A or in B (unreadable, or not finite) and count nowhere"
        notes.append(f"{unanswered:,} images {what}")
    counts = pair.rows["part"].value_counts()
    images = {
        "common": len(pair.rows),
        "only_a": len(pair.a.rows) - len(pair.rows),
        "only_b": len(pair.b.rows) - len(pair.rows),
        **{part: int(counts.get(part, 0)) for part in PARTS},
        "no_part": int(counts.get("", 0)),
    }
    comparison = {
        "kind": "evaluations",
        "a": _side(pair.a),
        "b": _side(pair.b),
        "notes": notes,
        "images": images,
        "options": options,
        "num_tests": num_tests,
        "figures": figures,
    }
    return comparison, pd.concat(changed)


def _side(side: Evaluation) -> dict[str, Any]:
    """Return what a side is: folder, dataset, precision, and the bytes of its checkpoints."""
    specialists = side.models.get("specialists", {})
    return {
        "folder": str(side.folder),
        **{key: side.models.get(key) for key in ("dataset", "precision", "device")},
        "stage1": side.models["stage1"].get("sha256"),
        "specialists": {name: model.get("sha256") for name, model in specialists.items()},
    }


def _predictions(pair: Pair, head: str) -> tuple[pd.DataFrame, list[str]]:
    """Return a row per image with the truth and both answers, "" where there is none, and notes.

    `conditional` and `end_to_end` mark the images that each view counts.
    """
    rows, notes = pair.rows, []
    column = "species" if head == "species" else f"{head}_true"
    names = (f"{column}_a", f"{column}_b", f"{head}_pred_a", f"{head}_pred_b")
    truth, other, a, b = (rows[name].astype(str) for name in names)
    if relabelled := int(((truth != other) & (truth != "") & (other != "")).sum()):
        notes.append(
            f"{head}: {relabelled:,} images have another label in A than in B; their label counts "
            "as unknown"
        )
    truth = truth.where(truth == other, "")
    known, end_to_end = truth != "", pd.Series(False, rows.index)
    if head != "species":
        # end to end a species counts where both evaluations have a specialist for the head
        species = sorted({*rows["species_a"].cat.categories, *rows["species_b"].cat.categories})
        has_a, has_b = ([n for n in species if e.class_names(head, n)] for e in (pair.a, pair.b))
        for side, own, others in (("A", has_a, has_b), ("B", has_b, has_a)):
            if alone := [name for name in own if name not in others]:
                listed = ", ".join(alone)
                notes.append(
                    f"{head}: only {side} has a specialist with this head for {listed}; left out"
                )
        in_both = rows["species_a"].isin(has_a) & rows["species_a"].isin(has_b)
        end_to_end = known & rows["answered"] & in_both
    right_a, right_b = known & (a == truth), known & (b == truth)
    table = {
        "part": rows["part"],
        "record": rows["record_number"],
        "truth": truth,
        "a": a,
        "b": b,
        "right_a": right_a,
        "right_b": right_b,
        "gain": right_b.astype(np.int64) - right_a,
        "conditional": known & (a != "") & (b != ""),
        "end_to_end": end_to_end,
    }
    return pd.DataFrame(table), notes


def _figure(table: pd.DataFrame, options: dict[str, int]) -> dict[str, Any]:
    """Compare the predictions of images whose truth is known; none is a wrong one."""
    records = table.groupby("record", sort=False)["gain"].agg(["size", "sum"])
    gain = records["sum"]
    p_value, exact = sign_flip_p_value(gain, flips=options["flips"], seed=options["seed"])
    right_a, right_b = table["right_a"], table["right_b"]
    return {
        "num": len(table),
        "num_records": len(records),
        "num_records_changed": int((gain != 0).sum()),
        "accuracy_a": float(right_a.mean()),
        "accuracy_b": float(right_b.mean()),
        "difference": float(table["gain"].mean()),
        "interval_95": gain_interval(table["gain"].to_numpy(), table["record"].to_numpy()),
        "p_value": p_value,
        "p_exact": exact,
        "both_right": int((right_a & right_b).sum()),
        "only_a": int((right_a & ~right_b).sum()),
        "only_b": int((right_b & ~right_a).sum()),
        "both_wrong": int((~right_a & ~right_b).sum()),
    }


def _changed(pair: Pair, head: str, table: pd.DataFrame) -> pd.DataFrame:
    """List the images that both answered, each otherwise, in the order of `CHANGED_COLUMNS`."""
    own = table[(table["a"] != "") & (table["b"] != "") & (table["a"] != table["b"])]
    rows = pair.rows.loc[own.index]
    changes = [own["truth"] == "", own["right_a"], own["right_b"]]
    return pd.DataFrame(
        {
            "image": rows["image"].map(plain_cell),
            "species": rows["species_a"].astype(str),
            "record": rows["record_a"].astype(str),
            "split": own["part"],
            "head": head,
            "truth": own["truth"],
            "a_answer": own["a"],
            "a_prob": rows[f"{head}_prob_a"].map("{:.6f}".format),
            "b_answer": own["b"],
            "b_prob": rows[f"{head}_prob_b"].map("{:.6f}".format),
            "change": np.select(changes, ["label unknown", "worse", "better"], "both wrong"),
        }
    )


def _adjust(heads: dict[str, Any]) -> list[dict[str, Any]]:
    """Add to each test of a part the p-value adjusted for all of them, and a verdict."""
    tests = [test for _, test in _named_tests(heads)]
    for test, p in zip(tests, holm([t["p_value"] for t in tests]).tolist(), strict=True):
        test["p_holm"] = p
        better = "B better" if test["difference"] > 0 else "A better"
        test["verdict"] = better if p < SIGNIFICANT else "no difference shown"
    return tests


def describe_comparison(comparison: dict[str, Any]) -> str:
    """Format the comparison: a table per part, then what to know."""
    images = comparison["images"]
    lines = [f"{side.upper()}: {comparison[side]['folder']}" for side in "ab"]
    parts = ", ".join(f"{images[part]:,} {part}" for part in PARTS)
    lines.append(f"{images['common']:,} common images: {parts}")
    for part, heads in comparison["figures"].items():
        if not heads:
            lines += ["", f"{part} part: no photo that both answered has a known label"]
            continue
        rows = {
            name: {
                "photos": f"{test['num']:,}",
                "records": f"{test['num_records']:,}",
                "A": percent(test["accuracy_a"]),
                "B": percent(test["accuracy_b"]),
                "B - A": points(test["difference"]),
                "95 % interval": interval_of(test),
                "p": _p_text(test["p_value"]),
                "adj.": _p_text(test["p_holm"]),
                "verdict": test["verdict"],
            }
            for name, test in _named_tests(heads)
        }
        num, table = comparison["num_tests"][part], pd.DataFrame.from_dict(rows, orient="index")
        head = f"{part} part, in %; p by flipping whole records, {num} tests, adj. by Holm:"
        lines += ["", head, table.to_string()]
    notes = [_EXPLANATION, *(f"note: {note}" for note in comparison["notes"])]
    return "\n".join([*lines, "", *notes])


def _named_tests(heads: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for head, views in heads.items():
        for view, test in views.items():
            yield head if head == "species" else f"{head}, {VIEWS[view]}", test


def interval_of(test: dict[str, Any]) -> str:
    """Format a test's interval, with a star where too few records differ for it to hold."""
    if test["interval_95"] is None:
        return "too few"
    return interval(test["interval_95"], points) + "*" * (test["num_records_changed"] < MIN_RECORDS)


def _p_text(p: float) -> str:
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"  # one that rounds to 0 is not 0
