"""The audit as a user runs it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

from tests.analysis.test_duplicates import photo
from tests.report.page_checks import check_page

ROOT = Path(__file__).parent.parent.parent


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.audit", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def make_tree(root: Path) -> list[object]:
    from PIL import Image

    for number in range(6):
        folder = root / "images/cat" / f"{number:06d}"
        folder.mkdir(parents=True)
        for k in range(2):  # photo 0 is the same under every record
            Image.fromarray(photo(number * k, 40)).save(folder / f"{k:02d}.png")
    (root / "annotations").mkdir()
    (root / "annotations/cat.csv").write_text("Name,Breed\n0,Tabby\n")
    return ["--images-root", root / "images", "--annotations-root", root / "annotations"]


def test_it_writes_its_five_files_and_prints_the_figures(tmp_path):
    flags = make_tree(tmp_path / "data")
    flags += ["--sample", 3, "--workers", 2, "--out", tmp_path / "audit", "--with-photos"]
    done = run(*flags, "--all")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "audit").iterdir()) == [
        "audit.html", "audit.json", "classes.csv", "duplicates.csv", "issues.csv"
    ]  # fmt: skip
    summary = json.loads((tmp_path / "audit/audit.json").read_text(encoding="utf-8"))
    assert summary["looked_at"] == summary["photos"] == 12
    with (tmp_path / "audit/duplicates.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 5 and {row["kind"] for row in rows} == {"exact"}
    assert "exact_duplicates: 5\n" in done.stdout
    page = (tmp_path / "audit/audit.html").read_text(encoding="utf-8")
    check_page(page)
    assert page.count("<img ") == 1 + 2 * 5  # of the one species, of each pair
    assert page.index("<img ") < page.index("12</bdi>") < page.index("<table")


def test_a_sample_is_what_it_looks_at_and_a_wrong_folder_is_one_line(tmp_path):
    flags = make_tree(tmp_path / "data")
    done = run(*flags, "--sample", 5, "--workers", 0, "--out", tmp_path / "audit")
    assert done.returncode == 0, done.stderr
    assert "looked_at: 5\n" in done.stdout
    assert "5 of 12 photos" in (tmp_path / "audit/audit.html").read_text(encoding="utf-8")
    done = run("--images-root", tmp_path / "nowhere", "--out", tmp_path / "audit")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert str(tmp_path / "nowhere") in done.stderr
