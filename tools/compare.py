"""Compare evaluations of one dataset: which model is better, in what, and how surely.

    python -m tools.compare runs/evaluation_a runs/evaluation_b --out runs/comparison

Writes compare.html (no photos, opens without a network), compare.json and changed.csv (every photo
whose prediction changed) into OUT. Intervals and tests keep the photos of one animal together. Each
folder is compared with the first, A; the second comparison's files end in _2.
"""

from __future__ import annotations

import sys
from pathlib import Path

from petface import files
from petface.analysis.compare import compare_evaluations, describe_comparison, read_pair
from petface.errors import SettingsError, UserError, run_script
from petface.report.compare_page import changed_words, comparison_page
from petface.settings import read_settings

OUT: str = "runs/comparison"  # an earlier comparison there is replaced


def main() -> None:
    settings = read_settings(
        sys.modules[__name__],
        positional=("EVALUATION", "folders of evaluations: A, then those compared with it"),
    )
    if len(settings.positional) < 2:
        raise SettingsError(
            f"give two folders to compare, not {len(settings.positional)}: "
            "python -m tools.compare runs/evaluation_a runs/evaluation_b"
        )
    a, *others = map(Path, settings.positional)
    for b in others:
        if a.resolve() == b.resolve():
            raise UserError(f"{a} and {b} are the same folder; give the folder of another model")
    out, comparisons = Path(settings.OUT), []
    for number, b in enumerate(others, start=1):
        suffix = "" if number == 1 else f"_{number}"
        comparison, rows = compare_evaluations(read_pair(a, b))
        files.write_csv(out / f"changed{suffix}.csv", list(rows), rows.itertuples(index=False))
        comparison["num_changed"] = len(rows)
        print(describe_comparison(comparison))
        print(changed_words(comparison))
        files.write_json(out / f"compare{suffix}.json", comparison)
        comparisons.append(comparison)
    with files.atomic_write(out / "compare.html", "w") as handle:
        handle.write(comparison_page(comparisons))
    print(f"page: {out / 'compare.html'}")


if __name__ == "__main__":
    run_script(main)
