"""Reports as a user makes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

from petface.report.report_index import write_index, write_reports
from petface.report.run_files import find_folders
from tests.report.made_folders import make_evaluation, make_run
from tests.report.page_checks import check_page

ROOT = Path(__file__).parent.parent.parent


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.report", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def make_runs(root: Path) -> Path:
    make_run(root / "demo" / "cat")
    make_run(root / "demo" / "dog <b> #1? %41", finished=False)
    make_evaluation(root / "evaluation")
    broken = make_run(root / "broken")
    (broken / "final.json").write_text("{")
    (root / "empty").mkdir()
    (root / ".hidden").mkdir()
    make_run(root / ".hidden" / "run")
    return root


def test_every_run_and_evaluation_has_a_page_and_a_row(tmp_path):
    root = make_runs(tmp_path / "runs")
    done = run("--runs-root", root)
    assert done.returncode == 0, done.stderr
    assert "reports: 4\n" in done.stdout and f"index: {root / 'index.html'}" in done.stdout
    found = check_page((root / "index.html").read_text(encoding="utf-8"))
    targets = [root / unquote(link) for link in found.links]
    assert len(targets) == 4 and all(path.is_file() for path in targets)
    for path in targets:
        check_page(path.read_text(encoding="utf-8"))
    rows = {row[0]: row for row in found.rows[1:]}
    assert set(rows) == {"demo/cat", "demo/dog <b> #1? %41", "evaluation", "broken"}
    assert rows["demo/cat"][3] == "breed 65.4 % of 12" and rows["demo/cat"][7] == "finished"
    assert rows["demo/dog <b> #1? %41"][7] == "unfinished, 3 epochs"
    assert "final.json cannot be read" in rows["broken"][7]
    assert rows["evaluation"][3] == (
        "species 91.9 % of 120 (86.9 - 96.9)breed 57.6 % of 110 (50.0 - 65.0)"
    )


def test_the_newest_stands_first(tmp_path):
    for name, started in (("a", "2026-01-02"), ("b", "2026-03-04"), ("c", "2025-12-31")):
        folder = make_run(tmp_path / name)
        (folder / "environment.json").write_text(f'{{"started": "{started}T10:00:00+0000"}}')
    found = check_page(write_index(tmp_path).read_text(encoding="utf-8"))
    assert [row[0] for row in found.rows[1:]] == ["b", "a", "c"]


def test_folders_can_be_named_and_mistakes_are_one_line(tmp_path):
    root = make_runs(tmp_path / "runs")
    done = run(root / "demo", "--runs-root", root)
    assert done.returncode == 0 and "reports: 2\n" in done.stdout
    found = check_page((root / "index.html").read_text(encoding="utf-8"))
    assert len(found.links) == 2 and len(found.rows) == 5  # the others are there, without a link
    for folder in (root / "empty", root / "nowhere"):
        done = run(folder, "--runs-root", root)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert str(folder) in done.stderr
    done = run("--runs-root", tmp_path / "nowhere")
    assert done.returncode == 1 and "nowhere" in done.stderr and "Traceback" not in done.stderr


def test_a_folder_that_fails_does_not_cost_the_others(tmp_path, monkeypatch):
    root = make_runs(tmp_path / "runs")
    (root / "demo" / "cat" / "report.html").mkdir()  # cannot be replaced by a file
    written, failures = write_reports([root])
    assert len(written) == 3
    assert len(failures) == 1 and str(root / "demo" / "cat") in failures[0]
    monkeypatch.setattr("petface.report.report_index.read_run", lambda _: 1 / 0)
    found = check_page(write_index(root).read_text(encoding="utf-8"))
    assert sum("ZeroDivisionError" in row[7] for row in found.rows[1:]) == 3


def test_links_between_folders_are_not_followed(tmp_path):
    make_run(tmp_path / "a" / "run")
    (tmp_path / "a" / "run" / "loop").symlink_to(tmp_path / "a")
    assert list(find_folders(tmp_path)) == [tmp_path / "a" / "run"]
