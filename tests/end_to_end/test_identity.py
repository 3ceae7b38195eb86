"""The identity trainer, its evaluation and `identify`, as a user runs them; computed again."""

import json
import shutil
import signal
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional

from petface.data import dataset
from petface.identity import embed
from petface.inference.loading import ComputeOptions
from petface.models import checkpoints
from tests import naive, scripts
from tests.conftest import TINY, Run, Tree, make_tree
from tests.sameness import assert_same

IDENTITY, EMBED = "train_identity.py", "tools/embed.py"
FLAGS = [*TINY, "--epochs", 2, "--weights", "none", "--normalize", "none", "--embedding-size", 16,
         "--photos-per-animal", 2, "--scale", 8, "--ema-decay", 0.5, "--patience", 0]  # fmt: skip


@pytest.fixture(scope="module")
def animals(module_folder) -> Tree:
    """The tiny tree with a split that holds more animals back."""
    tree = make_tree(module_folder / "PetFace")
    with pytest.MonkeyPatch.context() as patch:
        drawn = partial(dataset.make_splits, fractions=(0.5, 0.25, 0.25))
        patch.setattr(dataset, "make_splits", drawn)
        dataset.load_dataset(tree.images, tree.annotations)
    return tree


@pytest.fixture(scope="module")
def flags(animals) -> list[object]:
    return [*animals.flags, *FLAGS]


@pytest.fixture(scope="module")
def run(flags, module_folder) -> Run:
    arguments = [*flags, "--runs-root", module_folder, "--run-name", "straight"]
    done = Run(module_folder / "straight", scripts.run_fresh(IDENTITY, arguments))
    assert done.result.code == 0, done.result.err
    return done


@pytest.fixture(scope="module")
def summary(run):
    return json.loads((run.folder / "identity_summary.json").read_text())


def embedding_of(checkpoint, path) -> np.ndarray:
    """Embed one photo by torchvision's network and nothing of ours."""
    found = naive.logits(naive.specialist_network(checkpoint, "embedding"), naive.pixels(path, 32))
    return functional.normalize(found, dim=0).numpy()


def test_the_tables_are_what_the_network_gives_photo_by_photo(run, summary, animals):
    checkpoint = torch.load(run.folder / "best.pt", weights_only=True)
    rows = naive.rows_of(run.folder / "identity_pairs.csv")
    split = naive.splits(animals.root)
    names = {name for row in rows for name in (row["image"], row["other_image"])}
    assert {split[tuple(name.split("/")[:2])] for name in names} == {"test"}
    table = {name: embedding_of(checkpoint, animals.images / name) for name in names}
    for row in rows:
        product = table[row["image"]] @ table[row["other_image"]]
        assert float(row["similarity"]) == pytest.approx(product, abs=2e-5)
        same = row["image"].split("/")[:2] == row["other_image"].split("/")[:2]
        assert row["is_same"] == str(int(same))
    is_same = [row["is_same"] == "1" for row in rows]
    auc = roc_auc_score(is_same, [float(row["similarity"]) for row in rows])
    assert summary["verification"]["auc"] == pytest.approx(auc, abs=1e-4)
    queries = naive.rows_of(run.folder / "identity_queries.csv")
    known = [row for row in queries if row["rank_of_its_animal"]]
    top1 = np.mean([row["rank_of_its_animal"] == "1" for row in known])
    assert summary["reidentification"]["top1"] == pytest.approx(top1)
    for row in known:
        right = row["image"].split("/")[:2] == row["best_match"].split("/")[:2]
        assert right == (row["rank_of_its_animal"] == "1")
    assert run.result.figures()["test_top1"] == f"{top1:.4f}"


def test_the_animals_that_were_learnt_are_of_the_train_split(run, animals):
    checkpoint = torch.load(run.folder / "best.pt", weights_only=True)
    split = naive.splits(animals.root)
    assert {split[tuple(name.split("/"))] for name in checkpoint["animals"]} == {"train"}
    assert checkpoint["model"]["heads.animals.weight"].shape == (len(checkpoint["animals"]), 16)
    assert checkpoint["matching"]["false_match_rate"] == 0.01


def test_a_stopped_run_resumes_to_the_same_network(run, flags, module_folder, script):
    arguments = [*flags, "--runs-root", module_folder, "--run-name", "stopped"]
    stopped = script(IDENTITY, arguments, scripts.SignalAtStep(3, signal.SIGTERM))
    assert stopped.code != 0 and "resume" in (stopped.out + stopped.err)
    script(IDENTITY, arguments).checked()
    assert_same(run.folder, module_folder / "stopped")


def test_a_photo_is_identified_in_a_folder_and_in_embeddings(run, animals, script, tmp_path):
    known, best = animals.images / "dog", run.folder / "best.pt"
    out = tmp_path / "dogs.npy"
    embedded = script(EMBED, [known, "--checkpoint", best, "--out", out, "--device", "cpu"])
    assert "dog/000002/00.png" in embedded.checked().err  # an empty file is left out
    photo = known / "000004" / "00.png"
    identify = ["identify", photo, "--identity-checkpoint", best, "--gallery"]
    for place, name in ((known, "000004"), (out, str(known / "000004"))):
        told = script(scripts.INFERENCE, [*identify, place, "--json"]).checked()
        answer = json.loads(told.out.splitlines()[-1])
        assert name in dict(answer["topk"]) or answer["animal"] == "unknown"
        assert len(answer["topk"]) == 3
    for words, named in (
        ([*identify, tmp_path / "no.npy"], "no.npy"),
        ([photo, "--stage1-checkpoint", best], "class_to_index"),  # it names no species
    ):
        scripts.assert_refused(script(scripts.INFERENCE, words), named)


def test_features_of_other_networks_stand_beside_it(run, animals, stage1_run, script, tmp_path):
    arguments = [run.folder / "best.pt", *animals.flags, "--device", "cpu", "--out-dir", tmp_path,
                 "--baselines", stage1_run.folder / "best.pt"]  # fmt: skip
    done = script("tools/evaluate_identity.py", arguments).checked()
    found = json.loads((tmp_path / "identity_summary.json").read_text())
    assert set(found["baselines"]) == {"hash of the photo", str(stage1_run.folder / "best.pt")}
    again = json.loads((run.folder / "identity_summary.json").read_text())
    assert found["verification"]["auc"] == pytest.approx(again["verification"]["auc"], abs=1e-4)
    assert "top-1 gained over it" in done.out


def test_animals_that_a_network_met_are_not_called_unseen(run, summary, animals, script):
    before = (run.folder / "identity_summary.json").read_bytes()
    arguments = [run.folder / "best.pt", *animals.flags, "--split", "val"]
    assert "NOT unseen" in script("tools/evaluate_identity.py", arguments).checked().out
    assert (run.folder / "identity_summary.json").read_bytes() == before  # of the test split
    found = json.loads((run.folder / "val" / "identity_summary.json").read_text())
    assert (found["split"], summary["split"]) == ("val", "test")
    assert found["learnt"]["pairs"] == found["verification"]["num_pairs"] > 0
    assert summary["learnt"] == {"pairs": 0, "queries": 0}


def test_answers_that_are_no_numbers_are_never_an_animal(run, animals, script, tmp_path):
    content = torch.load(run.folder / "best.pt", weights_only=True)
    content["model"]["heads.embedding.bias"] *= float("nan")
    checkpoints.save(tmp_path / "nan.pt", content)
    evaluated = script("tools/evaluate_identity.py", [tmp_path / "nan.pt", *animals.flags])
    scripts.assert_refused(evaluated, "nan.pt", "not finite")
    scripts.assert_refused(
        script(EMBED, [animals.images / "dog", "--checkpoint", tmp_path / "nan.pt"]), "not finite"
    )


def test_unreadable_photos_of_the_validation_split_are_no_pairs(animals, script, tmp_path):
    tree = Tree(shutil.copytree(animals.root, tmp_path / "PetFace"))
    for (species, record), part in naive.splits(tree.root).items():
        if part == "val":
            min((tree.images / species / record).glob("*.png")).write_bytes(b"")
    arguments = [*tree.flags, *FLAGS, "--max-bad-fraction", 0.5, "--runs-root", tmp_path]
    script(IDENTITY, [*arguments, "--run-name", "few"]).checked()
    best = torch.load(tmp_path / "few" / "best.pt", weights_only=True)
    assert -1 <= best["matching"]["threshold"] <= 1.01
    assert 0 <= best["figures"]["val_auc_frac"] <= 1


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--photos-per-animal", 16], "BATCH_SIZE = 8"),
        (["--head-batchnorm", "--embedding-size", 0], "EMBEDDING_SIZE above 0"),
        (["--embedding-size", 5000], "4096"),
        (["--margin", 3], "<= 2"),
    ],
)
def test_settings_that_make_no_network_are_refused(flags, script, tmp_path, more, words):
    told = script(IDENTITY, [*flags, *more, "--runs-root", tmp_path])
    scripts.assert_refused(told, words, code=2)


def test_the_features_of_a_specialist_are_its_body(stage2_run):
    path = stage2_run.folder / "cat" / "cat_best.pt"
    found = embed.load_embedder(path, ComputeOptions.choose("cpu"))
    pixels = torch.randint(0, 255, (2, 32, 32, 3), dtype=torch.uint8)
    (rows,) = found.network.answer_pixels(pixels)
    assert rows.shape == (2, 512) and rows.norm(dim=1).allclose(torch.ones(2))


def test_two_processes_learn_what_one_does(run, flags, module_folder, tmp_path):
    arguments = [*flags, "--batch-size", 4, "--runs-root", module_folder, "--run-name", "two"]
    done = scripts.run_together(IDENTITY, arguments, tmp_path)
    assert [one.code for one in done] == [0, 0], done[0].err + done[1].err
    assert not done[1].out
    one, two = (
        json.loads((run.folder.parent / n / "final.json").read_text()) for n in ("straight", "two")
    )
    assert two["test_pairs"] == one["test_pairs"] and two["epochs"] == one["epochs"]
    first = torch.load(module_folder / "two" / "best.pt", weights_only=True)
    assert first["animals"] == torch.load(run.folder / "best.pt", weights_only=True)["animals"]
