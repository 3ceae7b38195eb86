"""What surrounds a run's figures: guard, settings, notes about the data, environment."""

from __future__ import annotations

import json
from typing import Any, Final

from petface.report.page import bars, table
from petface.report.report_parts import (
    entries,
    fold,
    is_number,
    note,
    number,
    pale,
    percent,
    preformatted,
)
from petface.report.run_files import Run, defaults_of
from petface.settings.value_types import to_toml

_MAX_NOTED: Final = 50  # rows; the CSVs hold all


def guard_section(run: Run) -> str:
    guard = entries(run.final, "guard")
    rows = [
        (name.replace("_", " "), percent(v) if _is_share(name, v) else _plain(v))
        for name, v in _flat(guard)
    ]
    words = (
        "False alarms: known animals of the test part that the guard refuses. Missed strangers: "
        "made-up photos without an animal that it takes for one; real strangers may be harder."
    )
    return pale(words) + table(("figure", "value"), 1, rows) if rows else ""


def _is_share(name: str, value: Any) -> bool:
    words = ("rate", "alarm", "miss", "share", "frac", "accepted", "rejected")
    return is_number(value) and 0 <= value <= 1 and any(word in name for word in words)


def _flat(tree: dict[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """List the leaves of nested dictionaries with their keys joined."""
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        found += (
            _flat(value, f"{above}{key} ")
            if isinstance(value, dict)
            else [(f"{above}{key}", value)]
        )
    return found


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    return number(value, 4) or (value if isinstance(value, str) else json.dumps(value))


def settings_section(run: Run) -> str:
    if not run.settings:
        return ""
    defaults = defaults_of(run.script)
    rows = [
        (name, _shown(value), _shown(defaults[name]))
        for name, value in run.settings.items()
        if name in defaults and value != defaults[name]
    ]
    if defaults:
        words = f"What differs from the constants that stand in {run.script} now."
        shown = pale(words) + table(("setting", "this run", "default"), 3, rows)
    else:
        shown = pale("The script of this run is not at hand: its defaults are not known.")
    return shown + fold("All settings (settings.toml)", preformatted(run.settings_text))


def _shown(value: Any) -> str:
    return to_toml(tuple(value) if isinstance(value, list) else value)


def data_section(run: Run) -> str:
    parts = []
    if run.unreadable:
        per_species = dict(run.unreadable_per_species().most_common())
        rows = run.unreadable[:_MAX_NOTED]
        parts += [
            f"<h3>{len(run.unreadable):,} images could not be used</h3>{bars(per_species)}",
            fold("The first of them (errors.csv holds all)", table(
                ("species", "message"), 2, [(*row, "", "")[:2] for row in rows])),
        ]  # fmt: skip
    if run.conflicts:
        parts += [
            f"<h3>{len(run.conflicts):,} labels contradict each other and count as unknown</h3>",
            fold("The first of them (label_conflicts.csv holds all)", table(
                ("species", "record", "feature", "values", "lines"), 5,
                [(*row, "", "", "", "", "")[:5] for row in run.conflicts[:_MAX_NOTED]])),
        ]  # fmt: skip
    skipped = sum(row.get("num_skipped_steps") or 0 for row in run.history)
    if skipped:
        parts.append(note(f"{skipped:,.0f} steps were skipped: loss or gradient was not finite."))
    return "".join(parts) or pale("All images could be read and no label contradicts another.")


def environment_section(run: Run) -> str:
    rows = []
    for name, value in _flat(run.environment):
        shown = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        rows.append((name.replace("_", " "), shown))
    if run.final and (checkpoint := run.final.get("checkpoint")):
        rows.append(("checkpoint", str(checkpoint)))
    return fold("Versions, machine, command", table(("what", "value"), 2, rows)) if rows else ""
