"""The audit as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.analysis.test_duplicates import photo
from tests.naive import rows_of
from tests.report.page_checks import check_page
from tests.scripts import assert_refused

AUDIT = "tools/audit.py"


@pytest.fixture
def flags(tmp_path) -> list[object]:
    root = tmp_path / "data"
    for number in range(6):
        folder = root / "images/cat" / f"{number:06d}"
        folder.mkdir(parents=True)
        for k in range(2):  # photo 0 is the same under every record
            Image.fromarray(photo(number * k, 40)).save(folder / f"{k:02d}.png")
    (root / "annotations").mkdir()
    (root / "annotations/cat.csv").write_text("Name,Breed\n0,Tabby\n")
    tree = ["--images-root", root / "images", "--annotations-root", root / "annotations"]
    return [*tree, "--out", tmp_path / "audit"]


def test_it_writes_its_five_files_and_prints_the_figures(flags, tmp_path, script):
    words = ["--sample", 3, "--workers", 2, "--with-photos", "--all"]
    done = script(AUDIT, [*flags, *words]).checked()
    out: Path = tmp_path / "audit"
    assert sorted(path.name for path in out.iterdir()) == [
        "audit.html", "audit.json", "classes.csv", "duplicates.csv", "issues.csv"
    ]  # fmt: skip
    summary = json.loads((out / "audit.json").read_text(encoding="utf-8"))
    assert summary["looked_at"] == summary["photos"] == 12
    assert [row["kind"] for row in rows_of(out / "duplicates.csv")] == ["exact"] * 5
    assert "duplicates_exact: 5\n" in done.out
    page = (out / "audit.html").read_text(encoding="utf-8")
    check_page(page)
    assert page.count("<img ") == 1 + 2 * 5  # of the one species, of each pair
    assert page.index("12</bdi>") < page.index("Issues") < page.index("<table")
    assert page.index("<table") < page.index("<img ")  # the issues stand on top


def test_a_sample_is_what_it_looks_at_and_a_wrong_folder_is_one_line(flags, tmp_path, script):
    done = script(AUDIT, [*flags, "--sample", 5, "--workers", 0]).checked()
    assert "looked_at: 5\n" in done.out
    assert "5 of 12 photos" in (tmp_path / "audit/audit.html").read_text(encoding="utf-8")
    nowhere = tmp_path / "nowhere"
    assert_refused(script(AUDIT, [*flags, "--images-root", nowhere]), nowhere)
