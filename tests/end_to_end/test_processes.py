"""Several processes, as torchrun starts them, on the real scripts: gloo on the CPU."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch

from tests import scripts
from tests.conftest import TINY_STAGE1
from tests.end_to_end.test_resume import loads, rows_of
from tests.sameness import assert_same

STAGE1 = [*TINY_STAGE1, "--batch-size", 4, "--epochs", 2]  # 12 steps of 2 x 4 an epoch


@pytest.fixture
def together(tree, tmp_path):
    """Run stage 1 in two processes."""
    flags = [*tree.flags, *STAGE1, "--runs-root", tmp_path / "runs"]

    def run(name, *more, hooks=(None, None)):
        arguments = [*flags, "--run-name", name, *more]
        return scripts.run_together(scripts.STAGE1, arguments, tmp_path, hooks)

    return run


def test_two_processes_stopped_and_killed_equal_two_that_ran_through(
    together, tmp_path, script, tree
):
    straight = together("straight")
    assert [done.code for done in straight] == [0, 0], straight[0].err + straight[1].err
    assert "2 processes, batches of 2 x 4" in straight[0].out
    assert straight[1].out == ""
    folder = tmp_path / "runs/broken"

    done = together("broken", hooks=(None, scripts.SignalAtStep(5, signal.SIGTERM)))
    assert [one.code for one in done] == [143, 143]  # both, although one was asked
    assert loads(folder / "last.pt") == (0, 6)  # asked in the step before
    photo = tree.images / "yak/000000/00.png"
    before = photo.stat()
    os.utime(photo, ns=(5, 5))
    done = together("broken")
    assert 1 in [one.code for one in done] and "with other data: photos" in done[0].err, done
    os.utime(photo, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert loads(folder / "last.pt") == (0, 6)
    kill = scripts.SignalAtStep(6 + 4, signal.SIGKILL)  # in the second epoch
    assert [one.code for one in together("broken", hooks=(kill, kill))] == [-9, -9]
    assert loads(folder / "last.pt") == (1, 0)

    alone = [*tree.flags, *STAGE1, "--runs-root", tmp_path / "runs", "--run-name", "broken"]
    words = "8 images a step; this would take 4, in 1 processes together"
    scripts.assert_refused(script(scripts.STAGE1, alone), words)

    assert [one.code for one in together("broken")] == [0, 0]
    assert_same(tmp_path / "runs/straight", folder)


def test_a_run_of_one_process_goes_on_in_two_with_as_many_images_a_step(
    together, script, stage1_run, tree, tmp_path
):
    flags = [*tree.flags, *TINY_STAGE1, "--runs-root", tmp_path / "runs", "--run-name", "moved"]
    stop = scripts.SignalAtStep(12 + 5, signal.SIGTERM)
    assert script(scripts.STAGE1, [*flags, "--epochs", 2], stop).code == 143
    last = tmp_path / "runs/moved/last.pt"
    old = torch.load(last, weights_only=True)
    assert old.pop("global_batch_size") == 8
    torch.save(old, last)  # as an earlier version left it
    done = together("moved")
    assert [one.code for one in done] == [0, 0], done[0].err
    assert "resuming at epoch 2, step 5" in done[0].out
    one, other = (rows_of(f / "metrics.csv")[0] for f in (stage1_run.folder, last.parent))
    assert one.keys() == other.keys() and other["epoch"] == "1"
    assert len(rows_of(last.parent / "metrics.csv")) == 2


def test_a_loss_that_is_not_finite_in_one_process_skips_the_step_in_both(together, tmp_path):
    done = together("nan", "--epochs", 1, hooks=(None, partial(scripts.nan_loss, [3, 4])))
    assert [one.code for one in done] == [0, 0], done[0].err
    assert rows_of(tmp_path / "runs/nan/metrics.csv")[0]["num_skipped_steps"] == "2"
    last = torch.load(tmp_path / "runs/nan/last.pt", weights_only=True)
    assert last["optimizer"]["state"][0]["step"] == 12 - 2


def test_bad_images_count_over_all_processes(together, tmp_path):
    done = together("bad", "--max-bad-fraction", 0.01)
    assert [one.code for one in done] == [1, 1]
    assert "3 images could not be read, more than MAX_BAD_FRACTION allows (2)" in done[0].err
    assert len(rows_of(tmp_path / "runs/bad/errors.csv")) == 3


def test_specialists_spread_over_processes_are_those_of_one_alone(
    stage2_flags, stage2_run, tmp_path
):
    flags = [*stage2_flags, "--runs-root", tmp_path / "runs", "--run-name", "spread"]
    run = partial(scripts.run_together, scripts.STAGE2, [*flags, "--spread", "true"], tmp_path)
    done = run()
    assert [one.code for one in done] == [0, 0], done[0].err + done[1].err
    assert "[0] == cat (1 of 2) ==" in done[0].out and "[1] == chimp (1 of 1) ==" in done[1].out
    for species in ("cat", "chimp", "dog"):
        assert_same(stage2_run.folder / species, tmp_path / "runs/spread" / species)
    again = run()
    assert [one.code for one in again] == [0, 0]
    assert "[1] chimp: finished before, left alone" in again[1].out


def test_a_specialist_of_two_processes_ends_with_whole_files(
    stage2_flags, stage2_run, script, tmp_path
):
    """The masked heads of a batch lie unevenly in the shares."""
    own = ["--mix", "none", "--base-augment", "none", "--tail-augment", "none", "--dropout", 0]
    flags = [*stage2_flags, *own, "--phase-stages", "heads", "heads", "--species", "chimp"]
    more = ["--batch-size", 4, "--runs-root", tmp_path / "two"]
    done = scripts.run_together(scripts.STAGE2, [*flags, *more], tmp_path)
    assert [one.code for one in done] == [0, 0], done[0].err + done[1].err
    whole, two = stage2_run.folder / "chimp", tmp_path / "two/stage2/chimp"
    assert {path.name for path in whole.iterdir()} == {path.name for path in two.iterdir()}
    script(scripts.STAGE2, [*flags, "--runs-root", tmp_path / "one"]).checked()
    one = tmp_path / "one/stage2/chimp"
    # a body that is frozen normalises by its running statistics: no photo depends on its batch
    for row, other in zip(rows_of(one / "metrics.csv"), rows_of(two / "metrics.csv"), strict=True):
        for name in ("train_loss", "val_loss"):
            assert float(row[name]) == pytest.approx(float(other[name]), rel=1e-4), name


DRIVER = """
import os, runpy, sys
sys.path.insert(0, {repository!r})
from petface.training import epoch as engine
if os.environ["RANK"] == "1":
    update, calls = engine._update, []
    def broken(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise {kind}('the disk of this machine burns')
        return update(*arguments)
    engine._update = broken
sys.argv[0] = {script!r}
runpy.run_path({script!r}, run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["RuntimeError", "engine.UserError"])
def test_an_error_in_one_process_ends_all_with_its_message(tree, stage1_run, tmp_path, kind):
    driver = tmp_path / "driver.py"
    script = str(scripts.REPOSITORY / scripts.STAGE1)
    driver.write_text(DRIVER.format(repository=str(scripts.REPOSITORY), script=script, kind=kind))
    flags = [*tree.flags, *STAGE1, "--runs-root", tmp_path, "--run-name", "run", "--epochs", 50]
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
         "--standalone", str(driver), *map(str, flags)],
        capture_output=True, text=True, env={**os.environ, **scripts.ENVIRONMENT}, timeout=300,
    )  # fmt: skip
    assert done.returncode != 0
    assert "the disk of this machine burns" in done.stderr
    assert time.monotonic() - begun < 100  # two interpreters start in it
    assert stage1_run.result.code == 0


def test_an_evaluation_by_several_processes_is_that_of_one(
    evaluation_flags, evaluation_run, script, tmp_path
):
    """Killed at different rows, gone on with as many processes, with more, and alone."""

    def run(name, hooks):
        flags = [*evaluation_flags, "--out-dir", tmp_path / name]
        done = scripts.run_together(scripts.INFERENCE, flags, tmp_path, hooks)
        return [one.code for one in done]

    kills = scripts.KillWhileWritingRows(3, 0.5), scripts.KillWhileWritingRows(5, 0.7)
    assert run("broken", kills) == [-9, -9]
    kill = scripts.kill_before_call("petface.evaluation.run", "remove_parts")
    assert run("broken", (kill, None))[0] == -9
    table = tmp_path / "broken/petface_eval_per_image.csv"
    table.rename(table.with_name(table.name + ".unfinished"))
    assert run("broken", (None, None, None)) == [0, 0, 0]
    assert_same(evaluation_run.folder, tmp_path / "broken")

    assert run("alone", kills) == [-9, -9]
    script(scripts.INFERENCE, [*evaluation_flags, "--out-dir", tmp_path / "alone"]).checked()
    assert_same(evaluation_run.folder, tmp_path / "alone")
