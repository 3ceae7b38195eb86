"""Splits and batches of next to nothing, on the real scripts: they work, or say what is wrong."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from tests import scripts
from tests.conftest import TINY, Tree
from tests.naive import rows_of
from tests.scripts import STAGE1, STAGE2, assert_refused

slow = pytest.mark.slow
_ONE = ["--epochs", 1]
_TWO = ["--phase-epochs", 1, 1, "--weights", "none"]


def tree_of(root, labels, num_photos=1):
    """Write a record for each row of `labels[species]`: its values of Gender and Breed."""
    draw, tree = np.random.default_rng(0), Tree(root)
    tree.annotations.mkdir(parents=True)
    for species, rows in labels.items():
        with (tree.annotations / f"{species}.csv").open("w", newline="") as handle:
            table = csv.writer(handle)
            table.writerow(["Name", "Gender", "Breed"])
            table.writerows([number, *row] for number, row in enumerate(rows))
        for number in range(len(rows)):
            folder = tree.images / species / f"{number:06d}"
            folder.mkdir(parents=True)
            for photo in range(num_photos):
                pixels = draw.integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{photo:02d}.png")
    return tree


def assert_sound(folder, num_epochs=1):
    """Check that every epoch has finite losses, where there were labels, and finite weights."""
    rows = rows_of(folder / "metrics.csv")
    assert len(rows) == num_epochs
    assert all(math.isfinite(float(row["train_loss"])) for row in rows), rows
    (best,) = folder.glob("*best.pt")
    weights = torch.load(best, weights_only=True)["model"]
    assert all(tensor.isfinite().all() for tensor in weights.values())
    return rows


MALE, FEMALE, UNKNOWN = ("Male", "x"), ("Female", "y"), ("unknown", "unknown")


@pytest.mark.parametrize(
    ("labels", "flags"),
    [
        pytest.param({"cat": [MALE] * 10, "dog": [FEMALE] * 11}, ["--batch-size", 1], marks=slow),
        (
            {"cat": [MALE] * 9, "dog": [FEMALE] * 9},  # 14 to train on: 13 and one
            ["--batch-size", 13, "--backbone", "mobilenet_v3_small", "--attention", "se"],
        ),
        pytest.param({"cat": [MALE] * 20}, ["--batch-size", 5], marks=slow),  # one class
    ],
    ids=["batches of one", "a last batch of one", "one class"],
)
def test_stage_1_trains_on_little(labels, flags, script, tmp_path):
    tree = tree_of(tmp_path / "data", labels)
    more = [*tree.flags, *TINY, *flags, *_ONE, "--runs-root", tmp_path, "--run-name", "run"]
    script(STAGE1, more).checked()
    (row,) = assert_sound(tmp_path / "run")
    assert math.isfinite(float(row["val_loss"]))


@pytest.mark.parametrize(
    ("rows", "flags"),
    [
        pytest.param([MALE, FEMALE] * 6, ["--batch-size", 1], marks=slow),
        pytest.param([MALE] * 12, ["--batch-size", 9], marks=slow),  # one class in each head
        pytest.param([MALE, MALE], [], marks=slow),  # no validation, no test
        ([UNKNOWN] * 11 + [MALE], []),  # one record with a label
        pytest.param(  # no breed in validation
            [("Male", "unknown")] * 20 + [("Female", "x")] * 2, [], marks=slow
        ),
    ],
    ids=["batches of one", "one class", "two records", "one known", "a head without validation"],
)
def test_stage_2_trains_on_little(rows, flags, script, tmp_path):
    tree = tree_of(tmp_path / "data", {"cat": rows}, 2)
    more = [*tree.flags, *TINY, *flags, *_TWO, "--runs-root", tmp_path, "--run-name", "run"]
    script(STAGE2, more).checked()
    assert_sound(tmp_path / "run/cat", 2)


@slow
def test_a_process_with_one_image_trains_along(tmp_path):
    tree = tree_of(tmp_path / "data", {"cat": [MALE] * 6, "dog": [MALE] * 6})
    more = [*tree.flags, *TINY, "--batch-size", 1, *_ONE, "--runs-root", tmp_path]
    for done in scripts.run_together(STAGE1, [*more, "--run-name", "run"], tmp_path):
        done.checked()
    assert_sound(tmp_path / "run")


def test_no_validation_split_is_refused_in_words(script, tmp_path):
    tree = tree_of(tmp_path / "data", {"cat": [MALE] * 2, "dog": [MALE] * 2})
    done = script(STAGE1, [*tree.flags, *TINY, *_ONE, "--runs-root", tmp_path])
    assert_refused(done, "the val split has 0 images; two are needed")


def test_networks_whose_validation_is_nan_are_never_chosen(script, tmp_path):
    """The losses of training stay finite: stage 2 must not choose by those instead."""
    tree = tree_of(tmp_path / "data", {"cat": [MALE, FEMALE] * 8})
    more = [*tree.flags, *TINY, *_TWO, "--runs-root", tmp_path, "--run-name", "run"]
    done = script(STAGE2, more, NanAnswers())
    assert_refused(done, "no network was chosen", "errors.csv")
    assert not (tmp_path / "run/cat/cat_best.pt").exists()
    assert math.isfinite(float(rows_of(tmp_path / "run/cat/metrics.csv")[0]["train_loss"]))


@dataclass(frozen=True)
class NanAnswers:
    """Have a network that answers NaN where it does not train."""

    def __call__(self):
        from petface.models.network import Network

        logits = Network.logits
        Network.logits = lambda *a: tuple(head * math.nan for head in logits(*a))


@dataclass(frozen=True)
class AutoIs:
    """Have a device on which PRECISION "auto" is this one."""

    precision: str

    def __call__(self):
        from petface import devices
        from petface.models import network

        network.choose_precision = lambda _, device: devices.choose_precision(
            self.precision, device
        )


@pytest.mark.parametrize("before", [pytest.param("fp32", marks=slow), "bf16"])
def test_a_run_goes_on_where_the_precision_needs_a_scaler(before, script, tmp_path):
    tree = tree_of(tmp_path / "data", {"cat": [MALE] * 9, "dog": [FEMALE] * 9})
    more = [*tree.flags, *TINY, *_ONE, "--precision", "auto", "--runs-root", tmp_path]
    stop = scripts.Both(AutoIs(before), scripts.SignalAtStep(1, 15))
    assert script(STAGE1, [*more, "--run-name", "run"], stop).code == 143
    done = script(STAGE1, [*more, "--run-name", "run"], AutoIs("fp16")).checked()
    assert "training on cpu in fp16" in done.out and "resuming at epoch 1, step 1" in done.out
    assert_sound(tmp_path / "run")
