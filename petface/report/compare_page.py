"""A comparison as one HTML page: no script, nothing from the network, no photos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from petface.analysis.compare import CHANGES, ROUGH, interval_of, named_tests, p_text
from petface.analysis.paired import MIN_RECORDS
from petface.evaluation.figures import interval, percent, points
from petface.report.page import page, table, text

STYLE = """<style>
h3{font-size:15px;margin:22px 0 8px}
.gaps{display:grid;grid-template-columns:max-content 1fr max-content;gap:4px 12px;
align-items:center;font-size:14px;font-variant-numeric:tabular-nums;margin:8px 0 16px}
.gap{position:relative;height:20px;background:linear-gradient(var(--line),var(--line)) 50% 0/1px
100% no-repeat,var(--soft)}
.gap i{position:absolute;top:9px;height:2px;background:var(--pale)}
.gap b{position:absolute;top:5px;width:10px;height:10px;margin-left:-5px;border-radius:5px;
background:var(--pale)}
.up i,.up b{background:var(--good)}.down i,.down b{background:var(--bad)}
.ends{display:flex;justify-content:space-between;font-size:12px;color:var(--pale)}
.curves{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr));gap:18px}
.curves div{font-size:12px;color:var(--pale)}.curves b{color:var(--ink);font-size:14px}
.curves svg{display:block;width:100%;height:110px;background:var(--soft);border-radius:4px}
polyline{fill:none;stroke-width:2;vector-effect:non-scaling-stroke}
.a{stroke:var(--bar)}.b{stroke:var(--doubt);stroke-dasharray:6 3}
.key span{display:inline-block;width:28px;border-top:3px solid var(--bar);margin:0 6px 4px 0}
.key .kb{border-top:3px dashed var(--doubt);margin-left:18px}
@media (max-width:640px){.gaps{grid-template-columns:1fr max-content}.gaps>span:nth-child(3n+1)
{grid-column:1/-1;margin-top:4px}}
</style>"""


def comparison_page(comparison: dict[str, Any]) -> str:
    """Lay out what `compare_evaluations` gives."""
    test, val = comparison["figures"]["test"], comparison["figures"]["val"]
    body = [
        STYLE,
        f"<h1>Comparison of two evaluations</h1>{folders(comparison)}",
        _tiles(comparison),
        notes_of(comparison["notes"]),
        "<h2>Test part: B minus A</h2>",
        "<p class=pale>Points of accuracy with 95 % intervals; left of the line A is better, "
        "right of it B. Coloured where the adjusted p-value is below 5 %.</p>",
        _gaps(list(named_tests(test))),
        _accuracy(test, comparison["num_tests"]["test"]),
        _counts(test),
        "<h2>Test part: confidence</h2><p class=pale>Mean log loss and Brier score of the true "
        "label where both named the species right; lower is better, so a negative difference "
        "speaks for B.</p>",
        _scores(test),
        "<h2>What changed</h2>",
        _changes(comparison),
        _movers(comparison["classes"]),
        "<h2>Validation part</h2><p class=pale>Training chose its best epoch on this part: "
        "the test part decides.</p>",
        _accuracy(val, comparison["num_tests"]["val"]),
        "<h2>What was compared</h2>",
        _sides(comparison),
        _method(comparison),
    ]
    return page("Comparison", body)


def folders(comparison: dict[str, Any]) -> str:
    """Name the two folders."""
    return "".join(
        f"<p class=pale>{side.upper()}: <bdi>{text(comparison[side]['folder'])}</bdi></p>"
        for side in ("a", "b")
    )


def _tiles(comparison: dict[str, Any]) -> str:
    verdicts = [test["verdict"] for _, test in named_tests(comparison["figures"]["test"])]
    tiles = [
        ("", f"{comparison['images']['common']:,}", "common images"),
        ("", f"{comparison['images']['test']:,}", "of them in the test part"),
        ("", str(len(verdicts)), "tests on the test part"),
        ("good" if "B better" in verdicts else "", str(verdicts.count("B better")), "B better"),
        ("bad" if "A better" in verdicts else "", str(verdicts.count("A better")), "A better"),
        ("", str(verdicts.count("no difference shown")), "no difference shown"),
    ]
    shown = (f'<div class="tile {k}"><b>{value}</b><span>{n}</span></div>' for k, value, n in tiles)
    return f"<div class=tiles>{''.join(shown)}</div>"


def notes_of(notes: Sequence[str]) -> str:
    """Lay out what the reader should know, a paragraph each."""
    return "".join(f"<p><bdi>{text(note)}</bdi></p>" for note in notes)


def _gaps(tests: list[tuple[str, dict[str, Any]]]) -> str:
    """Draw each difference with its interval around a line at 0."""
    if not tests:
        return "<p>No photo of the test part that both answered has a known label.</p>"
    limits = [abs(v) for _, t in tests for v in (t["difference"], *(t["interval_95"] or ()))]
    widest = max(0.005, *limits) * 1.05
    place = lambda value: 50 + 50 * value / widest  # noqa: E731 per cent of the width
    lines = []
    for name, test in tests:
        kind = {"B better": "up", "A better": "down"}.get(test["verdict"], "")
        whisker = ""
        if test["interval_95"]:
            low, high = map(place, test["interval_95"])
            whisker = f'<i style="left:{low:.2f}%;width:{high - low:.2f}%"></i>'
        dot = f'<b style="left:{place(test["difference"]):.2f}%"></b>'
        lines.append(
            f'<span>{text(name)}</span><div class="gap {kind}">{whisker}{dot}</div>'
            f"<span class=num>{points(test['difference'])}</span>"
        )
    ends = f"<span>{points(-widest)}</span><span>0</span><span>{points(widest)}</span>"
    return f"<div class=gaps>{''.join(lines)}<span></span><div class=ends>{ends}</div></div>"


def _accuracy(heads: dict[str, Any], num_tests: int) -> str:
    header = ("what", "photos", "records", "A %", "B %", "B - A", "95 % interval", "p",
              "adjusted p", "verdict")  # fmt: skip
    rows = [
        (
            name, test["num"], test["num_records"], percent(test["accuracy_a"]),
            percent(test["accuracy_b"]), points(test["difference"]),
            interval_of(test), p_text(test["p_value"]), p_text(test["p_holm"]),
            test["verdict"],
        )
        for name, test in named_tests(heads)
    ]  # fmt: skip
    note = (
        f"<p class=pale>{num_tests} tests were made; adjusted p-values allow for that (Holm). "
        f"{ROUGH}.</p>"
    )
    return note + table(header, 1, rows)


def _counts(heads: dict[str, Any]) -> str:
    header = ("what", "both right", "only A", "only B", "both wrong", "balanced A %",
              "balanced B %", "B - A", "95 % interval")  # fmt: skip
    rows = [
        (
            name, test["both_right"], test["only_a"], test["only_b"], test["both_wrong"],
            percent(test["balanced_accuracy_a"]), percent(test["balanced_accuracy_b"]),
            points(test["balanced_difference"]), interval_of(test, "balanced_interval_95"),
        )
        for name, test in named_tests(heads)
    ]  # fmt: skip
    return "<h3>Photos by who is right, and balanced accuracy</h3>" + table(header, 1, rows)


def _scores(heads: dict[str, Any]) -> str:
    header = ("head", "photos", "score", "A", "B", "B - A", "95 % interval")
    rows = []
    for head, views in heads.items():
        test = views.get("conditional", {})
        for name, title in (("nll", "log loss"), ("brier", "Brier")):
            if f"{name}_num" in test:
                limits = test[f"{name}_interval_95"]
                shown = f"{limits[0]:+.4f} to {limits[1]:+.4f}" if limits else "too few"
                rows.append(
                    (head, title, test[f"{name}_num"], f"{test[f'{name}_a']:.4f}",
                     f"{test[f'{name}_b']:.4f}", f"{test[f'{name}_difference']:+.4f}", shown)
                )  # fmt: skip
    return table((header[0], header[2], header[1], *header[3:]), 2, rows)


def _changes(comparison: dict[str, Any]) -> str:
    rows = [
        (
            head,
            agreement["num"],
            f"{agreement['share'] * 100:.1f}",
            *(comparison["changed"].get(head, {}).get("test", {}).get(k, 0) for k in CHANGES),
            f"{agreement['same_mistake']:,} of {agreement['both_wrong']:,}",
        )
        for head, agreement in comparison["agreement"]["test"].items()
    ]
    header = ("head", "answered by both", "same answer %", *CHANGES, "both wrong: same mistake")
    note = (
        "<p class=pale>Photos of the test part. Every changed answer of every part is a row of "
        "changed.csv.</p>"
    )
    return note + table(header, 1, rows)


def _movers(classes: dict[str, Any]) -> str:
    header = ("species", "label", "photos", "records", "right A", "right B", "95 % interval")
    parts = []
    for head, found in classes.items():
        for title, entries in (("gains of B", found["gains"]), ("losses of B", found["losses"])):
            rows = [
                (
                    entry["species"], entry["label"], entry["num"], entry["num_records"],
                    entry["correct_a"], entry["correct_b"],
                    interval(entry["interval_95"], points) or "too few",
                )
                for entry in entries
            ]  # fmt: skip
            if rows:
                open_ = " open" if head == "species" else ""
                name = f"{head}: {title}, {len(rows)} classes" if len(rows) > 1 else (
                    f"{head}: {title}, 1 class"
                )  # fmt: skip
                parts.append(
                    f"<details{open_}><summary>{text(name)}</summary>{table(header, 2, rows)}"
                    "</details>"
                )
    note = (
        "<p class=pale>Classes by photos gained or lost on the test part, where both named the "
        f"species right. The intervals stand alone: among many classes some leave 0 out by chance. "
        f"Too few: fewer than {MIN_RECORDS} records.</p>"
    )
    return "<h2>Classes that moved most</h2>" + (note + "".join(parts) if parts else "<p>None.</p>")


def _sides(comparison: dict[str, Any]) -> str:
    a, b = comparison["a"], comparison["b"]
    rows: list[tuple[object, ...]] = [
        (name, _short(a[name]), _short(b[name]))
        for name in ("images", "dataset", "precision", "device")
    ]
    rows.append(("stage 1", _model(a["stage1"]), _model(b["stage1"])))
    for name in sorted({*a["specialists"], *b["specialists"]}):
        one, other = (side["specialists"].get(name) for side in (a, b))
        if (one or {}).get("sha256") != (other or {}).get("sha256"):
            rows.append((f"specialist {name}", _model(one), _model(other)))
    same = len({*a["specialists"], *b["specialists"]}) - (len(rows) - 5)
    note = f"<p class=pale>{same} specialists are the same file in both.</p>" if same else ""
    return table(("", "A", "B"), 3, rows) + note


def _short(value: object) -> str:
    shown = "" if value is None else str(value)
    return shown[:12] if len(shown) == 64 else shown


def _model(model: dict[str, Any] | None) -> str:
    if model is None:
        return "none"
    path = PurePath(str(model["path"] or "")).as_posix()
    return f"{path} ({_short(model['sha256'])})"


def _method(comparison: dict[str, Any]) -> str:
    options = comparison["options"]
    lines = (
        "The photos of one animal are right or wrong together, so everything is counted by "
        "record. A test that takes photos as independent would call too much significant.",
        f"Intervals: {options['resamples']:,} resamples of whole records, the same for A and B "
        "(percentiles; seed " + str(options["seed"]) + "). Log loss and Brier: standard error "
        "between records.",
        "p-values: A's and B's answers are swapped in whole records; all swaps are counted, or "
        f"{options['flips']:,} drawn where they are too many.",
        "Balanced accuracy is the mean over classes; where many classes have few records its "
        "interval is rough.",
        "Intervals are not adjusted for the number of tests; the verdict is.",
    )
    return "<h2>How it was done</h2>" + "".join(f"<p>{text(line)}</p>" for line in lines)
