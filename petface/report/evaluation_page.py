"""The report of an evaluation and of its error analysis; every number comes from their files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from petface.evaluation.details import HEADS, PER_IMAGE, SUMMARY
from petface.evaluation.summary import contamination_lines
from petface.files import plain_cell
from petface.metrics import read_confusion
from petface.report import charts
from petface.report import folders as read
from petface.report.folders import rows
from petface.report.page import Photo, Strip, headline, photo, picture, write

NUM_SHOWN = 16  # photos of a sheet, or one of each species; photos of likely wrong labels
_NUM_MISTAKES = 8  # photos
_MAX_MAPS = 12  # confusion matrices of attributes in a page; the CSV files hold all


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
    sheet, worst = _photos(folder, found, problems) if found and summary else ([], [])
    by_species = [*rows(summary, "per_species.test.{species}.{head}")]
    sure = [row for row in rows(summary, "confidence.{head}.{species}") if row.get("num")]
    curves = [charts.confidence(row) for row in sure if row["species"] == "all"]
    matrices = [
        (f"{path.stem.removeprefix(f'test_{head}_')}: {head}", *matrix)
        for head in HEADS[1:]
        for path in sorted((folder / "confusion").glob(f"test_{head}_*.csv"))
        if (matrix := read_confusion(path))
    ]
    largest = sorted(matrices, key=lambda each: -each[2].sum())[:_MAX_MAPS]
    species = read_confusion(folder / "confusion" / "test_species.csv")
    stage1 = [{"model": "stage 1", **row} for row in rows(models, "stage1")]
    return write(
        folder / read.REPORT,
        "evaluation",
        title="/".join(folder.parts[-2:]),
        kind="Evaluation",
        about=f"{folder} · {read.readable_time(None, folder / SUMMARY)}",
        notes=problems,
        sheet=sheet,
        worst=worst,
        headlines=[headline(row) for row in read.headlines(summary)],
        species=[charts.confusion("species", *species)] if species else [],
        test_words=read.test_words(summary),
        heads=read.test_heads(summary),
        by_species=by_species,
        dots=_dots(by_species, "species accuracy interval_95 majority_baseline", "accuracy, %"),
        sure=sure,
        curves=[charts.svg(panel) for own in curves for panel in own],
        matrices=[charts.confusion(*each) for each in largest],
        num_matrices=len(matrices),
        summary=summary,
        models=[*stage1, *rows(models, "specialists.{model}")],
        origins={k: v for k, v in models.items() if k not in ("stage1", "specialists")},
        **_errors(folder, problems, found),
    )


def _errors(folder: Path, problems: list[str], root: Path | None) -> dict[str, Any]:
    """Read what tools.analyse_errors and tools.find_label_errors left."""
    analysis = read.read_json(folder / "analysis" / "analysis.json", problems)
    suspects = read.read_csv(folder / "label_errors.csv", problems, read.MAX_ROWS)
    probes = [
        {**row, "probe": f"{row.get('group')}: {row.get('name')}"}
        for row in rows(analysis, "probes.{head}.probes")
    ]
    return {
        "analysis": analysis,
        "labels": read.read_json(folder / "label_errors.json", problems),
        "suspects": suspects,
        "suspect_photos": [
            photo(root, row["image"], (row["label"], "wrong"), (row["suggested"], "pale"))
            for row in suspects[:NUM_SHOWN]
            if root
        ],
        "probes": probes,
        "probe_dots": _dots(probes, "probe change interval_95", "change of accuracy, points"),
        "pictures": [*map(picture, sorted(folder.glob("analysis/photos/*.png")))] if root else [],
    }


def _dots(found: list[dict[str, Any]], columns: str, label: str) -> list[Markup]:
    """Draw a chart per head."""
    heads = {head: [row for row in found if row["head"] == head] for head in HEADS}
    return [charts.intervals(head, own, columns, label) for head, own in heads.items()]


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


def _photos(folder: Path, root: Path, problems: list[str]) -> tuple[list[Photo], list[Strip]]:
    """Show the sheet, and the surest of the wrong predictions, one of each animal."""
    try:
        found = read_test_rows(folder)
    except (OSError, ValueError) as error:
        problems.append(f"No photos are shown: {error}")
        return [], []
    worst = []
    for heads in (HEADS[:1], HEADS[1:]):
        asked = [
            found.assign(head=head, sure=found[f"{head}_prob"], right=found[f"{head}_correct"])
            for head in heads
        ]
        wrong = pd.concat(asked).query("right == '0'").astype({"sure": float})
        wrong = wrong.sort_values("sure", ascending=False, kind="stable")
        wrong = wrong.drop_duplicates(["species", "record"]).head(_NUM_MISTAKES)
        shown = [_predicted(root, row, (row["head"],)) for row in wrong.to_dict("records")]
        worst.append(Strip(shown, "photos"))
    return prediction_sheet(found, root), worst


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
