"""Odd photos, labels and numbers in training: it works, or says what is wrong."""

from __future__ import annotations

import csv
import math
import signal
from functools import partial

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from petface.data.dataset import load_dataset
from tests import naive, scripts
from tests.conftest import BOMB, EMPTY, TINY, TINY_STAGE1, TRUNCATED, Tree
from tests.scripts import STAGE1, STAGE2, assert_refused

slow = pytest.mark.slow


@pytest.fixture
def stage1(script, tree, tmp_path):
    flags = [*tree.flags, *TINY_STAGE1, "--runs-root", tmp_path, "--run-name", "run"]
    return lambda *more, hook=None: script(STAGE1, [*flags, *more], hook)


# ---- Photos and labels ----


def test_more_bad_images_than_allowed_stop_the_run_with_a_list(stage1, tmp_path):
    """Three of 129 are bad; 1 % allows one, and two are always allowed."""
    done = stage1("--max-bad-fraction", 0.01)
    assert_refused(done, "3 images could not be read, more than MAX_BAD_FRACTION allows (2)")
    messages = pandas.read_csv(tmp_path / "run/errors.csv")["message"].tolist()
    assert len(messages) == 3
    assert all(any(bad in m for bad in (TRUNCATED, BOMB, EMPTY)) for m in messages)
    assert not (tmp_path / "run/final.json").exists()


def test_a_bad_image_is_skipped_not_replaced(stage1_run, tree):
    """Images trained on and images skipped add up to the images drawn in each epoch."""
    history = pandas.read_csv(stage1_run.folder / "metrics.csv")
    split = naive.splits(tree.root)
    train = [p for p in naive.photos(tree.images) if split[tuple(p.split("/")[:2])] == "train"]
    seen = torch.load(stage1_run.folder / "last.pt", weights_only=True)["history"]
    num_trained = [row["train_images_per_s"] * row["train_s"] for row in seen]
    total = np.array(num_trained) + history["num_unreadable"].to_numpy()
    assert total.tolist() == pytest.approx([len(train)] * 3, rel=1e-9)  # rate times time
    assert history["num_unreadable"].sum() > 0


def test_batches_without_a_known_label_for_a_head_do_no_harm(stage2_run, tree):
    """Chimp's gender is known for three photos: most batches of eight hold none of them."""
    known = [row for key, row in naive.labels(tree.annotations).items() if key[0] == "chimp"]
    assert sum("gender" in row for row in known) == 1
    history = assert_sound(stage2_run.folder / "chimp", 3)
    assert [row["num_skipped_steps"] for row in history] == ["0", "0", "0"]


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
    rows = naive.rows_of(folder / "metrics.csv")
    assert len(rows) == num_epochs
    assert all(math.isfinite(float(row["train_loss"])) for row in rows), rows
    (best,) = folder.glob("*best.pt")
    weights = torch.load(best, weights_only=True)["model"]
    assert all(tensor.isfinite().all() for tensor in weights.values())
    return rows


def test_what_a_tree_lacks_is_counted(tmp_path):
    rows = [("F", "A")] * 3 + [("F", "B")] * 2 + [("F", "C")]
    tree = tree_of(tmp_path, {"cat": [("F", "A")] * 6, "dog": rows})
    text = (tree.annotations / "dog.csv").read_text().replace("Gender", "Weight")
    (tree.annotations / "dog.csv").write_text(text)
    (tree.images / "dog/000000/note.txt").write_bytes(b"")
    for name in ("hen", "dog/000099"):
        (tree.images / name).mkdir()
    data = load_dataset(tree.images, tree.annotations)
    assert data.catalog.classes == ("cat", "dog") and data.catalog.num_records == 12
    assert data.annotations["dog"].features == ("breed",)
    for words in (
        "without images: hen", "1 record folders without images", "no column Gender",
        "entries of the tree are no image", "NO gender head", "'Weight'", "2 of 3 breed classes",
    ):  # fmt: skip
        assert any(words in note for note in data.notes), words
    splits = data.record_split[data.catalog.record_class == 1].tolist()
    assert sorted(splits[:3]) == [0, 0, 2] and splits[3:] == [0, 0, 0], (
        "tested from three records on"
    )


MALE, FEMALE, UNKNOWN = ("Male", "x"), ("Female", "y"), ("unknown", "unknown")
ONE = ["--epochs", 1]
TWO = ["--phase-epochs", 1, 1, "--weights", "none"]


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
    more = [*tree.flags, *TINY, *flags, *ONE, "--runs-root", tmp_path, "--run-name", "run"]
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
    """Without a label in validation the training loss decides, not a loss of 0 over nothing."""
    tree = tree_of(tmp_path / "data", {"cat": rows}, 2)
    more = [*tree.flags, *TINY, *flags, *TWO, "--runs-root", tmp_path, "--run-name", "run"]
    script(STAGE2, [*more, "--phase-epochs", 2, 1]).checked()
    history = assert_sound(tmp_path / "run/cat", 3)
    if rows[0] == UNKNOWN:
        assert {row["val_loss"] + row["val_breed_accuracy_frac"] for row in history} == {"nannan"}
        best = torch.load(tmp_path / "run/cat/cat_best.pt", weights_only=True)["figures"]
        assert best["epoch"] == 1 + np.argmin([float(row["train_loss"]) for row in history])
        assert math.isnan(best["val_loss"])


@slow
def test_a_process_with_one_image_trains_along(tmp_path):
    tree = tree_of(tmp_path / "data", {"cat": [MALE] * 6, "dog": [MALE] * 6})
    more = [*tree.flags, *TINY, "--batch-size", 1, *ONE, "--runs-root", tmp_path]
    for done in scripts.run_together(STAGE1, [*more, "--run-name", "run"], tmp_path):
        done.checked()
    assert_sound(tmp_path / "run")


def test_no_validation_split_is_refused_in_words(script, tmp_path):
    tree = tree_of(tmp_path / "data", {"cat": [MALE] * 2, "dog": [MALE] * 2})
    done = script(STAGE1, [*tree.flags, *TINY, *ONE, "--runs-root", tmp_path])
    assert_refused(done, "the val split has 0 images; two are needed")


# ---- Numbers ----


def test_losses_that_stay_nan_stop_the_run_and_best_stays_whole(stage1, tmp_path):
    """Epoch 1 calls the loss 12 times for training and 3 times for validation."""
    done = stage1("--mix", "none", hook=partial(scripts.nan_loss, [3, 4, 5, *range(16, 99)]))
    assert_refused(
        done, "not finite in 10 steps in a row", "epoch 2, step 9", "loss nan", "lower LR"
    )
    best = torch.load(tmp_path / "run/best.pt", weights_only=True)
    assert best["figures"]["epoch"] == 1
    (row,) = assert_sound(tmp_path / "run")
    assert row["num_skipped_steps"] == "3"  # single ones are skipped and counted
    last = torch.load(tmp_path / "run/last.pt", weights_only=True)
    assert last["epoch"] == 1 and last["epoch_state"]["step"] == 0
    assert last["optimizer"]["state"][0]["step"] == 12 - 3


def test_networks_whose_validation_is_nan_are_never_chosen(script, tmp_path):
    """The losses of training stay finite: stage 2 must not choose by those instead."""
    tree = tree_of(tmp_path / "data", {"cat": [MALE, FEMALE] * 8})
    more = [*tree.flags, *TINY, *TWO, "--runs-root", tmp_path, "--run-name", "run"]
    done = script(STAGE2, more, answer_nan)
    assert_refused(done, "no network was chosen", "errors.csv")
    assert not (tmp_path / "run/cat/cat_best.pt").exists()
    rows = naive.rows_of(tmp_path / "run/cat/metrics.csv")
    assert math.isfinite(float(rows[0]["train_loss"]))


def answer_nan():
    """Have a network that answers NaN where it does not train."""
    from petface.models.network import Network

    logits = Network.logits
    Network.logits = lambda *a: tuple(head * math.nan for head in logits(*a))


def have_precision(name):
    """Have a device on which PRECISION "auto" is this one."""
    from petface import devices
    from petface.models import network

    network.choose_precision = lambda _, device: devices.choose_precision(name, device)


@pytest.mark.parametrize("before", [pytest.param("fp32", marks=slow), "bf16"])
def test_a_run_goes_on_where_the_precision_needs_a_scaler(before, script, tmp_path):
    tree = tree_of(tmp_path / "data", {"cat": [MALE] * 9, "dog": [FEMALE] * 9})
    more = [*tree.flags, *TINY, *ONE, "--precision", "auto", "--runs-root", tmp_path]
    start = partial(script, STAGE1, [*more, "--run-name", "run"])
    stop = scripts.SignalAtStep(1, signal.SIGTERM)
    assert start(partial(have_precision, before), stop).code == 143
    done = start(partial(have_precision, "fp16")).checked()
    assert "training on cpu in fp16" in done.out and "resuming at epoch 1, step 1" in done.out
    assert_sound(tmp_path / "run")
