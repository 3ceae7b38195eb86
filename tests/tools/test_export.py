"""tools.export as a user runs it."""

from __future__ import annotations

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


EXPORT = "tools/export.py"


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


def test_forcing_without_int8_is_refused(tree, runs, tmp_path, script) -> None:
    done = script(EXPORT, [*flags(tree, runs, tmp_path / "b"), "--force-int8"])
    assert done.code == 1 and "--force-int8 needs --precision int8" in done.err


def test_a_checkpoint_that_cannot_be_used_leaves_nothing(tree, runs, tmp_path, script) -> None:
    arguments = flags(tree, runs, tmp_path / "bundle")
    done = script(EXPORT, [*arguments, "--stage1-checkpoint", runs / "no.pt"])
    assert done.code == 1 and "no.pt: no such file" in done.err
    assert not any("bundle" in name for name in os.listdir(tmp_path))
