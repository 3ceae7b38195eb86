"""The report pages: right figures, escaped texts, nothing from outside, any folder."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys

import pytest
from PIL import Image

from petface.report.report_evaluation import write_evaluation_report
from petface.report.report_run import write_run_report
from petface.report.run_files import defaults_of
from tests.report.made_folders import HOSTILE, make_evaluation, make_run
from tests.report.page_checks import check_page


def read(path):
    return check_page(path.read_text(encoding="utf-8"))


def row_of(found, first, cells):
    """The row of `cells` columns that begins with a text."""
    (row,) = [row for row in found.rows if row and row[0] == first and len(row) == cells]
    return row


def test_a_run_page_shows_the_figures_of_its_files(tmp_path):
    path = write_run_report(make_run(tmp_path / "cat"))
    assert path == tmp_path / "cat" / "report.html"
    found = read(path)
    assert row_of(found, "breed", 5) == ["breed", "12", "65.4 %", "43.2 %", "12.3 %"]
    # recall 3 of 4, each class answered 4 times: see made_folders
    assert row_of(found, "Siamese", 5) == ["Siamese", "75.0 %", "4", "3", "4"]
    assert row_of(found, "breed", 9)[1:7] == ["1.25", "0.247", "0.136", "0.777", "50.0 %", "91.9 %"]
    assert ["test false alarms", "4.7 %"] in found.rows
    assert ["missed strangers noise", "12.1 %"] in found.rows and ["num test", "40"] in found.rows
    words = " ".join(found.texts)
    assert "90 s" in words and "demo/cat" in words and "2026-11-24 11:22" in words
    assert "200" in found.texts and "2 steps were skipped" in words  # the median of the speeds
    assert "too few" in words  # 12 photos
    assert [row for row in found.rows if row[:1] == ["SEED"]] == [["SEED", "7", "42"]]
    assert not [row for row in found.rows if row[:1] == ["BATCH_SIZE"]]  # as in the script


def test_defaults_are_those_that_a_script_has():
    import stage2_resnet_multi as script

    found = defaults_of("stage2_resnet_multi.py")
    assert len(found) > 30
    for name, value in found.items():
        real = getattr(script, name)
        assert value == (list(real) if isinstance(real, tuple) else real), name
    assert defaults_of("../../etc/passwd") == {} and defaults_of("gone.py") == {}


def test_an_unfinished_run_says_so_and_a_strange_folder_has_no_report(tmp_path):
    found = read(write_run_report(make_run(tmp_path / "cat", finished=False)))
    words = " ".join(found.texts)
    assert "Not finished: 3 epochs so far" in words and "Test part" not in words
    (tmp_path / "empty").mkdir()
    assert write_run_report(tmp_path / "empty") is None
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "run.lock").write_text("process 1")
    words = " ".join(read(write_run_report(tmp_path / "begun")).texts)
    assert "no epoch has ended yet" in words


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", '{"test_breed_accuracy": "<b>"}', "\x00\xff", '{"calibration": 3}']
)
def test_a_broken_final_json_or_table_never_costs_the_page(tmp_path, content):
    folder = make_run(tmp_path / "cat")
    (folder / "final.json").write_bytes(content.encode("latin-1"))
    (folder / "metrics.csv").write_bytes(b'epoch,loss\n"1,\xff')
    (folder / "environment.json").write_text("null")
    (folder / "settings.toml").write_text("LR = ")
    words = " ".join(read(write_run_report(folder)).texts)
    assert "metrics.csv cannot be read" in words and "settings.toml cannot be read" in words
    if not content.startswith('{"'):
        assert "final.json cannot be read" in words


def test_an_evaluation_page_shows_the_figures_of_the_summary(tmp_path):
    found = read(write_evaluation_report(make_evaluation(tmp_path / "evaluation")))
    assert row_of(found, "species", 13) == [
        "species", "120", "-", "91.9 %", "86.9 - 96.9", "-", "96.6 %", "81.8 %", "49.1 %",
        "93.2 %", "97.2 %", "0.314", "39.4 %",
    ]  # fmt: skip
    assert row_of(found, "breed", 13)[3:8] == [
        "61.6 %",
        "56.6 - 66.6",
        "57.6 %",
        "73.7 %",
        "41.4 %",
    ]
    words = " ".join(found.texts)
    assert "57.6 / 35.4 / 7.1 %" in words  # right, lost in stage 2, lost in stage 1
    assert "NOT accuracy on unseen" in words
    assert ["breed", "train (seen)", "100", "61.6 %", "57.6 %", "50.1 %"] in found.rows
    assert ["breed", "2", "30", "65.0 %", "84.8 %"] in found.rows
    assert ["breed", "any", "50", "61.6 %", "73.7 %"] in found.rows
    assert row_of(found, "breed", 9) == [
        "breed", "100", "0.679", "90.0 %", "48.5 %", "92.9 %", "91.2 %", "90.0 %", "2.7"
    ]  # fmt: skip
    assert "48.5 % of 100 photos count as sure (confidence at least 0.679), and 92.9 %" in words
    assert ["cat", "Tabby", "Siamese", "17", "46.5 %"] in found.rows
    assert ["cat", "Siamese", "9", "11.1 %", "17.2 %"] in found.rows
    assert ["cat/1/0.png", "Tabby", "Siamese", "93.9 %", "1.0 %", "3"] in found.rows
    assert "-11.6 (-20.0 to -5.0)" in words and "3 of 40 groups stand out" in words
    assert "25.3 % of the maps" in words
    assert ["unreadable", "4"] in found.rows and ["fingerprint", "f00d"] in found.rows
    assert ["all", "44", "9.1 %"] in found.rows
    assert "the truth is among the five best in: species 83.8 %, breed 83.8 %" in words
    assert ["cat/7/0.png", "breed", "Tabby", "Siamese", "1.1 %", "84.8 %"] in found.rows
    assert ["cat breed", "77", "71.7 %", "35.4 %", "13", "5"] in found.rows
    assert "63.6 % of the first" in words


def test_photos_stand_in_a_page_only_on_request(tmp_path):
    folder = make_evaluation(tmp_path / "evaluation")
    (tmp_path / "images/cat/1").mkdir(parents=True)
    Image.new("RGB", (50, 50), "blue").save(tmp_path / "images/cat/1/0.png")
    (folder / "analysis/photos").mkdir()
    Image.new("RGB", (50, 50), "blue").save(folder / "analysis/photos/sheet.png")
    without = read(write_evaluation_report(folder))
    assert without.tags.count("img") == 1  # the mean maps
    shown = read(write_evaluation_report(folder, with_photos=True, images_root=tmp_path / "images"))
    assert shown.tags.count("img") == 3  # and the photo of a mistake, and the sheet
    assert "cannot be read" in " ".join(shown.texts)  # the second mistake's photo is not there
    lost = read(write_evaluation_report(folder, with_photos=True, images_root=tmp_path / "none"))
    assert lost.tags.count("img") == 1 and "no photos are shown" in " ".join(lost.texts)


def test_a_photo_outside_the_folder_is_not_opened(tmp_path):
    folder = make_evaluation(tmp_path / "evaluation")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (50, 50), "blue").save(tmp_path / "secret.png")
    path = folder / "analysis/analysis.json"
    analysis = json.loads(path.read_text())
    names = ["../secret.png", str(tmp_path / "secret.png"), "a\0b", "x" * 5000]
    analysis["mistakes"] = {"breed": [{"image": name} for name in names]}
    path.write_text(json.dumps(analysis))
    found = read(write_evaluation_report(folder, with_photos=True, images_root=tmp_path / "images"))
    assert not [link for link in found.links if link.startswith("data:image/jpeg")]


@pytest.mark.parametrize("is_run", [True, False])
def test_hostile_labels_are_text_and_nothing_else(tmp_path, is_run):
    if is_run:
        path = write_run_report(make_run(tmp_path / "cat", names=HOSTILE))
    else:
        path = write_evaluation_report(make_evaluation(tmp_path / "evaluation", HOSTILE))
    page = path.read_text(encoding="utf-8")
    found = check_page(page)
    words = "\n".join(found.texts)
    assert "<script>alert(1)</script>" in words and "$x^2$ $\\frac{1}{0}$" in words
    assert "=cmd|' /C calc'!A0" in words and "\\u202eevil" in words and "two\\nlines" in words
    assert "\u202e" not in page and "<b>" not in page.partition("<main>")[2].replace(
        "<dt><b>", ""
    ).replace("<b><bdi>", "").replace("<b><bdi", "")


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "[]",
        "{}",
        '{"test": 3, "figures": {"test": []}}',
        '{"confidence": {"breed": [1]}, "test": {"species": {"num": "x"}}}',
        '{"top_confusions": {"breed": ["x", {}]}, "num_images": null}',
    ],
)
def test_an_evaluation_with_holes_still_has_a_page(tmp_path, content):
    folder = make_evaluation(tmp_path / "evaluation")
    path = folder / "petface_eval_summary.json"
    path.unlink() if content is None else path.write_text(content)
    (folder / "analysis/analysis.json").write_text(
        '{"probes": 3, "mistakes": [], "slices": {"a": 1}}'
    )
    words = " ".join(read(write_evaluation_report(folder)).texts)
    assert ("Not finished" in words) == (content in (None, "", "[]"))


def test_an_earlier_summary_says_what_is_missing(tmp_path):
    folder = make_evaluation(tmp_path / "evaluation")
    path = folder / "petface_eval_summary.json"
    summary = json.loads(path.read_text())
    kept = {k: summary[k] for k in ("num_images", "status_counts", "splits", "test")}
    path.write_text(json.dumps(kept))
    found = read(write_evaluation_report(folder))
    assert " ".join(found.texts).count("run evaluate --force") >= 4
    assert row_of(found, "species", 13)[3:5] == ["91.9 %", "87.9 - 94.9"]


def test_four_hundred_classes_and_thirteen_specialists_stay_below_3_mb(tmp_path):
    names = [f"A breed of a rather long name {k:03d}" for k in range(400)]
    path = write_run_report(make_run(tmp_path / "cat", names=names))
    assert path.stat().st_size < 400_000
    found = read(path)
    assert "400" in " ".join(found.texts) or len(found.rows) > 400
    folder = make_evaluation(tmp_path / "evaluation", names[:20])
    from tests.report.made_folders import make_summary, write_table

    summary = make_summary(names[:20])
    curve = dict(summary["confidence"]["breed"]["all"])
    curve["curve"] = [[k / 100, 0.5, 0.5] for k in range(1, 101)]
    curve["reliability"] = curve["raw_reliability"] = [
        [k / 15, 0.5, 9, 0.4, 0.6] for k in range(15)
    ]
    heads = ("breed", "color1", "color2", "gender")
    summary["confidence"] = {h: {f"species{k}": curve for k in range(13)} for h in heads}
    (folder / "petface_eval_summary.json").write_text(json.dumps(summary))
    for head in heads:
        for k in range(13):
            full = [[1 + (i * j) % 7 for j in range(60)] for i in range(60)]
            write_table(folder / f"confusion/test_{head}_species{k}.csv", names[:60], full)
    path = write_evaluation_report(folder)
    assert path.stat().st_size < 3_000_000
    assert "more tables lie in" in " ".join(read(path).texts)


def test_the_pages_need_no_matplotlib(tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert read(write_run_report(make_run(tmp_path / "cat"))).tags.count("svg") >= 5
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from petface.report import report_index; "
         "assert not {'matplotlib', 'torchvision'} & set(sys.modules)"],
        check=False,
    )  # fmt: skip
    assert done.returncode == 0
