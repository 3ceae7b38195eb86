"""The report of an evaluation and the page of its errors; every number comes from its files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from petface.evaluation.details import HEADS, SUMMARY
from petface.evaluation.figures import percent, points
from petface.metrics import read_confusion
from petface.report import charts, photos
from petface.report import folders as read
from petface.report.folders import rows
from petface.report.page import Metric, Page, Strip, headline, leaves, table, write

ERRORS = "errors.html"
_MAX_MAPS = 12  # confusion matrices of attributes in a page; the CSV files hold all
_NUM_PHOTOS = 8  # of the mistakes of a head
_FIGURES = "num num_records accuracy interval_95 majority_baseline balanced_accuracy"
_HEAD_COLUMNS = (
    "head num accuracy interval_95 majority_baseline balanced_accuracy end_to_end.accuracy "
    "per_record.accuracy"
)
_TEST_WORDS = (
    "Animals that no network was trained or chosen on. Attributes are predicted where the species "
    "is right; end to end, the headline above, counts a wrong species as a wrong answer."
)
_SEEN_WORDS = (
    "The networks have seen the photos of the train split: its numbers are not accuracy on new "
    "animals. A train split far above the test split tells of overfitting."
)
_SURE_WORDS = (
    "Test split; temperature and threshold were fitted on the validation split. Answers of a "
    "confidence at or above the threshold count as sure."
)
_PROBE_WORDS = (
    "The same test photos shifted, or with a painted border, with 95 % intervals. A large "
    "loss under a small shift says that a network leans on how the faces were cut."
)
_SUSPECT_WORDS = (
    "Records whose label a model contradicts that saw none of their photos: a list to look "
    "through, not a verdict."
)
# The folded tables: title, where their rows lie in the summary, columns.
_TABLES = (
    (
        "More metrics of the test split",
        "figures.test.{head}",
        "head macro_f1 top3 top5 kappa ece nll brier lost_in_stage1 lost_in_stage2 rescued_by_top5",
    ),
    (
        "Most frequent confusions",
        "top_confusions.{head}",
        "head species true predicted num share_of_true",
    ),
    ("Hardest classes", "hardest_classes.{head}", "head species label num recall f1"),
    (
        "Several photos of one animal",
        "per_record.test.{head}.by_num_photos",
        "head photos records accuracy_per_photo accuracy_fused",
    ),
    (
        "Do the two colours fit together?",
        "consistency.test.per_species.{species}",
        "species num impossible_pairs equal_predicted joint_accuracy product_of_accuracies",
    ),
)


def write_evaluation_report(
    folder: Path, *, with_photos: bool = False, images_root: str = ""
) -> list[Path]:
    """Write report.html, and errors.html where errors were analysed, finished or not.

    Photos stand in them `with_photos`, and always where they are made up. They are read from
    `images_root`, "" = where the evaluation found them.
    """
    summary, models, problems = read.read_evaluation_files(folder)
    analysis = read.read_json(folder / "analysis" / "analysis.json", problems)
    labels = read.read_json(folder / "label_errors.json", problems)
    root = images_root or str(models.get("images_root", ""))
    found = photos.photo_root(folder, root, with_photos=with_photos)
    if with_photos and found is None:
        problems.append(f"No photos are shown: there is no folder {root}.")
    page = evaluation_page(folder, summary, models, problems)
    if found and summary:
        page.photos = _photos(folder, found, problems)
    if not analysis and not labels:
        return [write(folder / read.REPORT, page)]
    link = Markup('<p><a href="./{}">Error analysis</a></p>').format(ERRORS)
    page.sections = {**page.sections, "Errors": [link]}
    errors = errors_page(folder, analysis, labels, problems, found)
    return [write(folder / read.REPORT, page), write(folder / ERRORS, errors)]


def evaluation_page(
    folder: Path, summary: dict[str, Any], models: dict[str, Any], problems: list[str]
) -> Page:
    """Build the page without photos: metrics, confusion matrix, one table; the rest is folded."""
    if not summary:
        problems.append("Not finished: there is no summary yet. The same command resumes it.")
    elif "figures" not in summary:
        problems.append("Made by an earlier version: evaluate again with --force.")
    species = read_confusion(folder / "confusion" / "test_species.csv")
    drawn = charts.confusion("species", *species) if species else Markup()
    by_split = [row for row in rows(summary, "figures.{split}.{head}") if row.get("num")]
    for row in by_split:
        row["split"] += " (seen in training)" * (row["split"] in ("train", "all"))
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
            "Confusion matrix": [Strip([drawn], "wide")],
            "Test split": [_TEST_WORDS, table(read.test_heads(summary), _HEAD_COLUMNS)],
        },
        folded={
            "By species": _by_species([*rows(summary, "per_species.test.{species}.{head}")]),
            "Train, validation and test": [_SEEN_WORDS, table(by_split, f"head split {_FIGURES}")],
            "Confidence": _confidence([*rows(summary, "confidence.{head}.{species}")]),
            "Confusion matrices of the attributes": _attribute_maps(folder),
            **{title: [table(rows(summary, path), shown)] for title, path, shown in _TABLES},
            "State of all photos": [leaves(summary.get("status_counts") or {})],
            "Models": [table(files, "model path sha256")],
            "Data": [leaves(others)],
        },
    )


def errors_page(
    folder: Path,
    analysis: dict[str, Any],
    labels: dict[str, Any],
    problems: list[str],
    root: Path | None,
) -> Page:
    """Build the page: mistakes with photos first, then what the answers depend on."""
    mistakes = [*rows(analysis, "mistakes.{head}")]
    suspects = read.read_csv(folder / "label_errors.csv", problems, read.MAX_ROWS)
    probes = [
        {**row, "probe": f"{row.get('group')}: {row.get('name')}",
         "change_interval": row.get("interval_95")}
        for row in rows(analysis, "probes.{head}.probes")
    ]  # fmt: skip
    drawn = [
        charts.intervals(head, own, "probe change change_interval", "change of accuracy, points")
        for head in HEADS
        if (own := [row for row in probes if row["head"] == head])
    ]
    shown = {f"{head}: surest mistakes": _of(mistakes, head) for head in HEADS}
    shown["Likely wrong labels"] = suspects
    pictures = sorted((folder / "analysis" / "photos").glob("*.png"))
    num, looked = (read.number(analysis.get(key)) for key in ("num_test", "sample"))
    chance = (
        "Groups stand out where their interval leaves out the accuracy of all: "
        "{stand_out} of {bins}; chance alone makes about {by_chance}."
    )
    return Page(
        "/".join(folder.parts[-2:]),
        "Error analysis",
        f"{num} test photos, {looked} looked at" if num else str(folder),
        problems,
        {title: [_mistakes(root, own)] for title, own in shown.items() if root},
        [_probe_metric(own, probes) for own in rows(analysis, "probes.{head}.baseline")],
        {
            "What the answers depend on": [_PROBE_WORDS, Strip(drawn[:2])],
            "Likely wrong labels": [_SUSPECT_WORDS, table(suspects)],
        },
        {
            "All probes": [
                Strip(drawn[2:]),
                table(probes, "head probe accuracy change change_interval agreement"),
            ],
            "All listed mistakes": [
                table(mistakes, "head image true predicted probability true_probability rank")
            ],
            "Accuracy by what a photo is like": [
                *(chance.format(**row) for row in rows(analysis, "slices_standing_out")),
                table(
                    rows(analysis, "slices.{head}.{property}.bins"),
                    "head property bin num accuracy interval_95 stands_out",
                ),
            ],
            "Heads searched for wrong labels": [table(rows(labels, "heads"))],
            "Where the networks look: Grad-CAM on the border": [
                table(rows(analysis, "gradcam.{head}"), "head num layer border_energy_frac")
            ],
            "Grad-CAM of single photos": [photos.picture(path) for path in pictures if root],
        },
    )


def _of(found: Sequence[dict[str, Any]], head: str) -> list[dict[str, Any]]:
    return [row for row in found if row["head"] == head]


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


def _by_species(found: list[dict[str, Any]]) -> list[Any]:
    # Always answering the most common species is no baseline for one of them.
    columns = dict.fromkeys(HEADS, "species accuracy interval_95 majority_baseline")
    columns["species"] = "species accuracy interval_95"
    drawn = [charts.intervals(h, _of(found, h), columns[h], "accuracy, %") for h in HEADS]
    return [Strip(drawn), table(found, f"species head {_FIGURES}")]


def _confidence(found: list[dict[str, Any]]) -> list[Any]:
    known = [row for row in found if row.get("num")]
    whole = [row for row in known if row["species"] == "all"]
    drawn = [charts.svg(panel) for row in whole for panel in charts.confidence(row)]
    columns = (
        "head species num threshold coverage accuracy_of_answered wanted_accuracy "
        "conformal.coverage conformal.mean_size"
    )
    return [_SURE_WORDS, Strip(drawn), table(known, columns)]


def _attribute_maps(folder: Path) -> list[Any]:
    found = [
        (f"{path.stem.removeprefix(f'test_{head}_')}: {head}", matrix)
        for head in HEADS[1:]
        for path in sorted((folder / "confusion").glob(f"test_{head}_*.csv"))
        if (matrix := read_confusion(path))
    ]
    found.sort(key=lambda each: -each[1][1].sum())
    drawn = [charts.confusion(title, *matrix) for title, matrix in found[:_MAX_MAPS]]
    words = f"The {len(drawn)} of {len(found)} with most photos; confusion/ holds them all."
    return [words, Strip(drawn, "wide")]


def _mistakes(root: Path, found: list[dict[str, Any]]) -> Strip:
    """Show mistakes, or suspects: a suggestion in place of a prediction."""
    shown = []
    for each in found[:_NUM_PHOTOS]:
        wrong = f"{each.get('predicted', each.get('suggested', ''))}"
        wrong += f" {percent(each['probability'], 0)} %" if "probability" in each else ""
        true = f"is {each.get('true', each.get('label', ''))}"
        shown.append(photos.photo(root, str(each.get("image")), (wrong, "wrong"), (true, "pale")))
    return Strip(shown, "photos")


def _probe_metric(baseline: dict[str, Any], probes: list[dict[str, Any]]) -> Metric:
    """Show the accuracy of the probed photos and the probe that costs most."""
    found = [row for row in _of(probes, baseline["head"]) if points(row.get("change"))]
    worst = min(found, key=lambda row: row["change"], default={})
    costs = f"{points(worst['change'])} points: {worst.get('name', '')}" if worst else ""
    details = [f"{read.number(baseline.get('num'))} probed photos", costs]
    return Metric(baseline["head"], f"{percent(baseline.get('accuracy'))} %", details)
