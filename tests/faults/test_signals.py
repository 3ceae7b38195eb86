"""SIGINT and SIGTERM outside the training steps, on the real scripts."""

import signal
import time
from functools import partial
from pathlib import Path

import pytest

from tests import scripts
from tests.conftest import TINY_STAGE1
from tests.end_to_end.test_resume import BATCH, loads
from tests.tools.test_sweep import preset_of


@pytest.fixture
def flags(tree, tmp_path):
    return [*tree.flags, *TINY_STAGE1, "--runs-root", tmp_path / "runs", "--run-name", "broken"]


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


def test_predict_ends_by_a_signal(script, tree, model_flags, tmp_path):
    """Its table goes on as after a kill."""
    flags = ["predict", tree.images, *model_flags, "--out", tmp_path / "a.csv"]
    uploaded = {"module": "petface.inference.predict", "function": "uploaded"}
    for number in (signal.SIGTERM, signal.SIGHUP):
        done = script(scripts.INFERENCE, flags, scripts.SignalAtStep(1, number, **uploaded))
        assert done.code == 128 + number and "same command" in done.err, done


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
