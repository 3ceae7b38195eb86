"""The comparison as a user runs it: evaluations, and wrong folders."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from petface.errors import UserError
from tests.analysis.evaluations import make_evaluation, make_images
from tests.naive import rows_of
from tests.report.page_checks import check_page
from tools import compare


def test_two_evaluations(tmp_path, script) -> None:
    images = make_images(num_records=60)
    a = make_evaluation(tmp_path / "a", images, 0.4, 1)
    b = make_evaluation(tmp_path / "b", images, 0.9, 2)
    out = tmp_path / "out"
    done = script("tools/compare.py", [a, b, "--out", out])
    assert done.code == 0, done.err
    assert sorted(p.name for p in out.iterdir()) == ["changed.csv", "compare.html", "compare.json"]
    comparison = json.loads((out / "compare.json").read_text(encoding="utf-8"))
    assert comparison["a"]["folder"] == str(a)
    assert len(rows_of(out / "changed.csv")) > 10
    assert f"page: {out / 'compare.html'}\n" in done.out
    found = check_page((out / "compare.html").read_text(encoding="utf-8"))
    test = comparison["figures"]["test"]["species"]["conditional"]
    row = next(row for row in found.rows if row[0] == "species")
    right = f"{test['accuracy_a'] * 100:.1f}"
    assert row[2:5] == [str(test["num"]), str(test["num_records"]), right]
    assert f"{test['difference'] * 100:+.1f} points" in found.texts
    assert "identical" not in done.out
    shutil.copytree(a, tmp_path / "same")
    done = script("tools/compare.py", [a, tmp_path / "same", "--out", tmp_path / "twice"])
    words = "A and B are identical: all predictions on "
    assert words in done.out and words in (tmp_path / "twice/compare.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "give two folders to compare, not 0"),
        (("evaluation", "empty", "link"), "give two folders to compare, not 3"),
        (("evaluation", "evaluation"), "are the same folder"),
        (("evaluation", "link"), "are the same folder"),
        (("evaluation", "empty"), "empty holds no petface_eval"),
    ],
)
def test_wrong_folders_are_named(
    names: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "evaluation")
    (tmp_path / "empty").mkdir()
    make_evaluation(tmp_path / "evaluation", make_images(num_records=3), 0.5, 1)
    words = [*(str(tmp_path / name) for name in names), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["compare", *words])
    with pytest.raises(UserError, match=message):
        compare.main()
    assert not (tmp_path / "out").exists()
