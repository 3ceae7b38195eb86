"""Exports that were stopped, damaged or moved: refused by name, nothing half is taken for whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from petface.inference import onnx_models
from petface.models.checkpoints import CheckpointError
from tests import scripts
from tests.made_bundle import made_bundle, write_checkpoints


@pytest.mark.slow
def test_an_export_that_is_killed_leaves_no_bundle(tree, tmp_path, script) -> None:
    """Killed where the second model begins; the next start makes it whole."""
    stage1, stage2 = write_checkpoints(tmp_path / "runs")
    out = tmp_path / "bundle"
    models = ["--stage1-checkpoint", stage1, "--stage2-folder", stage2]
    arguments = [*tree.flags, *models, "--out", out]
    kill = scripts.KillBeforeCall("petface.export.bundle", "export_model", 2)
    done = script("tools/export.py", arguments, kill)
    assert done.code == -9
    left = tmp_path / "bundle.unfinished"
    assert not out.exists() and (left / "stage1.onnx").is_file() and not onnx_models.is_bundle(left)
    assert script("tools/export.py", arguments).code == 0
    assert not left.exists() and onnx_models.find(out, "cat") is not None


@pytest.mark.parametrize(
    "name", ["stage1.onnx", "stage1.json", "stage2/cat.onnx", "stage2/cat.json"]
)
def test_every_file_of_a_bundle_is_checked(tree, tmp_path: Path, name: str) -> None:
    bundle = shutil.copytree(made_bundle(tree)[1], tmp_path / "bundle")
    species = "cat" if "cat" in name else None
    path = onnx_models.find(bundle, species)
    assert path is not None and onnx_models.read(path, species)
    whole = (bundle / name).read_bytes()
    for damaged in (whole[:-1], whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:], b""):
        (bundle / name).write_bytes(damaged)
        with pytest.raises(CheckpointError, match="checksum is not the one in .*bundle.json"):
            onnx_models.read(path, species)
    (bundle / name).unlink()
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        onnx_models.read(path, species)
