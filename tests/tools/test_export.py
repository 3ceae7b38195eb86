"""tools.export and tools.bench_export as a user runs them."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from petface.inference import onnx_models as exported
from tests.made_bundle import write_checkpoints


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_checkpoints(folder)
    return folder


def flags(tree, runs: Path, out: Path) -> list[object]:
    return [*tree.flags, "--stage1-checkpoint", runs / "stage1/best.pt",
            "--stage2-folder", runs / "stage2", "--out", out]  # fmt: skip


EXPORT, BENCH = "tools/export.py", "tools/bench_export.py"


@pytest.mark.slow
def test_an_export_and_its_comparison(tree, runs, tmp_path, script) -> None:
    out = tmp_path / "bundle"
    done = script(EXPORT, flags(tree, runs, out))
    assert done.code == 0, done.err
    assert "no specialist in" in done.out and "chimp, dog, yak" in done.out
    assert done.figures()["models"] == "2" and done.figures()["int8"] == "0"
    listed = json.loads((out / "bundle.json").read_text())["files"]
    there = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert there == {*listed, "bundle.json"} and "float" not in {p.name for p in out.iterdir()}
    assert exported.read(out / "stage2/cat.onnx", "cat").species == "cat"
    again = script(EXPORT, flags(tree, runs, out))
    assert again.code == 1 and "a finished bundle; --force replaces it" in again.err

    table = tmp_path / "table.csv"
    arguments = [*flags(tree, runs, table), "--bundle", out, "--num-rate", 4, "--rounds", 1]
    done = script(BENCH, arguments)
    assert done.code == 0, done.err
    with table.open() as handle:
        rows = list(csv.DictReader(handle))
    assert [(row["model"], row["head"], row["engine"]) for row in rows] == [
        (model, head, engine)
        for model, heads in (("stage1", ["species"]), ("cat", ["breed", "gender"]))
        for engine in ("torch", "onnxruntime")
        for head in heads
    ]
    assert {row["equal_answers"] for row in rows} == {"1.0000"}
    assert {row["max_logit_difference"] for row in rows if row["engine"] == "torch"} == {"0"}
    accuracy = {(row["model"], row["head"], row["engine"]): row["accuracy"] for row in rows}
    for model, head, engine in accuracy:
        assert accuracy[model, head, engine] == accuracy[model, head, "torch"] != ""


def test_a_bundle_that_is_none_is_named(tree, runs, tmp_path, script) -> None:
    done = script(BENCH, [*flags(tree, runs, tmp_path / "t.csv"), "--bundle", tmp_path])
    assert done.code == 1 and "is no bundle; make it with python -m tools.export" in done.err
    done = script(EXPORT, [*flags(tree, runs, tmp_path / "b"), "--force-int8"])
    assert done.code == 1 and "--force-int8 needs --precision int8" in done.err


def test_a_checkpoint_that_cannot_be_used_leaves_nothing(tree, runs, tmp_path, script) -> None:
    arguments = flags(tree, runs, tmp_path / "bundle")
    done = script(EXPORT, [*arguments, "--stage1-checkpoint", runs / "no.pt"])
    assert done.code == 1 and "no.pt: no such file" in done.err
    assert not any("bundle" in name for name in os.listdir(tmp_path))
