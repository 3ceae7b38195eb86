"""The report of an evaluation and of its error analysis; every number comes from their files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from petface.evaluation.details import HEADS, PER_IMAGE, SUMMARY
from petface.evaluation.summary import contamination_lines
from petface.files import plain_cell
from petface.metrics import read_confusion
from petface.report import charts
from petface.report import folders as read
from petface.report.folders import rows
from petface.report.page import (
    Page,
    Photo,
    Strip,
    headline,
    leaves,
    photo,
    picture,
    table,
    write,
)

NUM_SHOWN = 16  # photos of a sheet, or one of each species; photos of likely wrong labels
_NUM_MISTAKES = 8  # photos
_MAX_MAPS = 12  # confusion matrices of attributes in a page; the CSV files hold all
_SPLIT_COLUMNS = (
    "head split num num_records accuracy interval_95 majority_baseline balanced_accuracy"
)


def write_evaluation_report(
    folder: Path, *, with_photos: bool = False, images_root: str = ""
) -> Path:
    """Write report.html into the folder of an evaluation, finished or not.

    Photos stand in it `with_photos`, and always where they are made up. They are read from
    `images_root`, "" = where the evaluation found them.
    """
    summary, models, problems = read.read_evaluation_files(folder)
    problems += contamination_lines(summary) if summary else []
    root = images_root or str(models.get("images_root", ""))
    found = read.photo_root(folder, root, with_photos=with_photos)
    if with_photos and found is None:
        problems.append(f"No photos are shown: there is no folder {root}.")
    if not summary:
        problems.append("Not finished: there is no summary yet. The same command resumes it.")
    elif "figures" not in summary:
        problems.append("Made by an earlier version: evaluate again with --force.")
    photos = _photos(folder, found, problems) if found and summary else {}
    species = read_confusion(folder / "confusion" / "test_species.csv")
    drawn = [charts.confusion("species", *species)] if species else []
    by_species = [*rows(summary, "per_species.test.{species}.{head}")]
    dots = _dots(by_species, "species accuracy interval_95 majority_baseline", "accuracy, %").shown
    page = Page(
        "/".join(folder.parts[-2:]),
        "Evaluation",
        f"{folder} · {read.readable_time(None, folder / SUMMARY)}",
        problems,
        photos=photos,
        metrics=[headline(row) for row in read.headlines(summary)],
        sections={
            "Species": [Strip([*drawn, *dots[:1]], "wide")],
            "Test split": [
                f"{read.test_words(summary)} End-to-end accuracy, shown above, counts a wrong "
                "species as a wrong prediction.",
                table(
                    read.test_heads(summary),
                    "head num accuracy interval_95 majority_baseline balanced_accuracy "
                    "end_to_end.accuracy per_record.accuracy",
                ),
            ],
        },
        folded={
            **_errors(folder, problems, found),
            "By species": [
                Strip(dots[1:]),
                table(by_species, _SPLIT_COLUMNS.replace("split", "species")),
            ],
            **_metrics(folder, summary, models),
        },
    )
    return write(folder / read.REPORT, page)


def _metrics(folder: Path, summary: dict[str, Any], models: dict[str, Any]) -> dict[str, Any]:
    """Build what is folded of the summary: confidence, confusion, further metrics, origins."""
    sure = [row for row in rows(summary, "confidence.{head}.{species}") if row.get("num")]
    curves = [charts.confidence(row) for row in sure if row["species"] == "all"]
    matrices = [
        (f"{path.stem.removeprefix(f'test_{head}_')}: {head}", *matrix)
        for head in HEADS[1:]
        for path in sorted((folder / "confusion").glob(f"test_{head}_*.csv"))
        if (matrix := read_confusion(path))
    ]
    drawn = sorted(matrices, key=lambda each: -each[2].sum())[:_MAX_MAPS]
    files = [{"model": "stage 1", **row} for row in rows(models, "stage1")]
    files += rows(models, "specialists.{model}")
    others = {k: v for k, v in models.items() if k not in ("stage1", "specialists")}
    return {
        "Confidence": [
            "Test split. Temperature and threshold were fitted on the validation split. A "
            "prediction is sure where its confidence reaches the threshold. End to end, a photo "
            "whose species is wrong counts as sure and wrong: the worst case.",
            Strip([charts.svg(panel) for own in curves for panel in own]),
            table(
                sure,
                "head species num threshold reason coverage accuracy_of_answered wanted_accuracy "
                "overconfident_error_share conformal.coverage end_to_end.coverage "
                "end_to_end.accuracy_of_answered end_to_end.conformal_coverage",
            ),
        ],
        "Confusion matrices of the attributes": [
            f"The {len(drawn)} of {len(matrices)} with the most photos; all are in confusion/.",
            Strip([charts.confusion(*each) for each in drawn], "wide"),
        ],
        "Train, validation and test": [
            "Trained on the train split: its metrics do not hold for new animals.",
            table(rows(summary, "figures.{split}.{head}"), _SPLIT_COLUMNS),
        ],
        "More metrics of the test split": [
            table(
                rows(summary, "figures.test.{head}"),
                "head macro_f1 top3 top5 kappa nll brier ece ece_null lost_in_stage1 "
                "lost_in_stage2 rescued_by_top5",
            )
        ],
        "Most frequent confusions": [table(rows(summary, "top_confusions.{head}"))],
        "Hardest classes": [table(rows(summary, "hardest_classes.{head}"))],
        "Several photos of one animal": [
            table(rows(summary, "per_record.test.{head}.by_num_photos"))
        ],
        "Status of all photos": [leaves(summary.get("status_counts") or {})],
        "Models and data": [table(files, "model path sha256"), leaves(others)],
    }


def _errors(folder: Path, problems: list[str], root: Path | None) -> dict[str, Any]:
    """Show what tools.analyse_errors and tools.find_label_errors left."""
    analysis = read.read_json(folder / "analysis" / "analysis.json", problems)
    labels = read.read_json(folder / "label_errors.json", problems)
    suspects = read.read_csv(folder / "label_errors.csv", problems, read.MAX_ROWS)
    shown = [
        photo(root, row["image"], (row["label"], "wrong"), (row["suggested"], "pale"))
        for row in suspects[:NUM_SHOWN]
        if root
    ]
    probes = [
        {**row, "probe": f"{row.get('group')}: {row.get('name')}"}
        for row in rows(analysis, "probes.{head}.probes")
    ]
    pictures = sorted((folder / "analysis" / "photos").glob("*.png")) if root else []
    return {
        "Sensitivity to shifts and borders": [
            "The test photos shifted or with a painted border: how much the crop matters.",
            _dots(probes, "probe change interval_95", "change of accuracy, points"),
            table(probes, "head probe accuracy change interval_95 agreement"),
        ],
        "Most confident mistakes (all in analysis/mistakes.csv)": [
            table(rows(analysis, "mistakes.{head}"))
        ],
        "Accuracy by group of photos": [
            "A group stands out where its interval excludes the accuracy of all photos.",
            table(rows(analysis, "slices.{head}.{property}.bins")),
        ],
        "Grad-CAM of single photos": [*map(picture, pictures)],
        "Likely label errors": [
            "To review: labels and, below, what a model says that saw none of these photos.",
            Strip(shown, "photos"),
            table(suspects),
        ],
        "Label errors per head": [table(rows(labels, "heads"))],
    }


def _dots(found: list[dict[str, Any]], columns: str, label: str) -> Strip:
    """Draw a chart per head."""
    heads = {head: [row for row in found if row["head"] == head] for head in HEADS}
    return Strip([charts.intervals(head, own, columns, label) for head, own in heads.items()])


# ---- Photos with their predictions ----


def read_test_rows(folder: Path) -> pd.DataFrame:
    """Read the test photos of an evaluation that have predictions, beside their true labels."""
    rows = pd.read_csv(folder / PER_IMAGE, dtype=str, keep_default_na=False)
    rows = rows[(rows["split"] == "test") & (rows["species_pred"] != "")].reset_index(drop=True)
    return rows.assign(species_true=rows["species"])


def prediction_sheet(rows: pd.DataFrame, images_root: Path) -> list[Photo]:
    """Show test photos of every species, drawn by lot and not by their predictions."""
    each = max(1, NUM_SHOWN // max(1, rows["species"].nunique()))
    drawn = rows.sample(frac=1, random_state=0).groupby("species").head(each)
    drawn = drawn.sort_values(["species", "image"], kind="stable").head(2 * NUM_SHOWN)
    return [_predicted(images_root, row) for row in drawn.to_dict("records")]


def _photos(folder: Path, root: Path, problems: list[str]) -> dict[str, list[Strip]]:
    try:
        found = read_test_rows(folder)
    except (OSError, ValueError) as error:
        problems.append(f"No photos are shown: {error}")
        return {}
    worst = []  # the most confident of the wrong predictions, one of each animal
    for heads in (HEADS[:1], HEADS[1:]):
        asked = (
            found.assign(head=h, sure=found[f"{h}_prob"], right=found[f"{h}_correct"])
            for h in heads
        )
        wrong = pd.concat(asked).query("right == '0'").astype({"sure": float})
        wrong = wrong.sort_values("sure", ascending=False, kind="stable")
        wrong = wrong.drop_duplicates(["species", "record"]).head(_NUM_MISTAKES)
        shown = [_predicted(root, row, (row["head"],)) for row in wrong.to_dict("records")]
        worst.append(Strip(shown, "photos"))
    return {
        "Test photos and predictions": [Strip(prediction_sheet(found, root), "photos")],
        "Worst mistakes": worst,
    }


def _predicted(root: Path, row: dict[Any, Any], heads: Sequence[str] = HEADS) -> Photo:
    """Show a photo with a line per predicted head."""
    lines = []
    for head in heads:
        predicted, true = plain_cell(row[f"{head}_pred"]), plain_cell(row[f"{head}_true"])
        if predicted:
            words = f"{predicted} {float(row[f'{head}_prob']) * 100:.0f} %"
            kind = {"1": "right", "0": "wrong"}.get(row[f"{head}_correct"], "pale")
            lines.append((f"{words}, is {true}" if kind == "wrong" else words, kind))
    return photo(root, plain_cell(row["image"]), *lines)
