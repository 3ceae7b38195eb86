"""The report of an evaluation: one page that opens without a network and runs no script.

Every figure comes from the files of the evaluation; nothing is computed here but its wording.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from petface.metrics import read_confusion
from petface.report.definitions import definitions
from petface.report.heat_map import draw_confusion
from petface.report.page import table, text
from petface.report.report_confidence import confidence_section
from petface.report.report_errors import label_error_section, mistake_section, probe_section
from petface.report.report_figures import (
    lost_section,
    parts_section,
    record_section,
    species_section,
    test_section,
)
from petface.report.report_parts import (
    MIN_PHOTOS,
    Tile,
    absent,
    contents,
    dig,
    entries,
    fold,
    interval,
    is_number,
    listed,
    note,
    number,
    pale,
    percent,
    report,
    section,
    tiles,
    write_page,
)
from petface.report.run_files import REPORT, EvaluationFiles, held_out, read_evaluation_files
from petface.taxonomy import FEATURES

_HEADS = ("species", *FEATURES)
_MAX_MAPS_BYTES = 1_200_000  # of all confusion pictures in a page
_MAX_PAIRS = 6  # commonest confusions that stand open
_MAX_OPEN_MAPS = 4  # more are folded away


def write_evaluation_report(
    folder: Path, *, with_photos: bool = False, images_root: Path | str | None = None
) -> Path:
    """Write `report.html` into the folder of an evaluation, finished or not.

    Photos stand in it only `with_photos`; they are read from `images_root`, by default the one that
    the evaluation was made with.
    """
    folder = Path(folder)
    found = read_evaluation_files(folder)
    root = None
    if with_photos:
        given = images_root or dig(found.models, "images_root")
        root = Path(str(given)) if given else None
        if root is None or not root.is_dir():
            found.problems.append(f"no photos are shown: there is no folder {root or 'known'}")
            root = None
    return write_page(folder / REPORT, evaluation_page(found, root))


def evaluation_page(found: EvaluationFiles, images_root: Path | None) -> str:
    """Lay out the report of an evaluation; `images_root` only where photos are to be shown."""
    summary = found.summary or {}
    parts = [
        ("figures", "Test part", test_section(summary)),
        ("lost", "Where points are lost", lost_section(summary)),
        ("parts", "Train, validation and test", parts_section(summary)),
        ("species", "By species", species_section(summary)),
        ("records", "Several photos of one animal", record_section(summary)),
        ("confidence", "Confidence", confidence_section(summary) or absent(summary)),
        ("confusions", "Confusions", _confusions(found)),
        ("classes", "Hardest classes", _hardest(summary)),
        ("consistency", "Consistency", _consistency(summary)),
        ("mistakes", "Mistakes", mistake_section(found, images_root)),
        ("probes", "What the answers depend on", probe_section(found)),
        ("labels", "Likely wrong labels", label_error_section(found, images_root)),
        ("status", "Photos, models, data", _origin(found)),
        ("words", "What these words mean", definitions()),
    ]
    name = "/".join(found.folder.parts[-2:])
    body = [
        f"<h1>Evaluation <bdi>{text(name)}</bdi></h1>",
        pale(" · ".join(filter(None, (str(found.folder), f"finished {found.finished}")))),
        *(note(problem, "bad") for problem in found.problems),
    ]
    if found.summary is None:
        body.append(note("Not finished: there is no summary yet. The same evaluate command goes "
                         "on where it stopped."))  # fmt: skip
    body += [
        _headline(summary),
        contents([(k, title, section(k, title, drawn)) for k, title, drawn in parts]),
    ]
    return report(f"{name}: evaluation report", body)


def _headline(summary: dict[str, Any]) -> str:
    species = held_out(summary, "species")[1]
    shown = [
        Tile(percent(species.get("accuracy")), _caption("species, test part", species)),
    ]
    for head in FEATURES:
        own = held_out(summary, head)[2]
        if own.get("num"):
            words = f"{head} from the photo alone, test part"
            shown.append(Tile(percent(own.get("accuracy")), _caption(words, own), _kind(own)))
    counts = entries(summary, "status_counts")
    bad = sum(v for k, v in counts.items() if k not in ("ok", "no_specialist") and is_number(v))
    shown += [
        Tile(number(dig(summary, "splits", "test", "num_images")), "photos in the test part"),
        Tile(number(summary.get("num_images")), "photos in all"),
        Tile(number(bad), "photos without an answer", "doubt" if bad else "good")
        if counts else Tile("", ""),
    ]  # fmt: skip
    return tiles(shown)


def _caption(words: str, figure: dict[str, Any]) -> str:
    ends = interval(figure.get("interval_95"))
    return f"{words}{f'; 95 %: {ends}' if ends else ''}{'; too few' if _kind(figure) else ''}"


def _kind(figure: dict[str, Any]) -> str:
    num = figure.get("num")
    return "doubt" if is_number(num) and num < MIN_PHOTOS else ""


def _confusions(found: EvaluationFiles) -> str:
    folder = found.folder / "confusion"
    parts, size, left_out = [], 0, 0
    for head in _HEADS:
        maps = []
        for path in sorted(folder.glob(f"test_{head}*.csv")):
            species = path.stem.removeprefix(f"test_{head}")
            if species and not species.startswith("_"):
                continue  # test_color1.csv is none of color's
            table_of = read_confusion(path)
            drawn = draw_confusion(f"{species[1:]} {head}".strip(), *table_of) if table_of else ""
            if size + len(drawn) > _MAX_MAPS_BYTES:
                left_out, drawn = left_out + 1, ""
            size += len(drawn)
            maps.append(drawn)
        maps = [drawn for drawn in maps if drawn]
        shown = f"<div class=maps>{''.join(maps)}</div>" if maps else ""
        is_folded = len(maps) > _MAX_OPEN_MAPS
        parts.append(fold(f"{head}: {len(maps)} specialists", shown) if is_folded else shown)
        parts.append(_top_confusions(found, head))
    if not any(parts):
        return absent(found.summary or {})
    words = (
        "Test part; a row is a true class, a column an answer, in the same order. The stronger the "
        "colour, the larger the share of the row; orange are wrong answers."
    )
    more = pale(f"{left_out} more tables lie in {folder.name}/.") if left_out else ""
    return pale(words) + "".join(parts) + more


def _top_confusions(found: EvaluationFiles, head: str) -> str:
    rows: list[tuple[object, ...]] = [
        (pair.get("species") or "", pair.get("true", ""), pair.get("predicted", ""),
         number(pair.get("num")), percent(pair.get("share_of_true")))
        for pair in listed(found.summary, "top_confusions", head)
        if isinstance(pair, dict)
    ]  # fmt: skip
    header: tuple[str, ...] = ("species", "truth", "answer", "photos", "of that truth")
    if head == "species":
        header, rows = header[1:], [row[1:] for row in rows]
    if not rows:
        return ""
    num_texts = len(header) - 2
    shown = table(header, num_texts, rows[:_MAX_PAIRS])
    rest = table(header, num_texts, rows[_MAX_PAIRS:]) if len(rows) > _MAX_PAIRS else ""
    return f"<h3>{text(head)}: commonest confusions</h3>{shown}{fold('More of them', rest)}"


def _hardest(summary: dict[str, Any]) -> str:
    parts = []
    for head, worst in entries(summary, "hardest_classes").items():
        rows = [
            (each.get("species") or "", each.get("label", ""), number(each.get("num")),
             percent(each.get("recall")), percent(each.get("f1")))
            for each in (worst if isinstance(worst, list) else ())
            if isinstance(each, dict)
        ]  # fmt: skip
        header = ("species", "class", "photos", "recall", "F1")
        if rows:
            parts.append(fold(f"{head}: the {len(rows)} hardest", table(header, 2, rows)))
    words = "Test part; classes of 5 photos or more, the lowest recall first."
    return pale(words) + "".join(parts) if parts else absent(summary)


def _consistency(summary: dict[str, Any]) -> str:
    found = entries(summary, "consistency", "test")
    own = [("all", found), *entries(found, "per_species").items()] if found else []
    names = [k for k, v in found.items() if is_number(v)]
    rows = [
        (group, *(_count_or_share(entries({"": each}, "").get(name)) for name in names))
        for group, each in own
    ]
    words = (
        "Test part: are the two colours of an animal answered as a pair that occurs? Impossible "
        "pairs: in no training label of the species. Unseen true: the same of the true labels, "
        "what a faultless network would have. Joint accuracy: both right; the product of the two "
        "accuracies is what that were if their errors had nothing to do with each other."
    )
    header = ["species", *(name.replace("_", " ") for name in names)]
    return pale(words) + table(header, 1, rows) if names else ""


def _count_or_share(value: Any) -> str:
    return number(value) if isinstance(value, int) else percent(value) or "-"


def _origin(found: EvaluationFiles) -> str:
    counts = [(k, number(v)) for k, v in entries(found.summary, "status_counts").items()]
    rows = []
    models = found.models or {}
    stages = [("stage 1", entries(models, "stage1")), *entries(models, "specialists").items()]
    for name, model in stages:
        if isinstance(model, dict) and model:
            heads = entries(model, "heads").items()
            classes = ", ".join(f"{head} {len(own)}" for head, own in heads)
            rows.append((name, str(model.get("path", "")), str(model.get("sha256", "")), classes))
    others = [
        (name.replace("_", " "), str(value))
        for name, value in models.items()
        if name not in ("stage1", "specialists") and not isinstance(value, dict | list)
    ]
    shown = table(("state", "photos"), 1, counts) if counts else ""
    data = table(("what", "value"), 2, others) if others else ""
    header = ("model", "checkpoint", "sha256", "classes per head")
    return (
        shown
        + (f"<h3>Data</h3>{data}" if data else "")
        + (fold(f"{len(rows)} models", table(header, 4, rows)) if rows else "")
    )
