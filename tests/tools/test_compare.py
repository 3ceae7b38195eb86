"""The comparison as a user runs it: two evaluations, two training runs, and wrong folders."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from petface import files
from petface.analysis.compare_runs import NO_TEST, compare_runs, describe_runs
from petface.errors import UserError
from petface.report.compare_page import comparison_page
from tests.analysis.test_compare import make_evaluation, make_images
from tests.report.page_checks import check_page
from tools import compare

ROOT = Path(__file__).parent.parent.parent


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.compare", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def make_run(folder: Path, accuracy: float, stage2: bool = False, seed: int = 1) -> Path:
    final = {"epochs": 2, "test_images": 40, "test_accuracy": accuracy, "train_minutes": 1.5}
    final |= {"test_recall": {"cat": 0.5}, "checkpoint": "x.pt", "test_gender_accuracy": None}
    files.write_json(folder / "final.json", final)
    files.write_csv(
        folder / "metrics.csv",
        ("epoch", "train_loss", "val_accuracy_frac"),
        [(1, 2.0, accuracy / 2), (2, "nan", accuracy)],
    )
    epochs = "PHASE_EPOCHS = [1]\n" if stage2 else "EPOCHS = 2\n"
    (folder / "settings.toml").write_text(
        f'{epochs}SEED = {seed}\nRUN_NAME = "<{folder.name}>"\n', encoding="utf-8"
    )
    return folder


def test_two_evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_images(num_records=60)
    a = make_evaluation(tmp_path / "a", images, 0.4, 1)
    b = make_evaluation(tmp_path / "b", images, 0.9, 2)
    done = run(a, b, "--out", tmp_path / "out", "--resamples", 50, "--flips", 100)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == ["changed.csv", "compare.html", "compare.json"]
    comparison = json.loads((out / "compare.json").read_text(encoding="utf-8"))
    assert comparison["a"]["folder"] == str(a) and comparison["options"]["resamples"] == 50
    with (out / "changed.csv").open(encoding="utf-8", newline="") as handle:
        num = sum(1 for _ in csv.DictReader(handle))
    assert num == sum(n for h in comparison["changed"].values() for p in h.values()
                      for n in p.values()) > 10  # fmt: skip
    assert f"page: {out / 'compare.html'}\n" in done.stdout
    found = check_page((out / "compare.html").read_text(encoding="utf-8"))
    test = comparison["figures"]["test"]["species"]["conditional"]
    row = next(row for row in found.rows if row[0] == "species")
    right = f"{test['accuracy_a'] * 100:.1f}"
    assert row[1:4] == [str(test["num"]), str(test["num_records"]), right]
    assert f"{test['difference'] * 100:+.1f} points" in found.texts
    c = make_evaluation(tmp_path / "c", images, 0.6, 3)
    words = [a, b, c, "--out", tmp_path / "again", "--resamples", 50, "--flips", 100]
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, words)])
    compare.main()
    for name in ("changed.csv", "compare.json"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()
    second = json.loads((tmp_path / "again/compare_2.json").read_text(encoding="utf-8"))
    assert second["b"]["folder"] == str(c) and (tmp_path / "again/changed_2.csv").exists()
    assert str(c) in (tmp_path / "again/compare.html").read_text(encoding="utf-8")


def test_two_training_runs(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a", 0.5), make_run(tmp_path / "b", 0.75, seed=2)
    done = run(a, b, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "no paired test is possible" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 110
    found = json.loads((tmp_path / "out/compare.json").read_text(encoding="utf-8"))
    assert found["figures"] == {
        "test_images": {"a": 40, "b": 40, "difference": 0},
        "test_accuracy": {"a": 0.5, "b": 0.75, "difference": 0.25},
    }
    assert found["training"]["train_minutes"] == {"a": 1.5, "b": 1.5, "difference": 0.0}
    assert found["settings"] == {
        "SEED": {"a": 1, "b": 2},
        "RUN_NAME": {"a": "<a>", "b": "<b>"},
    }
    assert found["curves"]["val_accuracy_frac"] == {
        "a": [[1, 0.25], [2, 0.5]],
        "b": [[1, 0.375], [2, 0.75]],
    }
    assert found["curves"]["train_loss"]["a"] == [[1, 2.0]]
    page = (tmp_path / "out/compare.html").read_text(encoding="utf-8")
    assert "&lt;a&gt;" in page and "<a>" not in page


def test_runs_of_other_data_or_unfinished_ones_say_so(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a", 0.5), make_run(tmp_path / "b", 0.75)
    with (b / "settings.toml").open("a", encoding="utf-8") as handle:
        handle.write('IMAGES_ROOT = "elsewhere"\n')
    files.write_json(b / "final.json", {"test_images": 50, "test_accuracy": 0.75})
    notes = compare_runs(a, b)["notes"]
    assert notes[0] == NO_TEST
    assert "the data differ (IMAGES_ROOT): the figures are of other photos" in notes
    assert "the test parts differ: 40 images in A, 50 in B" in notes
    (b / "final.json").unlink()
    comparison = compare_runs(a, b)
    assert "B has not finished: it has no test figures yet" in comparison["notes"]
    assert comparison["figures"]["test_accuracy"] == {"a": 0.5, "b": None, "difference": None}
    assert "test_accuracy" in describe_runs(comparison) and "test part" in describe_runs(comparison)
    assert "accuracy" in comparison_page([comparison])


def test_runs_of_another_kind_or_damaged_ones_are_refused(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a", 0.5), make_run(tmp_path / "b", 0.75, stage2=True)
    with pytest.raises(UserError, match="a species classifier and .* is a specialist"):
        compare_runs(a, b)
    (b / "final.json").write_text("{")
    with pytest.raises(UserError, match="final.json: damaged"):
        compare_runs(a, b)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "give two folders to compare, not 0"),
        (("run",), "give two folders to compare, not 1"),
        (("run", "run"), "run and .*run are the same folder"),
        (("run", "link"), "are the same folder"),
        (("run", "nowhere"), "nowhere: there is no such folder"),
        (("run", "empty"), "empty is neither an evaluation .* evaluate"),
        (("run", "evaluation"), "is a training run and .* is an evaluation; compare two of"),
        (("evaluation", "old"), "old holds no petface_eval_details.npy; run: .*--force"),
    ],
)
def test_wrong_folders_are_named(
    names: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "run", 0.5)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    for name in ("evaluation", "old"):
        make_evaluation(tmp_path / name, make_images(num_records=3), 0.5, 1)
    (tmp_path / "old/petface_eval_details.npy").unlink()
    words = [*(str(tmp_path / name) for name in names), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["compare", *words])
    with pytest.raises(UserError, match=message):
        compare.main()
    assert not (tmp_path / "out").exists()
