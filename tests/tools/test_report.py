"""Reports as a user makes them; what the pages show is tested in tests/report."""

from __future__ import annotations

from tests.report.made_folders import make_evaluation, make_run
from tests.scripts import REPORT, assert_refused


def test_every_run_and_evaluation_has_a_page(tmp_path, script):
    make_run(tmp_path / "demo" / "cat")
    make_evaluation(tmp_path / "evaluation", photos=tmp_path / "images")
    done = script(REPORT, ["--runs-root", tmp_path])
    assert done.code == 0, done.err
    assert f"report: {tmp_path / 'demo' / 'cat' / 'report.html'}\n" in done.out
    assert "reports: 2\n" in done.out and f"index: {tmp_path / 'index.html'}" in done.out
    page = tmp_path / "evaluation" / "report.html"
    assert "<img" not in page.read_text(encoding="utf-8")
    done = script(REPORT, [tmp_path / "evaluation", "--runs-root", tmp_path, "--with-photos"])
    assert done.code == 0 and "reports: 1\n" in done.out
    assert "<img" in page.read_text(encoding="utf-8")


def test_mistakes_are_one_line(tmp_path, script):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "nowhere"):
        assert_refused(script(REPORT, [folder, "--runs-root", tmp_path]), folder)
    assert_refused(script(REPORT, ["--runs-root", tmp_path / "nowhere"]), "nowhere")
