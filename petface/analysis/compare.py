"""Which of two evaluations is better, in what, and how surely, photo by photo.

Every figure is B minus A on the same photos. `conditional` counts the photos that both predicted,
because both got the species right; `end_to_end` counts a wrong species as a wrong attribute. The
photos of one animal are right or wrong together, so tests take whole records.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import binom

from petface.errors import UserError
from petface.evaluation.details import HEADS, PER_IMAGE, Evaluation, read_evaluation
from petface.evaluation.figures import interval, percent, points
from petface.metrics import MIN_RECORDS, gain_interval

PARTS: Final = ("train", "val", "test")
TESTED_PARTS: Final = ("test", "val")
VIEWS: Final = ("conditional", "end_to_end")
SIGNIFICANT: Final = 0.05  # of the p-value adjusted for the number of tests


def compare_evaluations(
    folder_a: str | Path, folder_b: str | Path
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Return the comparison as a dictionary ready for JSON, and the table of changed answers.

    `UserError` where two folders cannot be compared.
    """
    a, b = map(_read, (folder_a, folder_b))
    rows, notes = _common_rows(a, b)
    figures: dict[str, dict[str, Any]] = {part: {} for part in TESTED_PARTS}
    changed = []
    for head in HEADS:
        table = _predictions(a, b, rows, head, notes)
        for part in TESTED_PARTS:
            own = table[table["part"] == part]
            if views := {view: _figure(own[own[view]]) for view in VIEWS if own[view].any()}:
                figures[part][head] = views
        changed.append(_changed(rows, head, table))
    for heads in figures.values():
        _adjust(heads)
    if unanswered := int((~rows["answered"]).sum()):
        what = "have no answer in A or in B (unreadable, or not finite) and count nowhere"
        notes.append(f"{unanswered:,} images {what}")
    counts = {part: int((rows["part"] == part).sum()) for part in PARTS}
    comparison = {
        "a": _side(a),
        "b": _side(b),
        "notes": notes,
        "images": {"common": len(rows), **counts},
        "figures": figures,
    }
    return comparison, pd.concat(changed)


def _read(folder: str | Path) -> Evaluation:
    try:
        return read_evaluation(folder)
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, OSError) as error:
        raise UserError(
            f"{folder}: the evaluation is damaged ({type(error).__name__}: {error}); run: "
            f"python inference_engine.py evaluate --out-dir {folder} --force"
        ) from error


def _common_rows(a: Evaluation, b: Evaluation) -> tuple[pd.DataFrame, list[str]]:
    """Join the rows by image, and say what is not common.

    The columns of both tables have the suffixes _a and _b. `part` is "" where the splits disagree,
    `record` a number, `answered` tells whether both named a species.
    """
    rows_a, rows_b = (
        side.rows.assign(image=side.image_names(np.arange(len(side.rows)))) for side in (a, b)
    )
    for side, own in ((a, rows_a), (b, rows_b)):
        if not own["image"].is_unique:
            raise UserError(f"{side.folder / PER_IMAGE} names an image twice; evaluate again")
    rows = rows_a.merge(rows_b, on="image", suffixes=("_a", "_b"))
    if rows.empty:
        raise UserError(
            f"{a.folder} and {b.folder} have no image in common; evaluate both models on one "
            "dataset, with --images-root, then compare"
        )
    other_data = "A and B were evaluated on different data (images, labels or split)"
    only_a, only_b = len(rows_a) - len(rows), len(rows_b) - len(rows)
    notes = []
    if only_a or only_b:
        notes.append(
            f"{other_data}; compared are the {len(rows):,} common images "
            f"({only_a:,} only in A, {only_b:,} only in B)"
        )
    elif a.models.get("dataset") != b.models.get("dataset"):
        notes.append(f"{other_data}; the images are the same")
    split_a, split_b = rows["split_a"].astype(str), rows["split_b"].astype(str)
    rows["part"] = split_a.where(split_a == split_b, "")
    if moved := int((split_a != split_b).sum()):
        notes.append(
            f"{moved:,} images stand in different parts of the split in A and in B; they count in "
            "no part: what one model trained on cannot test both"
        )
    rows["record"] = rows.groupby(["species_a", "record_a"], observed=True).ngroup()
    rows["answered"] = rows[["species_correct_a", "species_correct_b"]].notna().all(axis=1)
    return rows, notes


def _side(side: Evaluation) -> dict[str, Any]:
    """Return what a side is: folder, dataset, precision, and the bytes of its checkpoints."""
    specialists = side.models.get("specialists", {})
    return {
        "folder": str(side.folder),
        **{key: side.models.get(key) for key in ("dataset", "precision", "device")},
        "stage1": side.models["stage1"].get("sha256"),
        "specialists": {name: model.get("sha256") for name, model in specialists.items()},
    }


def _predictions(
    a: Evaluation, b: Evaluation, rows: pd.DataFrame, head: str, notes: list[str]
) -> pd.DataFrame:
    """Return a row per image with the truth and both answers, "" where there is none; add notes.

    `conditional` and `end_to_end` mark the images that each view counts.
    """
    column = "species" if head == "species" else f"{head}_true"
    names = (f"{column}_a", f"{column}_b", f"{head}_pred_a", f"{head}_pred_b")
    truth, other, answer_a, answer_b = (rows[name].astype(str) for name in names)
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
        has_a, has_b = ([n for n in species if e.class_names(head, n)] for e in (a, b))
        for side, own, others in (("A", has_a, has_b), ("B", has_b, has_a)):
            if alone := ", ".join(name for name in own if name not in others):
                notes.append(
                    f"{head}: only {side} has a specialist with this head for {alone}; left out"
                )
        in_both = rows["species_a"].isin(has_a) & rows["species_a"].isin(has_b)
        end_to_end = known & rows["answered"] & in_both
    right_a, right_b = known & (answer_a == truth), known & (answer_b == truth)
    table = {
        "part": rows["part"],
        "record": rows["record"],
        "truth": truth,
        "a": answer_a,
        "b": answer_b,
        "right_a": right_a,
        "right_b": right_b,
        "gain": right_b.astype(np.int64) - right_a,
        "conditional": known & (answer_a != "") & (answer_b != ""),
        "end_to_end": end_to_end,
    }
    return pd.DataFrame(table)


def _figure(table: pd.DataFrame) -> dict[str, Any]:
    """Compare the predictions of images whose truth is known; none is a wrong one."""
    gain = table.groupby("record", sort=False)["gain"].sum()
    right_a, right_b = table["right_a"], table["right_b"]
    return {
        "num": len(table),
        "num_records": len(gain),
        "accuracy_a": float(right_a.mean()),
        "accuracy_b": float(right_b.mean()),
        "difference": float(table["gain"].mean()),
        "interval_95": gain_interval(table["gain"].to_numpy(), table["record"].to_numpy()),
        "p_value": sign_flip_p_value(gain),
        "both_right": int((right_a & right_b).sum()),
        "only_a": int((right_a & ~right_b).sum()),
        "only_b": int((right_b & ~right_a).sum()),
        "both_wrong": int((~right_a & ~right_b).sum()),
    }


def _changed(rows: pd.DataFrame, head: str, table: pd.DataFrame) -> pd.DataFrame:
    """List the images that both answered, each otherwise."""
    own = table[(table["a"] != "") & (table["b"] != "") & (table["a"] != table["b"])]
    rows = rows.loc[own.index]
    changes = [own["truth"] == "", own["right_a"], own["right_b"]]
    return pd.DataFrame(
        {
            "image": rows["image"],
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


def sign_flip_p_value(gain: npt.ArrayLike) -> float:
    """Return the two-sided p-value of "A and B may be swapped in any record".

    `gain` (R,) is whole: photos of a record that B has right minus those that A has right. Swapping
    turns its sign. The p-value is the share of all 2^R flips whose summed gain is at least as far
    from 0, counted exactly, size by size. With one photo a record this is the exact McNemar test.
    Source: Yeh 2000, COLING, arXiv cs/0008005.
    """
    d = np.asarray(gain, np.int64)
    sizes, frequency = np.unique(np.abs(d[d != 0]), return_counts=True)
    chance = np.ones(1)  # of each sum of the gains whose sign is +
    for size, num in zip(sizes.tolist(), frequency.tolist(), strict=True):
        own = np.zeros(size * num + 1)
        own[::size] = binom.pmf(np.arange(num + 1), num, 0.5)
        chance = np.convolve(chance, own)
    total = len(chance) - 1
    is_as_far = np.abs(2 * np.arange(total + 1) - total) >= abs(int(d.sum()))
    return min(1.0, float(chance[is_as_far].sum()))


def holm(p_values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Adjust p-values (n,) so that the chance of one false finding among them stays as named.

    Source: Holm 1979, Scandinavian Journal of Statistics 6(2).
    """
    p = pd.Series(p_values, dtype=np.float64).sort_values(kind="stable")
    adjusted = (p * np.arange(len(p), 0, -1)).cummax().clip(upper=1.0)
    return np.asarray(adjusted.sort_index(), np.float64)


def _adjust(heads: dict[str, Any]) -> None:
    """Add to each test of a part the p-value adjusted for all of them, and a verdict."""
    tests = [test for _, test in _named_tests(heads)]
    for test, p in zip(tests, holm([t["p_value"] for t in tests]).tolist(), strict=True):
        test["p_holm"] = p
        better = "B better" if test["difference"] > 0 else "A better"
        test["verdict"] = better if p < SIGNIFICANT else "no difference shown"


def describe_comparison(comparison: dict[str, Any]) -> str:
    """Format the comparison on the test split, then what to know."""
    images = comparison["images"]
    rows = {
        name: {
            "photos": f"{test['num']:,}",
            "records": f"{test['num_records']:,}",
            "A": percent(test["accuracy_a"]),
            "B": percent(test["accuracy_b"]),
            "B - A": points(test["difference"]),
            "95 % interval": interval(test["interval_95"], points) or "too few",
            "p, adjusted": f"{test['p_holm']:.2g}",
            "verdict": test["verdict"],
        }
        for name, test in _named_tests(comparison["figures"]["test"])
    }
    table = pd.DataFrame.from_dict(rows, orient="index").to_string()
    lines = [
        *(f"{side.upper()}: {comparison[side]['folder']}" for side in "ab"),
        f"{images['common']:,} common images: "
        + ", ".join(f"{images[part]:,} {part}" for part in PARTS),
        "",
        f"test split, in %; p by flipping whole records, adjusted for {len(rows)} tests by Holm:",
        table if rows else "no photo that both answered has a known label",
        "",
        "conditional: photos whose species both got right; end to end: a wrong species counts as a "
        f"wrong answer; too few: fewer than {MIN_RECORDS} records",
        *(f"note: {note}" for note in comparison["notes"]),
    ]
    return "\n".join(lines)


def _named_tests(heads: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for head, views in heads.items():
        for view, test in views.items():
            yield head if head == "species" else f"{head}, {view.replace('_', ' ')}", test
