"""Which of two evaluations is better, in what, and how surely, photo by photo.

Every figure is B minus A on the same photos. `conditional` counts the photos that both predicted,
because both got the species right; `end_to_end` counts a wrong species as a wrong attribute.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from petface.analysis.paired import (
    MIN_RECORDS,
    Pair,
    codes_of,
    holm,
    sign_flip_p_value,
)
from petface.evaluation.details import HEADS, Evaluation
from petface.evaluation.figures import interval, percent, points
from petface.files import plain_cell
from petface.metrics import cluster_bootstrap_interval

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
    pair: Pair, *, resamples: int = 2000, flips: int = 100_000, seed: int = 0
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Return the comparison as a dictionary ready for JSON, and the table of changed answers.

    `resamples` of the bootstrap over records, `flips` of the sign-flip test where it is not exact.
    """
    options = {"resamples": resamples, "flips": flips, "seed": seed}
    figures: dict[str, dict[str, Any]] = {part: {} for part in TESTED_PARTS}
    notes = list(pair.notes)
    tables = [pd.DataFrame(columns=list(CHANGED_COLUMNS))]
    for head in HEADS:
        names, table, head_notes = _predictions(pair, head)
        notes += head_notes
        for part in TESTED_PARTS:
            own = table[table["part"] == part]
            views = {v: _figure(own[own[v]], options) for v in VIEWS if own[v].any()}
            if views:
                figures[part][head] = views
        changed = _changed(pair, head, names, table)
        tables += [changed] if len(changed) else []
    num_tests = {part: len(_adjust(figures[part])) for part in TESTED_PARTS}
    if unanswered := int((~_species_answered(pair)).sum()):
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
        **{name: _side(side) for name, side in (("a", pair.a), ("b", pair.b))},
        "notes": notes,
        "images": images,
        "options": options,
        "num_tests": num_tests,
        "figures": figures,
    }
    return comparison, pd.concat(tables)


def _side(side: Evaluation) -> dict[str, Any]:
    """Return what a side is: folder, dataset, precision, and the bytes of its checkpoints."""
    specialists = side.models.get("specialists", {})
    return {
        "folder": str(side.folder),
        **{key: side.models.get(key) for key in ("dataset", "precision", "device")},
        "stage1": side.models["stage1"].get("sha256"),
        "specialists": {name: model.get("sha256") for name, model in specialists.items()},
    }


def _predictions(pair: Pair, head: str) -> tuple[list[str], pd.DataFrame, list[str]]:
    """Return the class names of a head, a row per image with both answers, and notes.

    `truth`, `a` and `b` number into the names; `conditional` and `end_to_end` mark the images
    that each view counts.
    """
    species, (species_of, _) = codes_of(pair.rows, "species")
    column = "species" if head == "species" else f"{head}_true"
    names, (true_a, true_b, a, b) = codes_of(pair.rows, column, f"{head}_pred")
    truth = np.where(true_a == true_b, true_a, -1)
    notes = []
    if relabelled := int(((true_a != true_b) & (true_a >= 0) & (true_b >= 0)).sum()):
        notes.append(
            f"{head}: {relabelled:,} images have another label in A than in B; their label counts "
            "as unknown"
        )
    records = pair.rows["record_a"].cat
    known, both = truth >= 0, (a >= 0) & (b >= 0)
    end_to_end = np.zeros(len(truth), bool)
    if head != "species":
        # end to end a species counts where both evaluations have a specialist for the head
        has: npt.NDArray[np.bool_] = np.array(
            [[bool(side.class_names(head, n)) for n in species] for side in (pair.a, pair.b)]
        )
        for place, side in enumerate("AB"):
            alone = np.flatnonzero(has[place] & ~has[1 - place])
            if len(alone):
                listed = ", ".join(species[k] for k in alone.tolist())
                notes.append(
                    f"{head}: only {side} has a specialist with this head for {listed}; left out"
                )
        end_to_end = known & _species_answered(pair) & (has[0] & has[1])[species_of]
    table = pd.DataFrame(
        {
            "part": pair.rows["part"],
            "record": species_of * (len(records.categories) + 1) + records.codes.to_numpy(np.int64),
            "truth": truth,
            "a": a,
            "b": b,
            "right_a": known & (a == truth),
            "right_b": known & (b == truth),
            "gain": (known & (b == truth)).astype(np.int64) - (known & (a == truth)),
            "conditional": known & both,
            "end_to_end": end_to_end,
        }
    )
    return names, table, notes


def _species_answered(pair: Pair) -> npt.NDArray[np.bool_]:
    answered = pair.rows[["species_correct_a", "species_correct_b"]].notna()
    return answered.all(axis=1).to_numpy()


def _figure(table: pd.DataFrame, options: dict[str, int]) -> dict[str, Any]:
    """Compare the predictions of images whose truth is known; none is a wrong one."""
    records = table.groupby("record", sort=False)["gain"].agg(["size", "sum"])
    p_value, exact = sign_flip_p_value(records["sum"], flips=options["flips"], seed=options["seed"])
    right_a, right_b = table["right_a"], table["right_b"]
    interval_95 = None
    if len(records) >= MIN_RECORDS:
        draw = {key: options[key] for key in ("resamples", "seed")}
        interval_95 = list(cluster_bootstrap_interval(records["sum"], records["size"], **draw))
    return {
        "num": len(table),
        "num_records": len(records),
        "num_records_changed": int((records["sum"] != 0).sum()),
        "accuracy_a": float(right_a.mean()),
        "accuracy_b": float(right_b.mean()),
        "difference": float(table["gain"].mean()),
        "interval_95": interval_95,
        "p_value": p_value,
        "p_exact": exact,
        "both_right": int((right_a & right_b).sum()),
        "only_a": int((right_a & ~right_b).sum()),
        "only_b": int((right_b & ~right_a).sum()),
        "both_wrong": int((~right_a & ~right_b).sum()),
    }


def _changed(pair: Pair, head: str, names: list[str], table: pd.DataFrame) -> pd.DataFrame:
    """List the images that both answered, each otherwise, in the order of `CHANGED_COLUMNS`."""
    own = table[(table["a"] >= 0) & (table["b"] >= 0) & (table["a"] != table["b"])]
    rows = pair.rows.loc[own.index]
    of_code = np.array([*names, ""], object)  # -1 is ""
    changes = [own["truth"] < 0, own["right_a"], own["right_b"]]
    return pd.DataFrame(
        {
            "image": rows["image"].map(plain_cell),
            "species": rows["species_a"].astype(str),
            "record": rows["record_a"].astype(str),
            "split": own["part"],
            "head": head,
            "truth": of_code[own["truth"]],
            "a_answer": of_code[own["a"]],
            "a_prob": rows[f"{head}_prob_a"].map("{:.6f}".format),
            "b_answer": of_code[own["b"]],
            "b_prob": rows[f"{head}_prob_b"].map("{:.6f}".format),
            "change": np.select(changes, ["label unknown", "worse", "better"], "both wrong"),
        }
    )


def _adjust(heads: dict[str, Any]) -> list[dict[str, Any]]:
    """Add to each test of a part the p-value adjusted for all of them, and a verdict."""
    tests = [test for _, test in named_tests(heads)]
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
                "p": p_text(test["p_value"]),
                "adj.": p_text(test["p_holm"]),
                "verdict": test["verdict"],
            }
            for name, test in named_tests(heads)
        }
        num, table = comparison["num_tests"][part], pd.DataFrame.from_dict(rows, orient="index")
        head = f"{part} part, in %; p by flipping whole records, {num} tests, adj. by Holm:"
        lines += ["", head, table.to_string()]
    notes = [_EXPLANATION, *(f"note: {note}" for note in comparison["notes"])]
    return "\n".join([*lines, "", *notes])


def named_tests(heads: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Iterate over the tests of a part, each with a readable name."""
    for head, views in heads.items():
        for view, test in views.items():
            yield head if head == "species" else f"{head}, {VIEWS[view]}", test


def interval_of(test: dict[str, Any]) -> str:
    """Format a test's interval, with a star where too few records differ for it to hold."""
    if test["interval_95"] is None:
        return "too few"
    return interval(test["interval_95"], points) + "*" * (test["num_records_changed"] < MIN_RECORDS)


def p_text(p: float) -> str:
    """Format a p-value; one that rounds to 0 is not 0."""
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"
