"""Reports as a user makes them; what the pages show is tested in tests/report."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.report.made_folders import make_evaluation, make_run

ROOT = Path(__file__).parent.parent.parent


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.report", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_every_run_and_evaluation_has_a_page(tmp_path):
    make_run(tmp_path / "demo" / "cat")
    make_evaluation(tmp_path / "evaluation", photos=tmp_path / "images")
    done = run("--runs-root", tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"report: {tmp_path / 'demo' / 'cat' / 'report.html'}\n" in done.stdout
    assert "reports: 3\n" in done.stdout and f"index: {tmp_path / 'index.html'}" in done.stdout
    page = tmp_path / "evaluation" / "report.html"
    assert "<img" not in page.read_text(encoding="utf-8")
    done = run(tmp_path / "evaluation", "--runs-root", tmp_path, "--with-photos")
    assert done.returncode == 0 and "reports: 2\n" in done.stdout
    assert "<img" in page.read_text(encoding="utf-8")


def test_mistakes_are_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "nowhere"):
        done = run(folder, "--runs-root", tmp_path)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert str(folder) in done.stderr
    done = run("--runs-root", tmp_path / "nowhere")
    assert done.returncode == 1 and "nowhere" in done.stderr and "Traceback" not in done.stderr
