"""Which of two evaluations is better, in what, and how surely, photo by photo.

Every figure is B minus A on the same photos. `conditional` counts the photos that both predicted,
because both got the species right; `end_to_end` counts a wrong species as a wrong attribute.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from petface.analysis.paired import (
    MIN_RECORDS,
    Pair,
    codes_of,
    holm,
    mean_interval,
    sign_flip_p_value,
)
from petface.errors import UserError
from petface.evaluation.details import HEADS, Evaluation
from petface.evaluation.figures import interval, percent, points
from petface.files import plain_cell
from petface.metrics import cluster_bootstrap_interval

PARTS: Final = ("train", "val", "test")
TESTED_PARTS: Final = ("test", "val")
SIGNIFICANT: Final = 0.05  # of the p-value adjusted for the number of tests
CHANGES: Final = ("better", "worse", "both wrong", "label unknown")
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
_MOST_MOVERS = 20  # classes listed as gains, and as losses, per head


def compare_evaluations(
    pair: Pair, *, resamples: int = 2000, flips: int = 100_000, seed: int = 0
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Return the comparison as a dictionary ready for JSON, and the table of changed answers.

    `resamples` of the bootstrap over records, `flips` of the sign-flip test where it is not exact.
    """
    options = {"resamples": resamples, "flips": flips, "seed": seed}
    figures: dict[str, dict[str, Any]] = {part: {} for part in TESTED_PARTS}
    agreement: dict[str, dict[str, Any]] = {part: {} for part in PARTS}
    moved, changes, notes = {}, {}, list(pair.notes)
    tables = [pd.DataFrame(columns=list(CHANGED_COLUMNS))]
    for head in HEADS:
        names, table, head_notes = _predictions(pair, head)
        notes += head_notes
        for part in PARTS:
            own = table[table["part"] == part]
            if part in TESTED_PARTS and (views := _views(pair, head, own, options)):
                figures[part][head] = views
            if found := _agreement(own):
                agreement[part][head] = found
        test = table[(table["part"] == "test") & table["conditional"]]
        if len(test):
            moved[head] = _movers(pair, names, test, options)
        changed = _changed(pair, head, names, table)
        if len(changed):
            counts = changed.groupby(["split", "change"]).size()
            changes[head] = {
                part: {change: int(counts.get((part, change), 0)) for change in CHANGES}
                for part in PARTS
            }
            tables.append(changed)
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
        "classes": moved,
        "agreement": agreement,
        "changed": changes,
    }
    return comparison, pd.concat(tables)


def _side(side: Evaluation) -> dict[str, Any]:
    """Return what a side is: folder, dataset, checkpoints, precision."""

    def checkpoint(model: dict[str, Any]) -> dict[str, Any]:
        return {key: model.get(key) for key in ("path", "sha256")}

    specialists = side.models.get("specialists", {})
    return {
        "folder": str(side.folder),
        "images": len(side.rows),
        **{key: side.models.get(key) for key in ("dataset", "precision", "device")},
        "stage1": checkpoint(side.models.get("stage1", {})),
        "specialists": {name: checkpoint(model) for name, model in specialists.items()},
    }


def _predictions(pair: Pair, head: str) -> tuple[list[str], pd.DataFrame, list[str]]:
    """Return the class names of a head, a row per image with both answers, and notes.

    `truth`, `a` and `b` number into the names; `label` numbers the true classes, which are
    (species, class); `conditional` and `end_to_end` mark the images that each view counts.
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
            "label": species_of * len(names) + truth,
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


def _views(
    pair: Pair, head: str, table: pd.DataFrame, options: dict[str, int]
) -> dict[str, dict[str, Any]]:
    """Return the figures of one head in one part."""
    views = {}
    for view in VIEWS:
        own = table[table[view]]
        if len(own):
            views[view] = _figure(pair, own, options)
            if view == "conditional":
                views[view] |= _scores(pair, head, own)
    return views


def _figure(pair: Pair, table: pd.DataFrame, options: dict[str, int]) -> dict[str, Any]:
    """Compare the predictions of images whose truth is known; none is a wrong one."""
    records = table.groupby("record", sort=False).agg(
        size=("gain", "size"), sum=("gain", "sum"), label=("label", "min"), other=("label", "max")
    )
    if (records["label"] != records["other"]).any():
        raise UserError(f"{pair.a.folder}: photos of one record have different labels")
    label = np.unique(records["label"], return_inverse=True)[1]
    recalls = table.groupby("label")[["right_a", "right_b"]].mean()
    seed, flips = options["seed"], options["flips"]
    p_value, exact = sign_flip_p_value(records["sum"], flips=flips, seed=seed)
    right_a, right_b = table["right_a"], table["right_b"]
    return {
        "num": len(table),
        "num_records": len(records),
        "num_records_changed": int((records["sum"] != 0).sum()),
        "num_classes": len(recalls),
        "accuracy_a": float(right_a.mean()),
        "accuracy_b": float(right_b.mean()),
        "difference": float(table["gain"].mean()),
        "interval_95": _interval(records, options),
        "p_value": p_value,
        "p_exact": exact,
        "both_right": int((right_a & right_b).sum()),
        "only_a": int((right_a & ~right_b).sum()),
        "only_b": int((right_b & ~right_a).sum()),
        "both_wrong": int((~right_a & ~right_b).sum()),
        "balanced_accuracy_a": float(recalls["right_a"].mean()),
        "balanced_accuracy_b": float(recalls["right_b"].mean()),
        "balanced_difference": float((recalls["right_b"] - recalls["right_a"]).mean()),
        "balanced_interval_95": _interval(records, options, label),
    }


def _interval(
    records: pd.DataFrame, options: dict[str, int], classes: np.ndarray | None = None
) -> list[float] | None:
    """Return the interval of the gains' `sum` over the `size` of each record, or None."""
    if len(records) < MIN_RECORDS:
        return None
    gain, num = records["sum"], records["size"]
    draw = {key: options[key] for key in ("resamples", "seed")}
    return list(cluster_bootstrap_interval(gain, num, classes, **draw))


def _scores(pair: Pair, head: str, table: pd.DataFrame) -> dict[str, Any]:
    """Compare log loss and Brier score where both have one."""
    found: dict[str, Any] = {}
    for name in ("nll", "brier"):
        a, b = (
            side.details[head][name][pair.rows[place].to_numpy()[table.index]].astype(np.float64)
            for side, place in ((pair.a, "place_a"), (pair.b, "place_b"))
        )
        held = np.isfinite(a) & np.isfinite(b)
        if not held.any():
            continue
        records = pd.Series((b - a)[held]).groupby(table["record"].to_numpy()[held])
        sums, num = records.sum(), records.size()
        enough = len(num) >= MIN_RECORDS
        found |= {
            f"{name}_num": int(held.sum()),
            f"{name}_a": float(a[held].mean()),
            f"{name}_b": float(b[held].mean()),
            f"{name}_difference": float((b - a)[held].mean()),
            f"{name}_interval_95": list(mean_interval(sums, num)) if enough else None,
        }
    return found


def _movers(
    pair: Pair, names: list[str], table: pd.DataFrame, options: dict[str, int]
) -> dict[str, list[dict[str, Any]]]:
    """List the classes that gained and lost most photos."""
    species = codes_of(pair.rows, "species")[0]
    net = table.groupby("label")["gain"].sum().sort_values(ascending=False, kind="stable")

    def entry(label: int) -> dict[str, Any]:
        own = table[table["label"] == label]
        records = own.groupby("record", sort=False)["gain"].agg(["sum", "size"])
        return {
            "species": species[label // len(names)],
            "label": names[label % len(names)],
            "num": len(own),
            "num_records": len(records),
            "correct_a": int(own["right_a"].sum()),
            "correct_b": int(own["right_b"].sum()),
            "difference": float(own["gain"].mean()),
            "interval_95": _interval(records, options),
        }

    return {
        "gains": [entry(label) for label in net[net > 0].index[:_MOST_MOVERS]],
        "losses": [entry(label) for label in net[net < 0].index[::-1][:_MOST_MOVERS]],
    }


def _agreement(table: pd.DataFrame) -> dict[str, Any] | None:
    """Count equal answers where both answered, and equal mistakes where both are wrong."""
    own = table[(table["a"] >= 0) & (table["b"] >= 0)]
    if own.empty:
        return None
    same = own["a"] == own["b"]
    wrong = (own["truth"] >= 0) & ~own["right_a"] & ~own["right_b"]
    return {
        "num": len(own),
        "same": int(same.sum()),
        "share": float(same.mean()),
        "both_wrong": int(wrong.sum()),
        "same_mistake": int((same & wrong).sum()),
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
    """Format the comparison in at most 110 columns: a table per part, then what to know."""
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
    return "\n".join([*lines, "", *wrapped(notes)])


def wrapped(paragraphs: Iterable[str], width: int = 110) -> list[str]:
    """Break paragraphs into lines; file names stay whole."""
    wrapper = textwrap.TextWrapper(
        width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    return [line for paragraph in paragraphs for line in wrapper.wrap(paragraph)]


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
