"""The stage-1 trainer as a user runs it, tiny; its figures computed again by other means."""

import json
import math

import numpy as np
import pandas
import pytest
import torch

import train_resnet_minority_aug_dynamic as trainer
from petface.settings import read_settings
from tests import naive
from tests.conftest import BOMB, EMPTY, TRUNCATED

CLASSES = ["cat", "chimp", "dog", "yak"]


@pytest.fixture(scope="module")
def best(stage1_run):
    assert stage1_run.result.code == 0, stage1_run.result.err
    return torch.load(stage1_run.folder / "best.pt", weights_only=True)


@pytest.fixture(scope="module")
def last(stage1_run):
    return torch.load(stage1_run.folder / "last.pt", weights_only=True)


@pytest.fixture(scope="module")
def final(stage1_run):
    return json.loads((stage1_run.folder / "final.json").read_text())


@pytest.fixture(scope="module")
def history(stage1_run):
    return pandas.read_csv(stage1_run.folder / "metrics.csv")


def answers(checkpoint, tree, part):
    """(true, predicted) class of every readable photo of a part, one by one."""
    model, split, pairs = naive.species_network(checkpoint), naive.splits(tree.root), []
    for name in naive.photos(tree.images):
        species, record, _ = name.split("/")
        if split[species, record] == part and name not in (TRUNCATED, BOMB, EMPTY):
            logits = naive.logits(model, naive.pixels(tree.images / name, 32))
            pairs.append((CLASSES.index(species), int(logits.argmax())))
    return np.array(pairs)


def recalls(pairs):
    """Recall of every class, NaN where it does not occur."""
    hits = [pairs[pairs[:, 0] == k, 1] == k for k in range(len(CLASSES))]
    return [float(h.mean()) if len(h) else math.nan for h in hits]


def average_of(last):
    """The network that was measured at the end of an epoch: EMA_DECAY is on."""
    return {**last, "model": last["average"]["model"]}


def test_the_files_of_a_run_are_there(stage1_run, best):  # noqa: ARG001 best checks the exit code
    files = {p.name for p in stage1_run.folder.iterdir() if p.suffix != ".png"}  # the report's
    assert files == {
        "best.pt", "last.pt", "metrics.csv", "settings.toml",
        "environment.json", "errors.csv", "final.json", "confusion_test_species.csv",
        "label_conflicts.csv", "report.html", "run.lock", "classes.csv",
        "classification_test_species.csv", "classification_test_species.txt",
    }  # fmt: skip


def test_best_is_a_network_with_its_classes_and_its_preprocessing(best):
    assert best["class_to_index"] == {name: index for index, name in enumerate(CLASSES)}
    assert best["preprocessing"] == {"size_px": 32, "resize": "stretch", "mean": None, "std": None}
    assert best["model"]["fc.weight"].shape == (4, 512)
    naive.species_network(best)  # strict: nothing is missing, nothing is left over


def test_best_is_the_epoch_with_the_best_validation_accuracy(best, history, final):
    figures = history["val_accuracy_frac"]
    number = int(figures.idxmax())  # the first of equals
    assert best["figures"]["epoch"] == final["best_epoch"] == number + 1
    assert final["val_accuracy"] == figures.max()


def test_the_figures_are_those_of_one_photo_at_a_time(best, last, final, history, tree):
    test, val, val_last = (
        answers(best, tree, "test"), answers(best, tree, "val"),
        answers(average_of(last), tree, "val"),
    )  # fmt: skip
    right = lambda pairs: (pairs[:, 0] == pairs[:, 1]).mean()  # noqa: E731
    assert final["test_images"] == len(test)
    assert final["test_accuracy"] == pytest.approx(right(test))
    assert final["test_balanced_accuracy"] == pytest.approx(np.nanmean(recalls(test)))
    assert final["test_recall"] == pytest.approx(
        {name: r for name, r in zip(CLASSES, recalls(test), strict=True) if r == r}
    )
    assert final["val_accuracy"] == pytest.approx(right(val))
    assert history["val_accuracy_frac"].iloc[-1] == pytest.approx(right(val_last))
    assert right(test) > 0.4, "four colours should be told apart better than by chance"


def test_the_confusion_table_is_that_of_one_photo_at_a_time(best, stage1_run, tree):
    table = pandas.read_csv(stage1_run.folder / "confusion_test_species.csv", index_col=0)
    assert list(table.columns) == list(table.index) == CLASSES
    expected = np.zeros((4, 4), int)
    for true, predicted in answers(best, tree, "test"):
        expected[true, predicted] += 1
    assert np.array_equal(table.to_numpy(), expected)


def test_the_calibration_is_that_of_the_validation_part_measured_on_the_test_part(
    best, final, tree, stage1_run
):
    """tests/test_calibration.py counts the figures in loops."""
    fitted, measured = best["calibration"]["species"], final["calibration"]["species"]
    assert measured["fitted"] == fitted and fitted["wanted_accuracy"] == 0.9
    assert fitted["num"] == len(answers(best, tree, "val"))
    assert measured["num"] == len(answers(best, tree, "test"))
    assert fitted["temperature"] == 1.0  # too few photos to fit one
    assert fitted["threshold"] is None and measured["coverage"] == 0.0  # and to promise 90 %
    block = stage1_run.result.figures()
    for name in ("ece_before", "ece_after"):
        assert block[f"test_species_{name}"] == f"{measured[name]:.4f}"
    assert block["test_species_answered_share"] == "0.0000"


def test_the_sampler_follows_the_difficulty_of_the_last_epoch(last, tree, stage1_run):
    """Median / count, then difficulty / median difficulty of 0.05 at least, clipped to 1..3."""
    split = naive.splits(tree.root)
    species = [name.split("/") for name in naive.photos(tree.images)]
    train = [s for s, record, _ in species if split[s, record] == "train"]
    counts = [train.count(name) for name in CLASSES]
    pairs = answers(average_of(last), tree, "val")
    recall, support = recalls(pairs), np.bincount(pairs[:, 0], minlength=len(CLASSES))
    difficulty = np.where(support >= 3, 1 - np.array(recall), np.nan)
    median = max(float(np.nanmedian(difficulty)), 0.05)
    for k, weight in enumerate(last["sampler_weights"]):
        base = min(max(np.median(counts) / counts[k], 1.0), 3.0)
        factor = 1.0 if math.isnan(difficulty[k]) else difficulty[k] / median
        assert weight == pytest.approx(min(max(base * factor, 1.0), 3.0))
    assert len(set(last["sampler_weights"])) > 1
    table = pandas.read_csv(stage1_run.folder / "classes.csv")
    assert table["species"].tolist() == list(CLASSES) * 3
    seen = table[table["epoch"] == 3]["recall"]
    np.testing.assert_allclose(seen, recall, atol=1e-4)


def test_the_learning_rate_is_the_schedule_at_the_last_step(history, final):
    assert final["epochs"] == 3
    for epoch, rate in enumerate(history["learning_rate"]):
        progress = (epoch + 11 / 12) / 3  # 94 images in steps of at most 8
        cosine = 0.5 * (1 + math.cos(math.pi * (progress - 0.1) / 0.9))
        assert rate == pytest.approx(1e-3 * cosine)


def test_images_that_cannot_be_read_are_listed_and_counted(stage1_run, final, tree):
    table = pandas.read_csv(stage1_run.folder / "errors.csv")
    assert table["species"].tolist() == ["cat", "cat", "dog"]
    for message, name in zip(table["message"], (TRUNCATED, BOMB, EMPTY), strict=True):
        assert str(tree.images / name) in message
    assert final["unreadable_per_species"] == {"cat": 2, "dog": 1}
    assert final["num_unreadable"] == 3


def test_the_settings_are_a_preset_that_gives_the_same_run(stage1_run, tree):
    path = stage1_run.folder / "settings.toml"
    settings = read_settings(trainer, ["--config", str(path)], switches={"force": ""})
    assert settings.EPOCHS == 3 and settings.BATCH_SIZE == 8 and settings.SCHEDULE == "cosine"
    assert str(tree.images) == settings.IMAGES_ROOT
    defaults = read_settings(trainer, [], switches={"force": ""}).as_dict()
    changed = {k for k, v in settings.as_dict().items() if v != defaults[k]}
    assert changed == {
        "IMAGES_ROOT", "ANNOTATIONS_ROOT", "RUNS_ROOT", "RUN_NAME", "IMAGE_SIZE_PX", "PRECISION",
        "DEVICE", "BATCH_SIZE", "NUM_WORKERS", "MAX_BAD_FRACTION", "EPOCHS", "SCHEDULE",
        "WARMUP_FRAC", "HEAD_EXCLUSION_MAX", "MIN_RECALL_SUPPORT", "EMA_DECAY",
        "MIX", "MIX_ADAPTS", "CLIP_NORM",
    }  # fmt: skip


def test_the_last_thing_printed_is_the_figures(stage1_run, final):
    block = stage1_run.result.figures()
    assert block["test_accuracy"] == f"{final['test_accuracy']:.4f}"
    assert block["checkpoint"] == str(stage1_run.folder / "best.pt")
    assert block.pop("report") == str(stage1_run.folder / "report.html")
    tables = {"test_recall", "unreadable_per_species", "calibration"}
    assert set(block) == set(final) - tables
