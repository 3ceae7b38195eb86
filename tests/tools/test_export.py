"""tools.export as a user runs it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from petface.inference import onnx_models
from tests import scripts
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


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--force-int8"], "--force-int8 needs --precision int8"),
        (["--stage1-checkpoint", "no.pt"], "no.pt: no such file"),
    ],
)
def test_what_cannot_be_exported_leaves_nothing(tree, runs, tmp_path, script, more, words) -> None:
    done = script(EXPORT, [*flags(tree, runs, tmp_path / "bundle"), *more])
    assert done.code == 1 and words in done.err
    assert not any("bundle" in name for name in os.listdir(tmp_path))


def test_an_identity_network_is_exported_alone(tree, runs, tmp_path, script) -> None:
    alone = ["--stage1-checkpoint", "", "--precision", "int8", "--identity-checkpoint"]
    arguments = [*flags(tree, runs, tmp_path / "bundle"), *alone]
    for path, message in (("", "nothing to export"), (runs / "stage1/best.pt", "train_identity")):
        done = script(EXPORT, [*arguments, path])
        assert done.code == 1 and message in done.err
    done = script(EXPORT, [*arguments, runs / "identity/best.pt"])
    assert "embeddings (which stay in fp32) within" in done.out and "\nint8: 0\n" in done.out
    files = sorted(path.name for path in (tmp_path / "bundle").iterdir())
    assert files == ["bundle.json", "identity.json", "identity.onnx"]


@pytest.mark.slow
def test_an_export_that_is_killed_leaves_no_bundle(tree, runs, tmp_path, script) -> None:
    """Killed where the second model begins; the next start makes it whole."""
    arguments = flags(tree, runs, tmp_path / "bundle")
    kill = scripts.kill_before_call("petface.export.bundle", "export_model", 2)
    assert script(EXPORT, arguments, kill).code == -9
    left = tmp_path / "bundle.unfinished"
    assert not (tmp_path / "bundle").exists() and (left / "stage1.onnx").is_file()
    assert not onnx_models.is_bundle(left)
    assert script(EXPORT, arguments).code == 0
    assert not left.exists() and onnx_models.find(tmp_path / "bundle", "cat") is not None
