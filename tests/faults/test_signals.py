"""SIGINT and SIGTERM outside the training steps, on the real scripts."""

import signal
import time
from functools import partial
from pathlib import Path

import pytest

from tests import scripts
from tests.conftest import TINY_STAGE1
from tests.end_to_end.test_resume import loads
from tests.sameness import assert_same
from tests.tools.test_sweep import preset_of

# of a pass that measures
BATCH = {"module": "petface.training.evaluate", "function": "_answer_batch"}


@pytest.fixture
def flags(tree, tmp_path):
    return [*tree.flags, *TINY_STAGE1, "--runs-root", tmp_path / "runs", "--run-name", "broken"]


def test_passes_that_measure_are_left_too_and_the_run_equals_the_straight_one(
    script, flags, stage1_run, tmp_path
):
    """An epoch has 12 steps; the validation split has 3 batches, and so has the test split."""
    stage1, folder = partial(script, scripts.STAGE1, flags), tmp_path / "runs/broken"
    done = stage1(scripts.SignalAtStep(3 + 2, signal.SIGTERM, **BATCH))
    assert done.code == 143 and "stopped in epoch 2; " in done.out
    assert loads(folder / "last.pt") == (1, 12)

    done = stage1(scripts.SignalAtStep(1, signal.SIGHUP, **BATCH))
    assert done.code == 129 and "resuming at epoch 2, step 12" in done.out
    assert loads(folder / "last.pt") == (1, 12)

    done = stage1(scripts.SignalAtStep(3 + 3 + 3 + 2, signal.SIGTERM, **BATCH))
    assert done.code == 143 and "stopped in the last passes" in done.out
    assert loads(folder / "last.pt") == (3, 0) and not (folder / "final.json").exists()

    # the test split was measured: what is left is short
    writes = {"module": "petface.metrics", "function": "write_confusion"}
    done = stage1(scripts.SignalAtStep(1, signal.SIGINT, **writes))
    assert done.code == 130 and "the same command resumes there" in done.err
    assert "Traceback" not in done.err and not (folder / "final.json").exists()

    done = stage1().checked()
    assert_same(stage1_run.folder, folder)


def test_the_passes_of_a_specialist_are_left_too(script, stage2_flags, stage2_run, tmp_path):
    """Chimp: the validation split has one batch, the three parts of the last passes have 5."""
    flags = [*stage2_flags, "--runs-root", tmp_path, "--run-name", "broken", "--species", "chimp"]
    stage2, folder = partial(script, scripts.STAGE2, flags), tmp_path / "broken/chimp"
    done = stage2(scripts.SignalAtStep(2, signal.SIGTERM, **BATCH))
    assert done.code == 143 and "stopped in epoch 2; " in done.out
    done = stage2(scripts.SignalAtStep(3 + 1, signal.SIGTERM, **BATCH))
    assert done.code == 143 and "stopped in the last passes" in done.out
    assert not (folder / "final.json").exists()
    done = stage2().checked()
    assert_same(stage2_run.folder / "chimp", folder)


def test_processes_leave_a_pass_together_although_one_has_a_batch_more(flags, tmp_path):
    flags = [*flags, "--batch-size", 4]
    for hooks in [
        (None, scripts.SignalAtStep(2, signal.SIGTERM, **BATCH)),
        (scripts.SignalAtStep(3, signal.SIGTERM, **BATCH), None),
    ]:
        done = scripts.run_together(scripts.STAGE1, flags, tmp_path, hooks)
        assert [one.code for one in done] == [143, 143], done[0].err
        # Processes agree a step later: after the pass's last batch, in the first step after it.
        assert loads(tmp_path / "runs/broken/last.pt")[1] in (12, 1)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGHUP, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_signal_to_all_processes_of_a_terminal_ends_the_step_as_well(
    script, flags, tmp_path, number
):
    hook = scripts.SignalAtStep(2, number, to_group=True)
    done = script(scripts.STAGE1, [*flags, "--num-workers", 2], hook)
    assert done.code == 128 + number
    assert loads(tmp_path / "runs/broken/last.pt") == (0, 2)
    assert done.err.count("stopping after this step") == 1  # not by each loading process
    assert "Traceback" not in done.err


def test_under_nohup_a_hang_up_is_not_heard(script, flags, tmp_path):
    nohup = partial(signal.signal, signal.SIGHUP, signal.SIG_IGN)
    hooks = scripts.SignalAtStep(2, signal.SIGHUP), scripts.SignalAtStep(4, signal.SIGTERM)
    assert script(scripts.STAGE1, flags, nohup, *hooks).code == 143
    assert loads(tmp_path / "runs/broken/last.pt") == (0, 4)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGHUP, 129), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_a_stopped_evaluation_goes_on(
    script, evaluation_flags, evaluation_run, tmp_path, number, code
):
    evaluate = partial(
        script, scripts.INFERENCE, [*evaluation_flags, "--out-dir", tmp_path / "out"]
    )
    rows = {"module": "petface.evaluation.run", "function": "write_behind"}
    assert evaluate(scripts.SignalAtStep(1, number, **rows)).code == code
    done = evaluate(scripts.SignalAtStep(3, number, module="petface.files", function="write_csv"))
    assert done.code == code and "Traceback" not in done.err, done.err
    done = evaluate().checked()
    assert_same(evaluation_run.folder, tmp_path / "out")


def test_predict_ends_by_a_signal_and_goes_on(script, stage1_run, tree, tmp_path):
    flags = ["predict", tree.images, "--stage1-checkpoint", stage1_run.folder / "best.pt"]
    flags += ["--stage2-folder", tmp_path, "--device", "cpu", "--out"]
    module = {"module": "petface.inference.predict", "function": "uploaded"}
    for number in (signal.SIGTERM, signal.SIGHUP):
        done = script(
            scripts.INFERENCE,
            [*flags, tmp_path / "a.csv"],
            scripts.SignalAtStep(1, number, **module),
        )
        assert done.code == 128 + number and "same command" in done.err, done
    script(scripts.INFERENCE, [*flags, tmp_path / "a.csv"]).checked()
    script(scripts.INFERENCE, [*flags, tmp_path / "b.csv"]).checked()
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_sweep_takes_its_trainers_along(tree, tmp_path, number):
    preset = preset_of(tmp_path, "stage1", [*tree.flags, *TINY_STAGE1])
    out = tmp_path / "sweep"
    arguments = [preset, "EPOCHS=30", "PATIENCE=0", "--out", out, "--seeds", 1]
    sweep = scripts.start("tools/sweep.py", arguments, tmp_path)
    while not (out / "tiny/seed1/last.pt").exists() and not sweep.is_over():
        time.sleep(0.05)
    holder = int((out / "tiny/seed1/run.lock").read_text().split()[1])
    sweep.send(number)
    assert sweep.wait().code == (-number if number == signal.SIGKILL else 128 + number)
    waited = time.monotonic()
    while Path(f"/proc/{holder}/cmdline").exists() and time.monotonic() - waited < 30:
        time.sleep(0.05)
    assert not Path(f"/proc/{holder}/cmdline").exists()
    assert not (out / "tiny/seed1/final.json").exists()
    assert "stopping after this step" in (out / "tiny/seed1/train.log").read_text()
