"""Bad images and missing labels in training, on the real scripts."""

import csv
import json
import math

import numpy as np
import pandas
import pytest
import torch

from tests import naive, scripts
from tests.conftest import BOMB, EMPTY, TINY_STAGE1, TRUNCATED


def test_more_bad_images_than_allowed_stop_the_run_with_a_list(script, tree, tmp_path):
    """Three of 129 are bad; 1 % allows one, and two are always allowed."""
    flags = [*tree.flags, *TINY_STAGE1, "--runs-root", tmp_path, "--run-name", "run"]
    done = script(scripts.STAGE1, [*flags, "--max-bad-fraction", 0.01])
    scripts.assert_refused(
        done, "3 images could not be read, more than MAX_BAD_FRACTION allows (2)"
    )
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
    history = pandas.read_csv(stage2_run.folder / "chimp/metrics.csv")
    assert np.isfinite(history["train_loss"]).all() and (history["train_loss"] > 0).all()
    assert history["num_skipped_steps"].tolist() == [0, 0, 0]
    best = torch.load(stage2_run.folder / "chimp/chimp_best.pt", weights_only=True)
    assert all(value.isfinite().all() for value in best["model"].values())


def test_without_a_known_label_in_the_validation_part_the_training_loss_decides(
    script, tree, stage1_run, stage2_flags, tmp_path
):
    """A loss of 0 over nothing would make the first epoch the best for ever."""
    assert stage1_run.result.code == 0  # it made splits.csv
    blank = tree.copy(tmp_path / "data")
    split = naive.splits(blank.root)
    path = blank.annotations / "dog.csv"
    with path.open(newline="") as handle:
        header, *rows = csv.reader(handle)
    for row in rows:
        if split["dog", f"{int(row[0]):06d}"] == "val":
            row[1:] = ["unknown"] * (len(header) - 1)
    with path.open("w", newline="") as handle:
        csv.writer(handle).writerows([header, *rows])

    flags = [str(f).replace(str(tree.root), str(blank.root)) for f in stage2_flags]
    more = ["--runs-root", tmp_path, "--species", "dog", "--phase-epochs", 3, 1]
    script(scripts.STAGE2, [*flags, *more]).checked()
    history = pandas.read_csv(tmp_path / "stage2/dog/metrics.csv")
    assert history["val_loss"].isna().all() and history["val_breed_accuracy_frac"].isna().all()
    best = torch.load(tmp_path / "stage2/dog/dog_best.pt", weights_only=True)
    assert best["figures"]["epoch"] == history["epoch"][history["train_loss"].idxmin()]
    assert math.isnan(best["figures"]["val_loss"])
    final = json.loads((tmp_path / "stage2/dog/final.json").read_text())
    assert final["test_breed_known"] > 0
