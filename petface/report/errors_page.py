"""The error analysis of an evaluation: mistakes, slices, probes, Grad-CAM, likely wrong labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from petface.evaluation.figures import percent, points
from petface.report import charts, photos
from petface.report import folders as read
from petface.report.page import Metric, Page, Section, Strip, table, write

_NUM_PHOTOS = 8  # of the mistakes of a head
_MISTAKE_KEYS = "head image true predicted probability true_probability rank"
_PROBE_KEYS = "head group name accuracy change change_interval agreement"
_PROBE_WORDS = (
    "The same test photos shifted, or with a painted border, with 95 % intervals. A large "
    "loss under a small shift says that a network leans on how the faces were cut."
)
_SUSPECT_WORDS = (
    "Records whose label a model contradicts that saw none of their photos: a list to look "
    "through, not a verdict."
)


def write_errors_page(
    folder: Path, *, with_photos: bool = False, images_root: str = ""
) -> Path | None:
    """Write errors.html into an evaluation's folder; None where nothing was analysed."""
    models, problems = read.read_evaluation_files(folder)[1:]
    analysis = read.read_json(folder / "analysis" / "analysis.json", problems)
    labels = read.read_json(folder / "label_errors.json", problems)
    if not analysis and not labels:
        return None
    root = images_root or str(models.get("images_root", ""))
    found = photos.photo_root(folder, root, with_photos=with_photos)
    page = errors_page(folder, analysis, labels, problems, found)
    return write(folder / "errors.html", page)


def errors_page(
    folder: Path,
    analysis: dict[str, Any],
    labels: dict[str, Any],
    problems: list[str],
    root: Path | None,
) -> Page:
    """Build the page: mistakes with photos first, then what the answers depend on."""
    mistakes, probes = (read.entries(analysis, key) for key in ("mistakes", "probes"))
    suspects = read.read_rows(folder / "label_errors.csv", problems)
    shown = {f"{head}: surest mistakes": list(read.rows(own)) for head, own in mistakes.items()}
    shown["Likely wrong labels"] = suspects
    probed = [
        {**row, "change_interval": row.get("interval_95")}
        for row in read.rows(
            {head: read.dig(own, "probes") for head, own in probes.items()}, "head"
        )
    ]
    drawn = [_probe_chart(head, probed) for head in probes]
    pictures = folder / "analysis"
    sheets = [photos.picture(path) for path in sorted(pictures.glob("photos/*.png")) if root]
    borders = table(read.rows(analysis.get("gradcam"), "head"), "head num layer border_energy_frac")
    num, looked = (read.number(analysis.get(key)) for key in ("num_test", "sample"))
    return Page(
        "/".join(folder.parts[-2:]),
        "Error analysis",
        f"{num} test photos, {looked} looked at" if num else str(folder),
        problems,
        [Section(title, [_photos(root, own)]) for title, own in shown.items() if root],
        [_probe_metric(own) for own in read.rows(probes, "head")],
        [
            Section("What the answers depend on", [_PROBE_WORDS, Strip(drawn[:2])]),
            Section("Likely wrong labels", [_SUSPECT_WORDS, table(suspects)]),
        ],
        [
            Section("All probes", [Strip(drawn[2:]), table(probed, _PROBE_KEYS)]),
            Section("All listed mistakes", [table(read.rows(mistakes, "head"), _MISTAKE_KEYS)]),
            _slices(analysis),
            Section("Heads searched for wrong labels", [table(read.rows(labels.get("heads")))]),
            Section("Where the networks look: Grad-CAM on the border", [borders]),
            Section("Grad-CAM of single photos", sheets),
        ],
    )


def _photos(root: Path, found: list[dict[str, Any]]) -> Strip:
    """Show mistakes, or suspects: a suggestion in place of a prediction."""
    shown = []
    for each in found[:_NUM_PHOTOS]:
        wrong = f"{each.get('predicted', each.get('suggested', ''))}"
        wrong += f" {percent(each['probability'], 0)} %" if "probability" in each else ""
        true = f"is {each.get('true', each.get('label', ''))}"
        shown.append(photos.photo(root, str(each.get("image")), (wrong, "wrong"), (true, "pale")))
    return Strip(shown, "photos")


def _probe_metric(own: dict[str, Any]) -> Metric:
    """Show the accuracy of the probed photos and the probe that costs most."""
    found = [p for p in read.rows(own.get("probes")) if points(p.get("change"))]
    worst = min(found, key=lambda p: p["change"], default={})
    costs = f"{points(worst['change'])} points: {worst.get('name', '')}" if worst else ""
    num, accuracy = (read.dig(own, "baseline", key) for key in ("num", "accuracy"))
    details = [f"{read.number(num)} probed photos", costs]
    return Metric(own["head"], f"{percent(accuracy)} %", details)


def _probe_chart(head: str, probed: list[dict[str, Any]]) -> Any:
    own = [row for row in probed if row["head"] == head]
    marks = [
        (f"{p.get('group')}: {p.get('name')}", p.get("change"), p.get("interval_95"), None)
        for p in own
    ]
    return charts.intervals(head, marks, "change of accuracy, points")


def _slices(analysis: dict[str, Any]) -> Section:
    rows = [
        {"head": cut["head"], "property": cut["property"], "unit": cut.get("unit"), **row,
         "stands_out": "yes" if row.get("stands_out") else ""}
        for cut in read.rows(analysis.get("slices"), "head", "property")
        for row in read.rows(cut.get("bins"))
    ]  # fmt: skip
    counted = read.entries(analysis, "slices_standing_out")
    words = (
        f"{counted.get('stand_out')} of {counted.get('bins')} groups stand out, their interval "
        f"leaves out the accuracy of all; chance alone makes about {counted.get('by_chance')}."
    )
    return Section("Accuracy by what a photo is like", [words, table(rows)])
