"""Runs that are stopped and killed, again and again, equal the straight run bit for bit."""

import json
from functools import partial
from signal import SIGHUP, SIGINT, SIGKILL, SIGTERM
from unittest.mock import ANY

import pytest
import torch

from tests import naive, scripts
from tests.conftest import TINY_STAGE1
from tests.sameness import assert_same
from tests.scripts import KillWhileSaving, kill_before_call
from tests.scripts import SignalAtStep as AtStep

TIMINGS = {"train_images_per_s", "train_s"}


def rows_of(path):
    return [{k: v for k, v in r.items() if k not in TIMINGS} for r in naive.rows_of(path)]


def loads(path):
    """A checkpoint that is whole can be read; its epoch and step."""
    state = torch.load(path, weights_only=True)["epoch_state"]
    return state["epoch"], state["step"]


# Of a pass that measures, of the writing of an evaluation.
BATCH = {"module": "petface.training.evaluate", "function": "_answer_batch"}
CONFUSION = {"module": "petface.metrics", "function": "write_confusion"}
ROWS = {"module": "petface.evaluation.run", "function": "write_behind"}
CSV = {"module": "petface.files", "function": "write_csv"}
# Start after start of a program: what happens in it, its exit code, epoch and step that the last
# checkpoint then has (None: there is none), and words that are printed.
STARTS = {
    "stage1": [  # an epoch has 12 steps; the validation and the test split have 3 batches each
        (KillWhileSaving("best.pt"), -9, None, ""),  # of the first epoch
        (AtStep(5, SIGTERM), 143, (0, 5), "stopped in epoch 1"),
        (AtStep(3, SIGINT), 130, (0, 8), "resuming at epoch 1, step 5"),
        (AtStep(2, SIGTERM, times=2), 143, (0, 8), ""),  # the second leaves at once
        (AtStep(4 + 6, SIGKILL), -9, (1, 0), ""),  # steps 9 to 12, then 6 of epoch 2
        (KillWhileSaving("last.pt"), -9, (1, 0), ""),  # of epoch 2
        (AtStep(2, SIGTERM, **BATCH), 143, (1, 12), "stopped in epoch 2; "),
        (AtStep(1, SIGHUP, **BATCH), 129, (1, 12), "resuming at epoch 2, step 12"),
        (kill_before_call("petface.files", "write_csv", 3), -9, (3, 0), ""),  # metrics of epoch 3
        (KillWhileSaving("best.pt"), -9, (3, 0), ""),  # with its calibration
        (AtStep(3 + 2, SIGTERM, **BATCH), 143, (3, 0), "stopped in the last passes"),
        # the test split was measured: what is left is short
        (AtStep(1, SIGINT, **CONFUSION), 130, (3, 0), "the same command resumes there"),
        (kill_before_call("petface.files", "write_json", 2), -9, (3, 0), ""),
    ],
    "specialists": [  # cat takes 4 steps an epoch, two epochs in phase 1, one in phase 2
        (AtStep(2, SIGTERM), 143, (0, 2), ""),
        (AtStep(2 + 3, SIGKILL), -9, (1, 0), ""),  # in epoch 2
        (AtStep(1, SIGINT), 130, (1, 1), ""),
        (AtStep(3 + 2, SIGKILL), -9, (2, 0), ""),  # in phase 2
        (AtStep(2, SIGTERM), 143, (2, 2), "resuming at epoch 3, step 0 (phase 2 of 2)"),
        (AtStep(2 + 2, SIGTERM), 143, (0, 2), ""),  # of chimp
        # its validation split has one batch, the three parts of the last passes have 5
        (AtStep(2, SIGTERM, **BATCH), 143, ANY, "stopped in epoch 2; "),
        (AtStep(3 + 1, SIGTERM, **BATCH), 143, (3, 0), "stopped in the last passes"),
    ],
    "evaluate": [
        (AtStep(1, SIGHUP, **ROWS), 129, None, ""),
        (AtStep(3, SIGTERM, **CSV), 143, None, ""),
    ],
}


@pytest.mark.parametrize("program", STARTS)
def test_what_is_stopped_and_killed_equals_what_ran_through(
    script, tree, stage1_run, stage2_flags, stage2_run, evaluation_flags, evaluation_run,
    tmp_path, program
):  # fmt: skip
    """Each start goes on where the last left whole."""
    folder, runs = tmp_path / "run", ["--runs-root", tmp_path, "--run-name", "run"]
    name, flags, straight = {
        "stage1": (scripts.STAGE1, [*tree.flags, *TINY_STAGE1, *runs], stage1_run),
        "specialists": (scripts.STAGE2, [*stage2_flags, *runs], stage2_run),
        "evaluate": (scripts.INFERENCE, [*evaluation_flags, "--out-dir", folder], evaluation_run),
    }[program]
    said = "cat: finished before, left alone" if program == "specialists" else ""
    for number, (hook, code, place, words) in enumerate([*STARTS[program], (None, 0, ANY, said)]):
        done = script(name, flags, hook)
        assert done.code == code and words in done.out + done.err, (number, done)
        assert "Traceback" not in done.err, (number, done)
        newest = sorted(folder.rglob("*last.pt"), key=lambda path: path.stat().st_mtime_ns)[-1:]
        assert (loads(newest[0]) if newest else None) == place, number
        assert code == 0 or not [p for p in newest if (p.parent / "final.json").exists()], number
    assert_same(straight.folder, folder)


@pytest.mark.slow
def test_phases_of_stage_1_stopped_and_killed_equal_the_straight_run(script, tree, tmp_path):
    """Two epochs of the head, then two of its last stage; an epoch has 12 steps."""
    flags = [*tree.flags, *TINY_STAGE1, "--phase-stages", "heads", "layer4", "--epochs", 2]
    flags += ["--lr", 1e-2, 1e-3, "--patience", 0, "--ema-decay", 0.9, "--schedule", "constant"]
    flags += ["--select-by", "loss"]
    flags += ["--runs-root", tmp_path, "--run-name"]
    script(scripts.STAGE1, [*flags, "straight"]).checked()
    rows = rows_of(tmp_path / "straight/metrics.csv")
    assert [(row["phase"], row["learning_rate"]) for row in rows] == [
        ("1", "0.01"), ("1", "0.01"), ("2", "0.001"), ("2", "0.001"),
    ]  # fmt: skip
    lowest = min(rows, key=lambda row: float(row["val_loss"]))
    final = json.loads((tmp_path / "straight/final.json").read_text())
    assert final["best_epoch"] == int(lowest["epoch"])

    broken = partial(script, scripts.STAGE1, [*flags, "broken"])
    assert broken(AtStep(5, SIGTERM)).code == 143
    assert broken(AtStep(7 + 12 + 3, SIGKILL)).code == -9  # in phase 2
    assert loads(tmp_path / "broken/last.pt") == (2, 0)
    done = broken(AtStep(15, SIGTERM))
    assert done.code == 143 and "resuming at epoch 3, step 0 (phase 2 of 2)" in done.out
    assert broken().code == 0
    assert_same(tmp_path / "straight", tmp_path / "broken")
