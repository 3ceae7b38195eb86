"""What `make torture` has found, each as small as it can be."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from petface.data import splits
from petface.data.annotations import read_species
from petface.data.sources.readers import read_inat_json
from petface.errors import UserError
from petface.inference import onnx_models
from petface.models.checkpoints import CheckpointError
from petface.resumable import ResumableTable
from tests import scripts
from tests.conftest import TINY_STAGE1


def make_a_split(path: Path, die_at: int) -> None:
    """Write a split; die at the `die_at`-th file that gets its final name."""
    replace, calls = os.replace, []

    def dying(*names):
        calls.append(names)
        if len(calls) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*names)

    os.replace = dying
    records = np.array(["000000", "000001"])
    splits.write_splits(path, np.array(["cat", "cat"]), records, np.zeros(2, np.int8), seed=0)


@pytest.mark.parametrize("die_at", [1, 2])
def test_a_kill_while_the_split_is_made_leaves_nothing_behind(tmp_path, die_at):
    path, fork = tmp_path / "splits.csv", multiprocessing.get_context("fork")
    for number, code in ((die_at, -signal.SIGKILL), (0, 0)):
        process = fork.Process(target=make_a_split, args=(path, number))
        process.start()
        process.join(60)
        assert process.exitcode == code
        assert path.exists() == (code == 0)
    assert {entry.name for entry in tmp_path.iterdir()} == {"splits.csv", "splits.json"}


def test_what_was_killed_before_its_report_has_one_after_the_next_start(
    script, tree, stage1_run, stage2_flags, stage2_run, evaluation_flags, evaluation_run, tmp_path
):
    """The next start is refused, because everything is finished, and nobody else writes it."""
    copies = {"one": stage1_run.folder, "two": stage2_run.folder, "three": evaluation_run.folder}
    for name, folder in copies.items():
        shutil.copytree(folder, tmp_path / name, ignore=shutil.ignore_patterns("report.html"))
    stage1 = [*tree.flags, *TINY_STAGE1, "--runs-root", tmp_path, "--run-name", "one"]
    done = script(scripts.STAGE1, stage1)
    assert done.code == 1 and "holds a finished run" in done.err
    assert f"report: {tmp_path / 'one/report.html'}" in done.out
    stage2 = [*stage2_flags, "--runs-root", tmp_path, "--run-name", "two"]
    assert script(scripts.STAGE2, [*stage2, "--species", "cat"]).code == 1
    assert script(scripts.STAGE2, stage2).code == 0
    done = script(scripts.INFERENCE, [*evaluation_flags, "--out-dir", tmp_path / "three"])
    assert done.code == 1 and "is a finished table" in done.err
    for name, folder in copies.items():
        for path in folder.rglob("report.html"):
            assert (tmp_path / name / path.relative_to(folder)).exists()


def test_a_table_killed_before_it_has_tidied_up_is_tidied_by_the_next_start(tmp_path):
    path = tmp_path / "table.csv"
    with ResumableTable(path, ("image",), {"model": 1}) as table:
        table.batches_kept([])
        identity = path.with_name(path.name + ".identity.json").read_bytes()
        table.finish()
    path.with_name(path.name + ".identity.json").write_bytes(identity)
    with pytest.raises(UserError, match="is a finished table"), ResumableTable(path, (), {}):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.csv"]


def test_a_split_that_another_process_made_in_between_stays(tmp_path):
    """It may have been read already."""
    path, species = tmp_path / "splits.csv", np.array(["cat"])
    for split, seed in ((1, 5), (2, 6)):
        splits.write_splits(path, species, np.array(["7"]), np.array([split], np.int8), seed=seed)
    assert splits.read_splits(path, species, np.array(["7"])).tolist() == [1]


def test_links_in_a_circle_are_told_in_a_line(tmp_path):
    """`Path.resolve` has an error of its own for them."""
    for name in ("bundle.json", "cat.onnx", "a", "b"):
        (tmp_path / name).symlink_to(name)
    (tmp_path / "bundle.json").unlink()
    (tmp_path / "bundle.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"cat\.onnx: cannot be read: .*[Ss]ym"):
        onnx_models.read(tmp_path / "cat.onnx", "cat")
    compared = [tmp_path / "a", tmp_path / "b"]
    scripts.assert_refused(scripts.run_fresh("tools/compare.py", compared), tmp_path / "a")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_table_that_has_no_end_is_refused_before_it_is_opened(tmp_path, make):
    for name in ("cat.csv", "splits.json"):
        make(tmp_path / name)
    (tmp_path / "splits.csv").write_text("species,record,split\n")
    with pytest.raises(UserError, match=r"cat\.csv: it is not a regular file"):
        read_inat_json(tmp_path, "cat.csv")
    with pytest.raises(UserError, match=r"cat\.csv: it is not a regular file"):
        read_species(tmp_path / "cat.csv", "cat")
    with pytest.raises(UserError, match=r"splits\.json, the side file of .* cannot be read"):
        splits.read_side_file(tmp_path / "splits.csv")
