"""The report of an evaluation and of its error analysis; every number comes from their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from petface.evaluation.details import HEADS, SUMMARY
from petface.evaluation.identity import contamination_lines
from petface.metrics import read_confusion
from petface.report import charts, photos
from petface.report import folders as read
from petface.report.folders import rows
from petface.report.page import Page, Strip, headline, leaves, table, tables, write

_MAX_MAPS = 12  # confusion matrices of attributes in a page; the CSV files hold all
_NUM_SUSPECTS = 16  # photos of likely wrong labels
_SPLIT_COLUMNS = (
    "head split num num_records accuracy interval_95 majority_baseline balanced_accuracy"
)
_HEAD_COLUMNS = (
    "head num accuracy interval_95 majority_baseline balanced_accuracy end_to_end.accuracy "
    "per_record.accuracy"
)
_MORE_COLUMNS = (
    "head macro_f1 top3 top5 kappa nll brier ece ece_null lost_in_stage1 lost_in_stage2 "
    "rescued_by_top5"
)
_SURE_COLUMNS = (
    "head species num threshold reason coverage accuracy_of_answered wanted_accuracy "
    "overconfident_error_share "
    "conformal.coverage end_to_end.coverage end_to_end.accuracy_of_answered "
    "end_to_end.conformal_coverage"
)
_TEST_WORDS = "End-to-end accuracy, shown above, counts a wrong species as a wrong prediction."
_SEEN_WORDS = "Trained on the train split: its metrics do not hold for new animals."
_SURE_WORDS = (
    "Test split. Temperature and threshold were fitted on the validation split. A prediction is "
    "sure where its confidence reaches the threshold. End to end, a photo whose species is wrong "
    "counts as sure and wrong: the worst case."
)
_PROBE_WORDS = "The test photos shifted or with a painted border: how much the crop matters."
_SLICE_WORDS = "A group stands out where its interval excludes the accuracy of all photos."
_SUSPECT_WORDS = "To review: labels and, below, what a model says that saw none of these photos."
# Folded tables: title, where the rows lie, columns or "" for all, words above.
_SUMMARY_TABLES = (
    ("Train, validation and test", "figures.{split}.{head}", _SPLIT_COLUMNS, _SEEN_WORDS),
    ("More metrics of the test split", "figures.test.{head}", _MORE_COLUMNS, ""),
    ("Most frequent confusions", "top_confusions.{head}", "", ""),
    ("Hardest classes", "hardest_classes.{head}", "", ""),
    ("Several photos of one animal", "per_record.test.{head}.by_num_photos", "", ""),
    ("Consistency of the two colours", "consistency.test.per_species.{species}", "", ""),
)
_ERROR_TABLES = (
    ("Most confident mistakes (all in analysis/mistakes.csv)", "mistakes.{head}", "", ""),
    ("Accuracy by group of photos", "slices.{head}.{property}.bins", "", _SLICE_WORDS),
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
    found = photos.photo_root(folder, root, with_photos=with_photos)
    if with_photos and found is None:
        problems.append(f"No photos are shown: there is no folder {root}.")
    if not summary:
        problems.append("Not finished: there is no summary yet. The same command resumes it.")
    elif "figures" not in summary:
        problems.append("Made by an earlier version: evaluate again with --force.")
    page = evaluation_page(folder, summary, models, problems)
    page.folded = {**_errors(folder, problems, found), **page.folded}
    if found and summary:
        page.photos = _photos(folder, found, problems)
    return write(folder / read.REPORT, page)


def evaluation_page(
    folder: Path, summary: dict[str, Any], models: dict[str, Any], problems: list[str]
) -> Page:
    """Build the page without photos: metrics, confusion matrix, one table; the rest is folded."""
    species = read_confusion(folder / "confusion" / "test_species.csv")
    drawn = charts.confusion("species", *species) if species else Markup()
    by_species = [*rows(summary, "per_species.test.{species}.{head}")]
    dots = _dots(by_species, "species accuracy interval_95 majority_baseline", "accuracy, %")
    sure = [row for row in rows(summary, "confidence.{head}.{species}") if row.get("num")]
    curves = [charts.confidence(row) for row in sure if row["species"] == "all"]
    files = [{"model": "stage 1", **row} for row in rows(models, "stage1")]
    files += rows(models, "specialists.{model}")
    others = {k: v for k, v in models.items() if k not in ("stage1", "specialists")}
    return Page(
        "/".join(folder.parts[-2:]),
        "Evaluation",
        f"{folder} · {read.readable_time(None, folder / SUMMARY)}",
        problems,
        metrics=[headline(row) for row in read.headlines(summary)],
        sections={
            "Species": [Strip([drawn, *dots.shown[:1]], "wide")],
            "Test split": [
                f"{read.test_words(summary)} {_TEST_WORDS}",
                table(read.test_heads(summary), _HEAD_COLUMNS),
            ],
        },
        folded={
            "By species": [
                Strip(dots.shown[1:]),
                table(by_species, _SPLIT_COLUMNS.replace("split", "species")),
            ],
            "Confidence": [
                _SURE_WORDS,
                Strip([charts.svg(panel) for own in curves for panel in own]),
                table(sure, _SURE_COLUMNS),
            ],
            "Confusion matrices of the attributes": _attribute_maps(folder),
            **tables(summary, *_SUMMARY_TABLES),
            "Status of all photos": [leaves(summary.get("status_counts") or {})],
            "Models and data": [table(files, "model path sha256"), leaves(others)],
        },
    )


def _errors(folder: Path, problems: list[str], root: Path | None) -> dict[str, Any]:
    """Show what tools.analyse_errors and tools.find_label_errors left."""
    analysis = read.read_json(folder / "analysis" / "analysis.json", problems)
    labels = read.read_json(folder / "label_errors.json", problems)
    suspects = read.read_csv(folder / "label_errors.csv", problems, read.MAX_ROWS)
    shown = [
        photos.photo(root, row["image"], (row["label"], "wrong"), (row["suggested"], "pale"))
        for row in suspects[:_NUM_SUSPECTS]
        if root
    ]
    probes = [
        {**row, "probe": f"{row.get('group')}: {row.get('name')}"}
        for row in rows(analysis, "probes.{head}.probes")
    ]
    pictures = sorted((folder / "analysis" / "photos").glob("*.png")) if root else []
    return {
        "Sensitivity to shifts and borders": [
            _PROBE_WORDS,
            _dots(probes, "probe change interval_95", "change of accuracy, points"),
            table(probes, "head probe accuracy change interval_95 agreement"),
        ],
        **tables(analysis, *_ERROR_TABLES),
        "Grad-CAM of single photos": [*map(photos.picture, pictures)],
        "Likely label errors": [_SUSPECT_WORDS, Strip(shown, "photos"), table(suspects)],
        **tables(labels, ("Label errors per head", "heads", "", "")),
    }


def _photos(folder: Path, root: Path, problems: list[str]) -> dict[str, list[Strip]]:
    try:
        found = photos.read_test_rows(folder)
    except (OSError, ValueError) as error:
        problems.append(f"No photos are shown: {error}")
        return {}
    worst = [photos.worst_mistakes(found, root, heads) for heads in (HEADS[:1], HEADS[1:])]
    return {
        "Test photos and predictions": [photos.prediction_sheet(found, root)],
        "Worst mistakes": worst,
    }


def _dots(found: list[dict[str, Any]], columns: str, label: str) -> Strip:
    """Draw a chart per head."""
    heads = {head: [row for row in found if row["head"] == head] for head in HEADS}
    return Strip([charts.intervals(head, own, columns, label) for head, own in heads.items()])


def _attribute_maps(folder: Path) -> list[Any]:
    found = [
        (f"{path.stem.removeprefix(f'test_{head}_')}: {head}", matrix)
        for head in HEADS[1:]
        for path in sorted((folder / "confusion").glob(f"test_{head}_*.csv"))
        if (matrix := read_confusion(path))
    ]
    found.sort(key=lambda each: -each[1][1].sum())
    drawn = [charts.confusion(title, *matrix) for title, matrix in found[:_MAX_MAPS]]
    words = f"The {len(drawn)} of {len(found)} with the most photos; all are in confusion/."
    return [words, Strip(drawn, "wide")]
