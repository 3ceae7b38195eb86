"""Compare two evaluations of one dataset: which model is better, in what, and how surely.

    python -m tools.compare runs/evaluation_a runs/evaluation_b --out runs/comparison

Writes compare.html (no photos, opens without a network), compare.json and changed.csv (every photo
whose prediction changed) into OUT. Intervals and tests keep the photos of one animal together.
"""

from __future__ import annotations

import sys
from pathlib import Path

from petface import files
from petface.analysis.compare import compare_evaluations, describe_comparison
from petface.errors import SettingsError, UserError, run_script
from petface.report.tool_pages import changed_words, write_comparison
from petface.settings import read_settings

OUT: str = "runs/comparison"  # an earlier comparison there is replaced


def main() -> None:
    words = "EVALUATION", "folders of two evaluations, A and B"
    s = read_settings(sys.modules[__name__], positional=words)
    if len(s.positional) != 2:
        raise SettingsError(f"give two folders to compare, not {len(s.positional)}; see --help")
    a, b = map(Path, s.positional)
    if a.resolve() == b.resolve():
        raise UserError(f"{a} and {b} are the same folder; give the folder of another model")
    out, (comparison, rows) = Path(s.OUT), compare_evaluations(a, b)
    files.write_csv(out / "changed.csv", list(rows), rows.itertuples(index=False))
    comparison["num_changed"] = len(rows)
    files.write_json(out / "compare.json", comparison)
    print(f"{describe_comparison(comparison)}\n{changed_words(comparison)}")
    print(f"page: {write_comparison(out / 'compare.html', comparison)}")


if __name__ == "__main__":
    run_script(main)
