"""What an error analysis and a search for wrong labels found, as parts of a report."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from petface.report.dots import Change, Dot, changes, dots
from petface.report.page import table, text
from petface.report.pictures import photo, picture
from petface.report.report_parts import (
    dig,
    entries,
    fold,
    is_number,
    listed,
    number,
    pale,
    percent,
    points,
)
from petface.report.run_files import EvaluationFiles

_MAX_MISTAKES = 10  # photos of a head
_HOW = "python -m tools.analyse_errors --out-dir"


def mistake_section(found: EvaluationFiles, images_root: Path | None) -> str:
    """Show each head's surest mistakes and where right answers are rarer; photos on request."""
    analysis = found.analysis
    if analysis is None:
        return pale(f"Not analysed; run: {_HOW} {found.folder}") if found.summary else ""
    parts = []
    for head, worst in entries(analysis, "mistakes").items():
        own = [
            each for each in (worst if isinstance(worst, list) else ()) if isinstance(each, dict)
        ]
        if not own:
            continue
        rows = [
            (each.get("image", ""), each.get("true", ""), each.get("predicted", ""),
             percent(each.get("probability")), percent(each.get("true_probability")) or "-",
             number(each.get("rank")))
            for each in own
        ]  # fmt: skip
        header = ("photo", "truth", "answer", "its probability", "of the truth", "place of truth")
        shown = table(header, 3, rows)
        parts.append(fold(f"{head}: the {len(rows)} surest mistakes",
                          _photos(own[:_MAX_MISTAKES], images_root), shown))  # fmt: skip
    sheets = _sheets(found.folder / "analysis", images_root)
    words = (
        "Test part. Wrong answers of which the network was surest: some are wrong labels, the "
        "others show what it confuses without knowing."
    )
    return pale(words) + "".join(parts) + sheets + _slices(analysis)


def _photos(worst: Iterable[dict[str, Any]], images_root: Path | None) -> str:
    if images_root is None:
        return ""
    figures = [
        photo(images_root, str(each.get("image", "")), (
            f"{each.get('predicted', '')} {percent(each.get('probability'))}",
            f"label: {each.get('true', '')}", str(each.get("image", ""))))
        for each in worst
    ]  # fmt: skip
    return f'<div class="photos wider">{"".join(figures)}</div>'


def _sheets(folder: Path, images_root: Path | None) -> str:
    """Embed the sheets of photos, only where photos are asked for."""
    if images_root is None:
        return ""
    drawn = [(path, picture(path, path.stem)) for path in sorted((folder / "photos").glob("*.png"))]
    return "".join(fold(f"Sheet {path.name}", shown) for path, shown in drawn if shown)


def _slices(analysis: dict[str, Any]) -> str:
    parts = []
    for head, cuts in entries(analysis, "slices").items():
        blocks = []
        for name, cut in (cuts if isinstance(cuts, dict) else {}).items():
            bins = [each for each in listed(cut, "bins") if isinstance(each, dict)]
            rows = [
                Dot(f"{each.get('bin', '')}{' *' if each.get('stands_out') else ''}",
                    each.get("accuracy"), each.get("interval_95"), dig(cut, "accuracy"),
                    each.get("num"))
                for each in bins
            ]  # fmt: skip
            unit = f" ({cut['unit']})" if cut.get("unit") else ""
            drawn = dots(rows, baseline="all of them") if len(rows) > 1 else ""
            title = f"<h3>{text(name.replace('_', ' ') + unit)}</h3>"
            blocks.append(f"<div>{title}{drawn}</div>" if drawn else "")
        if any(blocks):
            grid = f"<div class=two>{''.join(blocks)}</div>"
            parts.append(fold(f"{head}: accuracy by what a photo is like", grid))
    if not parts:
        return ""
    counted = entries(analysis, "slices_standing_out")
    words = "A star: the interval leaves out the accuracy of all. "
    if is_number(counted.get("stand_out")):
        words += (
            f"{counted['stand_out']} of {number(counted.get('bins'))} groups stand out; chance "
            f"alone makes about {number(counted.get('by_chance'), 1)}."
        )
    return f"<h3>Slices</h3>{pale(words)}" + "".join(parts)


def probe_section(found: EvaluationFiles) -> str:
    """Show how shifted, turned, masked and grey photos change the answers, and where it looks."""
    analysis = found.analysis or {}
    parts: list[str] = []
    for head, own in entries(analysis, "probes").items():
        probes = [each for each in listed(own, "probes") if isinstance(each, dict)]
        rows = [
            Change(f"{each.get('group', '')}: {each.get('name', '')}", each.get("change"),
                   each.get("interval_95"))
            for each in probes
        ]  # fmt: skip
        base = entries(own, "baseline")
        title = (
            f"{head}: change from {percent(base.get('accuracy'))} right of "
            f"{number(base.get('num'))} photos"
        )
        if drawn := changes(rows):
            every = fold("As a table", _probe_table(probes))
            parts.append(fold(title, drawn, every, is_open=not parts))
    maps = [
        (head, own, picture(found.folder / "analysis" / str(name), f"mean Grad-CAM, {head}"))
        for head, own in entries(analysis, "gradcam").items()
        for name in listed(own, "files")
        if "/" not in str(name) and "\\" not in str(name)
    ]
    looked = []
    for head, own, shown in maps:
        share, area = percent(dig(own, "border_energy_frac")), percent(dig(own, "border_area_frac"))
        words = f"{head}: {share} of the maps lie in the border, which is {area} of the area."
        looked.append(fold(f"{head}: where the network looks", pale(words) if share else "", shown))
    probed = (
        pale(
            "Points of accuracy gained or lost when the same test photos are shifted, scaled, "
            "turned, masked or grey, with 95 % intervals. PetFace's photos are aligned to the "
            "face: a large loss under a small shift says that the network leans on the alignment."
        )
        if parts
        else ""
    )
    seen = "<h3>Mean Grad-CAM of each class</h3>" if any(looked) else ""
    return probed + "".join(parts) + seen + "".join(looked)


def _probe_table(probes: list[dict[str, Any]]) -> str:
    rows = [
        (each.get("group", ""), each.get("name", ""), percent(each.get("accuracy")),
         points(each.get("change")), percent(each.get("agreement")),
         percent(each.get("confidence")))
        for each in probes
    ]  # fmt: skip
    header = ("group", "probe", "right", "change", "same answer", "confidence")
    return table(header, 2, rows)


def label_error_section(found: EvaluationFiles, images_root: Path | None) -> str:
    """List the likely wrong labels that stand first, and how far their judge can be trusted."""
    heads = [each for each in listed(found.label_errors, "heads") if isinstance(each, dict)]
    if not heads and not found.suspects:
        return ""
    rows = [
        (f"{each.get('species', '')} {each.get('feature', '')}", number(each.get("num_judged")),
         percent(each.get("agreement")) or "-", percent(each.get("majority_share")) or "-",
         number(each.get("num_suspects")), number(each.get("num_confident")))
        for each in heads
    ]  # fmt: skip
    header = ("head", "records judged", "as labelled", "commonest", "suspects", "confident")
    suspects = [
        (each.get("image", ""), each.get("feature", ""), each.get("label", ""),
         each.get("suggested", ""), _share(each.get("p_label")), _share(each.get("p_suggested")))
        for each in found.suspects
    ]  # fmt: skip
    columns = ("photo", "head", "label", "suggested", "of the label", "of the suggestion")
    words = (
        "Records whose label a model contradicts that saw none of their photos: a list to look "
        "through, not a verdict. label_errors.csv holds them all."
    )
    precision = entries(found.label_errors, "expected_precision").get("precision")
    if is_number(precision):
        words += (
            f" In a trial with labels made wrong on purpose, {percent(precision)} of the first in "
            "the ranking were such."
        )
    shown = [
        {"image": each.get("image", ""), "predicted": each.get("suggested", ""),
         "true": each.get("label", "")}
        for each in found.suspects
    ]  # fmt: skip
    return (
        pale(words)
        + _photos(shown, images_root)
        + (table(columns, 4, suspects) if suspects else "")
        + (fold("Every head that was judged", table(header, 1, rows)) if rows else "")
    )


def _share(cell: str | None) -> str:
    try:
        return percent(float(cell or "nan")) or "-"
    except ValueError:
        return "-"
