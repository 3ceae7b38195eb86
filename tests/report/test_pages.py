"""The pages: right numbers, escaped texts, nothing from outside, whatever a folder holds."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image

from petface import report
from petface.report import folders
from petface.report.compare_page import comparison_page
from petface.report.evaluation_page import write_evaluation_report
from petface.report.index_page import write_index
from petface.report.run_page import write_run_report
from tests.report.made_folders import HOSTILE, make_comparison, make_evaluation, make_run
from tests.report.page_checks import check_page


def read(path: Path | None):
    assert path is not None
    page = path.read_text(encoding="utf-8")
    return check_page(page), page


def row_of(found, *cells: str) -> list[str]:
    return next(row for row in found.rows if row[: len(cells)] == list(cells))


def test_a_run_of_stage_2_shows_its_numbers(tmp_path):
    found, page = read(write_run_report(make_run(tmp_path / "cat")))
    text = " ".join(" ".join(found.texts).split())
    assert "Stage 2: attributes demo/cat stage2_resnet_multi.py · started 2026-11-24" in text
    assert "breed 65.4 % 95 %: 38.0 - 85.4 (by photo) majority baseline 12.3 %" in text
    assert "12 photos, too few to rely on" in text and "1.5 min" not in text and "90 s" in text
    assert row_of(found, "breed") == ["breed", "12", "65.4", "38.0 - 85.4", "12.3", "43.2"]
    assert row_of(found, "breed", "Tabby") == ["breed", "Tabby", "Siamese", "1", "25.0"]
    assert row_of(found, "SEED") == ["SEED", "7", "42"]  # 64 is the default of BATCH_SIZE
    assert not [row for row in found.rows if row[0] == "BATCH_SIZE"]
    assert row_of(found, "2", "3")[2:6] == ["1.25", "1.5", "62.5", "0.0001"]
    assert row_of(found, "cat")[1] == "a.png: <b>cut</b>"
    assert "2 steps were skipped" in text and "200 images/s" in text
    assert page.index("65.4") < page.index("<svg") < page.index("<details>")
    assert page.count("<svg") == 3 + 1 + 2  # curves, confusion matrix, confidence
    for name in ("curves.png", "confidence.png"):
        with Image.open(tmp_path / "cat" / name) as drawn:
            assert drawn.format == "PNG" and drawn.width > 500


def test_a_run_of_stage_1_calls_itself_stage_1(tmp_path, stage1_run):
    folder = shutil.copytree(stage1_run.folder, tmp_path / "run")
    run = folders.read_run(folder)
    assert run.settings["PHASE_STAGES"]  # as stage 2 has: it tells nothing
    for text in (run.settings_text, ""):  # with the script's name, and by its files alone
        (folder / "settings.toml").write_text(text)
        found, page = read(write_run_report(folder))
        assert "Stage 1: species" in found.texts and "Stage 2" not in page
        names, counts = run.heads()[0]["matrix"]
        recall = counts[0, 0] / counts[0].sum() * 100
        assert row_of(found, names[0])[:3] == [names[0], f"{counts[0].sum()}", f"{recall:.1f}"]
    assert (folder / "curves.png").is_file()


def test_unfinished_broken_and_empty_folders_have_a_page(tmp_path):
    run = make_run(tmp_path / "run", finished=False)
    assert "Not finished (stopped, 3 epochs)" in read(write_run_report(run))[1]
    (run / "final.json").write_text("[" * 100_000)
    (run / "settings.toml").write_text("= broken")
    (run / "metrics.csv").write_bytes(b"\xff\xfe")
    (run / "errors.csv").write_bytes(b"\xff")
    problems = read(write_run_report(run))[1]
    for name in ("final.json", "settings.toml", "metrics.csv", "errors.csv"):
        assert f"{name} cannot be read" in problems
    for content in (None, "[1]", '{"num_images": NaN, "test": {"species": []}, "figures": 3}'):
        folder = tmp_path / f"evaluation {content and len(content)}"
        folder.mkdir()
        if content:
            (folder / "petface_eval_summary.json").write_text(content)
        read(write_evaluation_report(folder)[0])
        assert not (folder / "errors.html").exists()


def test_an_evaluation_shows_its_numbers(tmp_path):
    folder = make_evaluation(tmp_path / "evaluation")
    found, page = read(write_evaluation_report(folder)[0])
    text = " ".join(" ".join(found.texts).split())
    assert "species 91.9 % 95 %: 86.9 - 96.9 majority baseline 22.2 % 120 photos" in text
    assert "breed 57.6 % 95 %: 50.0 - 65.0 majority baseline 22.2 % 110 photos" in text
    cells = ["breed", "100", "61.6", "56.6 - 66.6", "22.2", "50.1", "57.6", "73.7"]
    assert row_of(found, "breed", "100", "61.6")[:8] == cells
    assert row_of(found, "breed", "train (seen in training)")[2:5] == ["100", "50", "61.6"]
    assert row_of(found, "breed", "all")[2:6] == ["100", "0.6789", "48.5", "92.9"]
    assert row_of(found, "breed", "cat", "Tabby")[3:] == ["Siamese", "17", "46.5"]
    assert row_of(found, "breed", "2")[2:] == ["30", "65.0", "84.8"]
    assert row_of(found, "cat", "44") == ["cat", "44", "9.1"]
    assert "7.1" in row_of(found, "breed", "49.1") and "35.4" in row_of(found, "breed", "49.1")
    assert "<img" not in page


def test_an_error_analysis_is_a_page_of_its_own(tmp_path):
    folder = make_evaluation(tmp_path / "evaluation")
    assert report.write_report(folder) == [folder / "report.html", folder / "errors.html"]
    assert "./errors.html" in read(folder / "report.html")[0].links
    found, _ = read(folder / "errors.html")
    image = "cat/000000/00.png"
    cells = ["breed", image, "Tabby", "Siamese", "93.9", "1.0", "3"]
    assert row_of(found, "breed", image) == cells
    assert row_of(found, "breed", "shift: left 5 %")[2:4] == ["50.0", "-11.6"]
    cells = ["breed", "brightness", "Tabby", "20", "52.5", "40.0 - 60.0", "yes"]
    assert row_of(found, "breed", "brightness", "Tabby") == cells
    assert row_of(found, "cat", "7") and "-11.6 points: left 5 %" in found.texts
    assert not [link for link in found.links if link.startswith("data:image/jpeg")]  # unasked


@pytest.mark.parametrize("how", ["made up", "asked for", "neither", "gone"])
def test_photos_stand_first_where_they_may(tmp_path, how):
    folder = make_evaluation(tmp_path / "runs" / "evaluation", photos=tmp_path / "images")
    if how == "made up":
        (tmp_path / "demo.json").write_text('{"tool": "tools.make_demo_data"}')
    if how == "gone":
        shutil.rmtree(tmp_path / "images")
    report.write_report(folder, with_photos=how in ("asked for", "gone"))
    page = read(folder / "report.html")[1]
    if how in ("neither", "gone"):
        assert "<img" not in page
        assert ("No photos are shown" in page) == (how == "gone")
        return
    assert page.count("<img") == 4 + 1  # all that were answered of the test part, and the mistake
    assert "Siamese 90 %, is Tabby" in page and "secret" not in page
    assert page.index("<img") < page.index("91.9 %") < page.index("<svg") < page.index("<table")
    assert page.count("cannot be read</i>") == 1  # a name that leads out of the folder
    assert read(folder / "errors.html")[1].count("<img") > 2


def hostile_pages(root: Path) -> list[Path]:
    make_run(root / "run", names=HOSTILE)
    make_evaluation(root / "evaluation", HOSTILE)
    written = [path for name in ("run", "evaluation") for path in report.write_report(root / name)]
    (root / "compare.html").write_text(
        comparison_page([make_comparison(HOSTILE)]), encoding="utf-8"
    )
    return [*written, root / "compare.html", write_index(root)]


def test_hostile_names_stay_text(tmp_path):
    for path in hostile_pages(tmp_path):
        found, page = read(path)
        assert "<script>alert" not in page and "\u202e" not in page and "://" not in page
    texts = " ".join(read(tmp_path / "evaluation" / "report.html")[0].texts)
    for shown in ("<script>alert(1)</script>", "=cmd|' /C calc'!A0", r"\u202eevil\u202c",
                  r"two\nlines", 'quote"s & <b>', r"$x^2$ $\frac{1}{0}$", "\U0001f63a cat",
                  "&amp;"):  # fmt: skip
        assert shown in texts


def test_the_index_groups_marks_and_links(tmp_path):
    make_run(tmp_path / "old" / "cat")
    better = make_run(tmp_path / "new" / "cat", accuracy=0.75)
    make_run(tmp_path / "new" / "dog <b> #1? %41", finished=False)
    (make_run(tmp_path / "broken") / "final.json").write_text("{")
    make_run(tmp_path / ".hidden" / "run")
    make_evaluation(tmp_path / "evaluation")
    (tmp_path / "loop").symlink_to(tmp_path)
    for folder in folders.find_folders(tmp_path):
        report.write_report(folder)
    with (better.parent / "dog <b> #1? %41" / "run.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found, page = read(write_index(tmp_path))
    links = [tmp_path / unquote(link) for link in found.links]
    assert len(links) == 5 and all(path.is_file() for path in links)
    assert page.index("Evaluations") < page.index("Stage 2: attributes")
    text = " ".join(" ".join(found.texts).split())
    assert "evaluations 1 training runs 4 running 1 stopped or damaged 1" in text
    rows = {row[0]: " | ".join(row) for row in found.rows}
    assert "breed\xa075.0\xa0★\xa0best" in rows["new/cat"] and "best" not in rows["old/cat"]
    assert "38.0 - 85.4 | 12.3" in rows["old/cat"] and "finished" in rows["old/cat"]
    assert "● running, 3 epochs" in rows["new/dog <b> #1? %41"]
    assert "final.json cannot be read" in rows["broken"]
    assert "species\xa091.9" in rows["evaluation"] and "breed 57.6" in rows["evaluation"]


def test_one_strange_folder_does_not_cost_the_others(tmp_path, monkeypatch):
    make_run(tmp_path / "a")
    (make_run(tmp_path / "b") / "report.html").mkdir()  # cannot be replaced by a file
    written, failures = report.write_reports([tmp_path])
    assert written == [tmp_path / "a" / "report.html"]
    assert len(failures) == 1 and str(tmp_path / "b") in failures[0]
    assert report.report_line(tmp_path / "b").startswith("report: not written, ")
    monkeypatch.setattr(folders, "read_run", lambda _: 1 / 0)
    assert read(write_index(tmp_path))[1].count("ZeroDivisionError") == 2


def test_a_report_that_is_missing_is_written_late(tmp_path):
    folder = make_run(tmp_path / "run", finished=False)
    assert report.late_report(folder) == ""
    (folder / "final.json").write_text("{}")
    line = f"\nreport: {folder / 'report.html'}\n"
    assert report.late_report(folder) == line and report.late_report(folder) == ""


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_without_an_extra_a_line_says_what_to_install(tmp_path, missing):
    make_run(tmp_path / "run")
    code = (
        f"import sys; sys.modules[{missing!r}] = None; from pathlib import Path;"
        f"from petface import report; print(report.report_line(Path({str(tmp_path / 'run')!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1 and 'pip install ".[report]"' in done.stdout
    assert missing in done.stdout and not (tmp_path / "run" / "report.html").exists()
