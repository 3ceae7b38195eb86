"""The report of an evaluation; every number comes from its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from petface.evaluation.details import HEADS, SUMMARY
from petface.metrics import read_confusion
from petface.report import charts, photos
from petface.report import folders as read
from petface.report.page import Page, Section, Strip, headline, leaves, table, write

_MAX_MAPS = 12  # confusion matrices of attributes in a page; the CSV files hold all
_HEAD_KEYS = (
    "head num accuracy interval_95 majority_baseline balanced_accuracy end_to_end.accuracy "
    "per_record.accuracy"
)
_MORE_KEYS = (
    "head macro_f1 top3 top5 kappa raw_ece ece nll brier lost_in_stage1 lost_in_stage2 "
    "rescued_by_top5"
)
_FIGURES = (
    "num num_records accuracy interval_95 majority_baseline balanced_accuracy end_to_end.accuracy "
    "macro_f1 top3 top5 kappa"
)
_SURE_KEYS = (
    "head species num threshold coverage accuracy_of_answered wanted_accuracy conformal.coverage "
    "conformal.mean_size"
)
_TEST_WORDS = (
    "Animals that no network was trained or chosen on. Attributes are asked where the species is "
    "right; end to end, the headline above, counts a wrong species as a wrong answer."
)
_SEEN_WORDS = (
    "The networks have seen the photos of the train part: its numbers are not accuracy on new "
    "animals. A train part far above the test part tells of overfitting."
)
_SURE_WORDS = (
    "Test split; temperature and threshold were fitted on the validation split. Answers of a "
    "confidence at or above the threshold count as sure."
)


def write_evaluation_report(
    folder: Path, *, with_photos: bool = False, images_root: str = ""
) -> Path:
    """Write report.html into the folder of an evaluation, finished or not.

    Photos stand in it `with_photos`, and always where they are made up. They are read from
    `images_root`, "" = where the evaluation found them.
    """
    summary, models, problems = read.read_evaluation_files(folder)
    root = images_root or str(models.get("images_root", ""))
    found = photos.photo_root(folder, root, with_photos=with_photos)
    if with_photos and found is None:
        problems.append(f"No photos are shown: there is no folder {root}.")
    page = evaluation_page(folder, summary, models, problems)
    if found and summary:
        page.photos = _photos(folder, found, page.notes)
    return write(folder / read.REPORT, page)


def evaluation_page(
    folder: Path, summary: dict[str, Any], models: dict[str, Any], notes: list[str]
) -> Page:
    """Build the page without photos: metrics, confusion matrix, one table; the rest is folded."""
    if not summary:
        notes.append("Not finished: there is no summary yet. The same command resumes it.")
    elif "figures" not in summary:
        notes.append("Made by an earlier version; evaluate again with --force for more.")
    heads = read.test_heads(summary)
    species = read_confusion(folder / "confusion" / "test_species.csv")
    drawn = charts.confusion("species", *species) if species else Markup()
    link = Markup('<p><a href="./errors.html">Error analysis</a></p>')
    stages = {"stage 1": models.get("stage1"), **read.entries(models, "specialists")}
    others = {k: v for k, v in models.items() if k not in ("stage1", "specialists")}
    named = {title: read.rows(summary.get(key), "head") for title, key in _LISTS.items()}
    return Page(
        "/".join(folder.parts[-2:]),
        "Evaluation",
        f"{folder} · {read.readable_time(None, folder / SUMMARY)}",
        notes,
        metrics=[headline(row["head"], row) for row in read.headlines(summary)],
        sections=[
            Section("Confusion matrix", [Strip([drawn], "wide")]),
            Section("Test split", [_TEST_WORDS, table(heads, _HEAD_KEYS)]),
            Section("Errors", [link if (folder / "errors.html").is_file() else Markup()]),
        ],
        folded=[
            _by_species(read.dig(summary, "per_species", "test")),
            Section("More metrics of the test part", [table(heads, _MORE_KEYS)]),
            Section("Train, validation and test", [_SEEN_WORDS, _parts(summary)]),
            _confidence(summary),
            _attribute_maps(folder),
            *(Section(title, [table(rows)]) for title, rows in named.items()),
            Section("Several photos of one animal", [_records(summary)]),
            Section("Do the two colours fit together?", [_consistency(summary)]),
            Section("State of all photos", [table(leaves(read.entries(summary, "status_counts")))]),
            Section("Models", [table(read.rows(stages, "model"), "model path sha256")]),
            Section("Data", [table(leaves(others))]),
        ],
    )


_LISTS = {"Most frequent confusions": "top_confusions", "Hardest classes": "hardest_classes"}


def _photos(folder: Path, root: Path, notes: list[str]) -> list[Section]:
    try:
        rows = photos.read_test_rows(folder)
    except (OSError, ValueError) as error:
        notes.append(f"No photos are shown: {error}")
        return []
    worst = [photos.worst_mistakes(rows, root, heads) for heads in (HEADS[:1], HEADS[1:])]
    return [
        Section("Test photos and predictions", [photos.prediction_sheet(rows, root)]),
        Section("Worst mistakes", worst),
    ]


def _by_species(found: Any) -> Section:
    rows, drawn = list(read.rows(found, "species", "head")), []
    for head in HEADS:
        # always answering the most common species is no baseline for one of them
        baseline = "" if head == "species" else "majority_baseline"
        keys = ("species", "accuracy", "interval_95", baseline)
        marks = [[*map(row.get, keys)] for row in rows if row["head"] == head]
        drawn.append(charts.intervals(head, marks, "accuracy, %", "majority baseline"))
    return Section("By species", [Strip(drawn), table(rows, f"species head {_FIGURES}")])


def _parts(summary: dict[str, Any]) -> Any:
    rows = [row for row in read.rows(summary.get("figures"), "part", "head") if row.get("num")]
    for row in rows:
        row["part"] += " (seen in training)" * (row["part"] in ("train", "all"))
    return table(rows, f"head part {_FIGURES}")


def _confidence(summary: dict[str, Any]) -> Section:
    rows = [
        row for row in read.rows(summary.get("confidence"), "head", "species") if row.get("num")
    ]
    whole = [row for row in rows if row["species"] == "all"]
    drawn = [charts.svg(panel) for row in whole for panel in charts.confidence(row["head"], row)]
    return Section("Confidence", [_SURE_WORDS, Strip(drawn), table(rows, _SURE_KEYS)])


def _attribute_maps(folder: Path) -> Section:
    found = [
        (f"{path.stem.removeprefix(f'test_{head}_')}: {head}", matrix)
        for head in HEADS[1:]
        for path in sorted((folder / "confusion").glob(f"test_{head}_*.csv"))
        if (matrix := read_confusion(path))
    ]
    found.sort(key=lambda each: -each[1][1].sum())
    drawn = [charts.confusion(title, *matrix) for title, matrix in found[:_MAX_MAPS]]
    words = f"The {len(drawn)} of {len(found)} with most photos; confusion/ holds them all."
    return Section("Confusion matrices of the attributes", [words, Strip(drawn, "wide")])


def _records(summary: dict[str, Any]) -> Any:
    rows = []
    for own in read.rows(read.dig(summary, "per_record", "test"), "head"):
        whole = {**own, "photos": "any", "records": own.get("num_records")}
        rows += [whole, *({"head": own["head"], **group} for group in own.get("by_num_photos", []))]
    for row in rows:
        row.setdefault("accuracy_one_photo", row.get("accuracy_per_photo"))
    return table(rows, "head photos records accuracy_one_photo accuracy_fused")


def _consistency(summary: dict[str, Any]) -> Any:
    found = read.entries(summary, "consistency", "test")
    groups = {"all": found, **read.entries(found, "per_species")} if found else {}
    return table(read.rows(groups, "species"))
