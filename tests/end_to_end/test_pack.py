"""With a pack the real scripts give what they give without one, bit for bit."""

from __future__ import annotations

import pytest

from tests import scripts
from tests.conftest import TINY_STAGE1
from tests.sameness import assert_same

PACK_TOOL = "tools/pack_images.py"


@pytest.fixture(scope="module")
def pack(tree, tmp_path_factory):
    """A pack of the tiny tree, made by the tool in two processes, stopped once by a kill."""
    folder = tmp_path_factory.mktemp("pack")
    path = folder / "tiny.bin"
    flags = ["--images-root", tree.images, "--image-size-px", 32, "--num-workers", 2]
    flags += ["--out", path]
    killed = scripts.run_forked(
        PACK_TOOL, flags, folder, scripts.kill_before_call("petface.data.pack", "_append", 3)
    )
    assert killed.code == -9 and not path.exists()
    done = scripts.run_forked(PACK_TOOL, flags, folder).checked()
    assert done.figures()["unreadable"] == "3"
    scripts.run_forked(PACK_TOOL, [*flags, "--check"], folder).checked()
    again = scripts.run_forked(PACK_TOOL, flags, folder)
    assert again.code == 1 and "already exists" in again.err
    assert sorted(p.name for p in folder.iterdir()) == ["stderr.txt", "stdout.txt", "tiny.bin"]
    return path


def test_stage_1_learns_the_same(tree, stage1_run, pack, script, tmp_path):
    flags = [*tree.flags, *TINY_STAGE1, "--runs-root", tmp_path, "--run-name", "packed"]
    script(scripts.STAGE1, [*flags, "--pack", pack]).checked()
    assert_same(stage1_run.folder, tmp_path / "packed")


def test_a_specialist_learns_the_same(stage2_run, stage2_flags, pack, script, tmp_path):
    flags = [*stage2_flags, "--runs-root", tmp_path, "--run-name", "packed", "--species", "cat"]
    script(scripts.STAGE2, [*flags, "--pack", pack]).checked()
    assert_same(stage2_run.folder / "cat", tmp_path / "packed" / "cat")


def test_the_evaluation_writes_the_same_bytes(
    evaluation_run, evaluation_flags, pack, script, tmp_path
):
    out = tmp_path / "packed"
    script(scripts.INFERENCE, [*evaluation_flags, "--out-dir", out, "--pack", pack]).checked()
    assert_same(evaluation_run.folder, out)
