"""The pages: right numbers, escaped texts, nothing from outside, whatever a folder holds."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image

from petface import report
from petface.report import folders
from petface.report.tool_pages import write_comparison, write_index
from tests.report.made_folders import HOSTILE, make_comparison, make_evaluation, make_run
from tests.report.page_checks import check_page


def read(path: Path):
    """The checked page: what was read in it, its text on one line, and its source."""
    page = path.read_text(encoding="utf-8")
    found = check_page(page)
    return found, " ".join(" ".join(found.texts).split()), page


def rows_of(found) -> list[str]:
    return [" | ".join(row) for row in found.rows]


def test_a_run_of_stage_2_shows_its_numbers(tmp_path):
    found, text, page = read(report.write_report(make_run(tmp_path / "demo" / "cat")))
    for words in (
        "Stage 2: attributes demo/cat stage2_resnet_multi.py · started 2026-11-24 11:22 · finished",
        "breed 65.4 % 95 %: 33.8 - 89.3 (by photo) majority baseline 12.3 %",
        "12 photos, too few to rely on training time 90 s 3 epochs 200 images/s",
        "2 steps were skipped",
    ):
        assert words in text
    rows = rows_of(found)
    for row in (
        "breed | 12 | 65.4 | 33.8 - 89.3 | 12.3 | 43.2",
        "breed | Tabby | Siamese | 1 | 25.0",
        "breed | 12 | 1.25 | 0.777 | 0.2468 | 0.1357 | 50.0 | 91.9",
        "SEED | 7 | 42",
        "2 | 3 | 1.25 | 1.5 | 62.5 | 0.0001 | 30",
        "cat | a.png: <b>cut</b>",
    ):
        assert row in rows
    assert not [row for row in rows if row.startswith("BATCH_SIZE")]  # 128 is the default
    assert page.index("65.4") < page.index("<svg") < page.index("<details>")
    assert page.count("<svg") == 3 + 1 + 2  # curves, confusion matrix, confidence
    for name in ("curves.png", "confidence.png"):
        with Image.open(tmp_path / "demo" / "cat" / name) as drawn:
            assert drawn.format == "PNG" and drawn.width > 500


def test_a_run_of_stage_1_calls_itself_stage_1(tmp_path, stage1_run):
    folder = shutil.copytree(stage1_run.folder, tmp_path / "run")
    settings = folder / "settings.toml"  # the script may lie anywhere
    settings.write_text(settings.read_text().replace("of a run of ", "of a run of /my scripts/"))
    run = folders.read_run(folder)
    assert run.settings["PHASE_STAGES"]  # as stage 2 has: it tells nothing
    found, text, page = read(report.write_report(folder))
    assert "Stage 1: species" in text and "Stage 2" not in page
    assert "First batch" not in text  # these photos are not ours
    assert "First batch" in read(report.write_report(folder, with_photos=True))[1]
    names, counts = run.heads()[0]["matrix"]
    assert "weight, last epoch" in text
    recall = counts[0, 0] / counts[0].sum() * 100
    assert any(row.startswith(f"{names[0]} | {counts[0].sum()} | {recall:.1f}")
               for row in rows_of(found))  # fmt: skip
    header = next(row for row in found.rows if "recall, last epoch, %" in row)
    assert header[0] == "species" and "sampling weight, first epoch" in header


def test_unfinished_broken_and_empty_folders_have_a_page(tmp_path):
    run = make_run(tmp_path / "run", finished=False)
    assert "Not finished (stopped, 3 epochs)" in read(report.write_report(run))[1]
    (run / "final.json").write_text("[" * 100_000)
    (run / "settings.toml").write_text("= broken")
    (run / "metrics.csv").write_bytes(b"\xff\xfe")
    (run / "errors.csv").write_bytes(b"\xff")
    problems = read(report.write_report(run))[1]
    for name in ("final.json", "settings.toml", "metrics.csv", "errors.csv"):
        assert f"{name} cannot be read" in problems
    for number, content in enumerate(("[1]", '{"test": {"species": []}, "figures": 3}', "{}")):
        folder = tmp_path / f"evaluation {number}"
        folder.mkdir()
        (folder / "petface_eval_summary.json").write_text(content)
        (folder / "petface_eval_per_image.csv").touch()
        assert "Not finished" in read(report.write_report(folder))[1] or number == 1


def test_an_evaluation_shows_its_numbers(tmp_path):
    found, text, page = read(report.write_report(make_evaluation(tmp_path / "evaluation")))
    assert "species 91.9 % 95 %: 86.9 - 96.9 majority baseline 22.2 % 120 photos" in text
    assert "breed 57.6 % 95 %: 50.0 - 65.0 majority baseline 22.2 % 110 photos" in text
    rows = rows_of(found)
    for row in (
        "breed | 100 | 61.6 | 56.6 - 66.6 | 22.2 | 50.1 | 57.6 | 73.7",
        "breed | train | 100 | 50 | 61.6 | 56.6 - 66.6 | 22.2 | 50.1",
        "species | dog | 60 | 30 | 82.8 | 77.8 - 87.8 | 22.2 | 50.1",
        "breed | all | 100 | 0.6789 | 48.5 | 92.9 | 90.0",
        "breed | cat | Tabby | Siamese | 17 | 46.5",
        "breed | 30 | 65.0 | 73.7 | +8.7 | +1.0 to +15.0",
        "breed | 49.1 | 93.2 | 97.2 | 0.3141 | 0.031",
        "unreadable | 4",
        # the error analysis beside it
        "breed | cat/000000/00.png | Tabby | Siamese | 93.9 | 1.0 | 3",
        "breed | shift: left 5 % | 50.0 | -11.6 | -20.0 to -5.0 | 70.0",
        "breed | brightness | Tabby | 20 | 52.5 | 40.0 - 60.0 | yes",
        "cat | 7 | breed | Tabby | Siamese | 0.0107 | 0.8484 | cat/7/0.png",
        "cat | breed | 77 | 71.7",
    ):
        assert row in rows
    assert "<img" not in page


@pytest.mark.parametrize("how", ["made up", "asked for", "neither", "gone"])
def test_photos_stand_first_where_they_may(tmp_path, how):
    folder = make_evaluation(tmp_path / "runs" / "evaluation", photos=tmp_path / "images")
    if how == "made up":
        (tmp_path / "demo.json").write_text('{"tool": "tools.make_demo_data"}')
    if how == "gone":
        shutil.rmtree(tmp_path / "images")
    with_photos = how in ("asked for", "gone")
    _, text, page = read(report.write_report(folder, with_photos=with_photos))
    assert ("No photos are shown" in page) == (how == "gone")
    if how in ("neither", "gone"):
        assert "<img" not in page
        return
    # all that were answered of the test split, the mistake, and a Grad-CAM picture
    assert page.count("<img") == 4 + 1 + 1
    assert "Siamese 90 %, is Tabby" in page and "secret" not in page
    assert page.index("<img") < page.index("91.9 %") < page.index("<svg") < page.index("<table")
    # a name that leads out of the folder, and the two likely wrong labels
    assert page.count("cannot be read</i>") == 1 + 2


def test_hostile_names_stay_text(tmp_path):
    pages = [
        report.write_report(make_evaluation(tmp_path / "evaluation", HOSTILE)),
        report.write_report(make_run(tmp_path / "run", names=HOSTILE)),
        tmp_path / "compare.html",
        write_index(tmp_path),
    ]
    write_comparison(pages[2], make_comparison(HOSTILE))
    for path in pages:
        _, _, page = read(path)
        assert "<script>alert" not in page and "\u202e" not in page and "://" not in page
    texts = " ".join(read(pages[0])[0].texts)
    for name in HOSTILE:
        assert name.replace("\u202e", r"\u202e").replace("\u202c", r"\u202c").replace(
            "\n", r"\n") in texts  # fmt: skip


def test_the_index_groups_marks_and_links(tmp_path):
    make_run(tmp_path / "old" / "cat")
    better = make_run(tmp_path / "new" / "cat", accuracy=0.75)
    running = make_run(tmp_path / "new" / "dog <b> #1? %41", finished=False)
    (make_run(tmp_path / "broken") / "final.json").write_text("{")
    make_run(tmp_path / ".hidden" / "run")
    make_evaluation(tmp_path / "evaluation")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert len(report.write_reports([tmp_path])[0]) == 5
    with (running / "run.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found, text, page = read(write_index(tmp_path))
    links = [tmp_path / unquote(link) for link in found.links]
    assert len(links) == 5 and better / "report.html" in links
    assert all(path.is_file() for path in links)
    assert page.index("Evaluations") < page.index("Stage 2: attributes")
    assert "evaluations 1 training runs 4 running 1 stopped or damaged 1" in text
    rows = {row[0]: " | ".join(row) for row in found.rows}
    assert list(rows)[2:] == ["new/dog <b> #1? %41", "broken", "new/cat", "old/cat"]
    assert "breed\xa075.0\xa0★\xa0best" in rows["new/cat"] and "best" not in rows["old/cat"]
    assert "33.8 - 89.3 | 12.3" in rows["old/cat"] and "finished" in rows["old/cat"]
    assert "● running, 3 epochs" in rows["new/dog <b> #1? %41"]
    assert "final.json cannot be read" in rows["broken"]
    assert "species\xa091.9" in rows["evaluation"] and "breed\xa057.6" in rows["evaluation"]


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


def test_a_summary_of_an_earlier_version_says_so(tmp_path):
    folder = make_evaluation(tmp_path / "evaluation")
    (folder / "petface_eval_summary.json").write_text(json.dumps({"num_images": 3}))
    assert "Made by an earlier version" in read(report.write_report(folder))[1]
