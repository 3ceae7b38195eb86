"""The error analysis of an evaluation: mistakes, slices, probes, Grad-CAM, likely wrong labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from petface.evaluation.figures import percent, points
from petface.report import charts, photos
from petface.report import folders as read
from petface.report.page import Metric, Page, Section, Strip, table, write

_NUM_PHOTOS = 8  # of the mistakes of a head
_PROBE_WORDS = (
    "The same test photos shifted, scaled, turned, masked or grey, with 95 % intervals. A large "
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
    num, looked = (read.number(analysis.get(key)) for key in ("num_test", "sample"))
    drawn = [_probe_chart(head, own) for head, own in probes.items()]
    return Page(
        "/".join(folder.parts[-2:]),
        "Error analysis",
        f"{num} test photos, {looked} looked at" if num else str(folder),
        problems,
        [
            *(Section(f"{h}: surest mistakes", [_photos(root, mistakes[h])]) for h in mistakes),
            Section("Likely wrong labels", [_photos(root, suspects)]),
        ]
        if root
        else [],
        [_probe_metric(head, own) for head, own in probes.items()],
        [
            Section("What the answers depend on", [_PROBE_WORDS, Strip(drawn[:2])]),
            Section("Likely wrong labels", [_SUSPECT_WORDS, table(suspects)]),
        ],
        [
            Section("All probes", [Strip(drawn[2:]), table(_probe_rows(probes))]),
            Section("All listed mistakes", [table(_with_head(mistakes), _MISTAKE_KEYS)]),
            _slices(analysis),
            Section("Heads searched for wrong labels", [table(read.listed(labels, "heads"))]),
            _class_maps(folder, analysis),
            _photo_maps(folder / "analysis" / "photos") if root else Section("", []),
        ],
    )


_MISTAKE_KEYS = "head image true predicted probability true_probability rank"


def _with_head(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"head": head, **row} for head in found for row in read.listed(found, head)]


def _photos(root: Path, found: Any) -> Strip:
    """Show mistakes, or suspects: a suggestion in place of a prediction."""
    shown = []
    for each in read.listed({"": found}, "")[:_NUM_PHOTOS]:
        wrong = f"{each.get('predicted', each.get('suggested', ''))}"
        wrong += f" {percent(each['probability'], 0)} %" if "probability" in each else ""
        true = f"is {each.get('true', each.get('label', ''))}"
        shown.append(photos.photo(root, str(each.get("image")), (wrong, "wrong"), (true, "pale")))
    return Strip(shown, "photos")


def _probe_metric(head: str, own: dict[str, Any]) -> Metric:
    """Show the accuracy of the probed photos and the probe that costs most."""
    base = read.entries(own, "baseline")
    found = [p for p in read.listed(own, "probes") if points(p.get("change"))]
    worst = min(found, key=lambda p: p["change"], default={})
    costs = f"{points(worst['change'])} points: {worst.get('name', '')}" if worst else ""
    details = [f"{read.number(base.get('num'))} probed photos", costs]
    return Metric(head, f"{percent(base.get('accuracy'))} %", details)


def _probe_chart(head: str, own: dict[str, Any]) -> Any:
    rows = [
        (str(p.get("name", "")), p.get("change"), p.get("interval_95"), None)
        for p in read.listed(own, "probes")
    ]
    return charts.intervals(head, rows, "change of accuracy, points")


def _probe_rows(probes: dict[str, Any]) -> list[dict[str, Any]]:
    keys = ("group", "name", "accuracy", "change", "agreement")
    return [
        {"head": head, **{key: p.get(key) for key in keys}, "change_interval": p.get("interval_95")}
        for head, own in probes.items()
        for p in read.listed(own, "probes")
    ]


def _slices(analysis: dict[str, Any]) -> Section:
    rows = [
        {"head": head, "property": name, "unit": cut.get("unit"), **row,
         "stands_out": "yes" if row.get("stands_out") else ""}
        for head, cuts in read.entries(analysis, "slices").items()
        for name, cut in (cuts.items() if isinstance(cuts, dict) else ())
        for row in read.listed(cut, "bins")
    ]  # fmt: skip
    counted = read.entries(analysis, "slices_standing_out")
    words = (
        f"{counted.get('stand_out')} of {counted.get('bins')} groups stand out, their interval "
        f"leaves out the accuracy of all; chance alone makes about {counted.get('by_chance')}."
    )
    return Section("Accuracy by what a photo is like", [words, table(rows)])


def _class_maps(folder: Path, analysis: dict[str, Any]) -> Section:
    parts: list[Any] = []
    for head, own in read.entries(analysis, "gradcam").items():
        share, area = (percent(read.dig(own, f"border_{k}_frac")) for k in ("energy", "area"))
        parts.append(f"{head}: {share} % of the maps lie in the border, {area} % of the area.")
        parts.append(photos.picture(folder / "analysis" / f"gradcam_{head}.png"))
    return Section("Where the networks look (mean Grad-CAM of each class)", parts)


def _photo_maps(folder: Path) -> Section:
    sheets = [photos.picture(path) for path in sorted(folder.glob("*.png"))]
    return Section("Grad-CAM of single photos", sheets)
