"""A run knows its data: what changed between a stop and a resume is listed before anything is
written; what the first weights learnt from is inherited; a finished run can be gone on from.
"""

import csv
import hashlib
import json
import os
import shutil
import signal
from functools import partial

import numpy as np
import pytest
import torch

from petface.analysis.sweeps import SweepRun, write_sweep
from petface.data import fingerprint
from petface.data.dataset import load_dataset
from petface.models import checkpoints, first_weights
from tests import scripts
from tests.conftest import TINY, TINY_STAGE1, TINY_STAGE2
from tests.naive import rows_of
from tests.sameness import assert_same
from tests.scripts import assert_refused


def load(tree):
    return load_dataset(tree.images, tree.annotations)


def edit_labels(tree, change, species="cat"):
    path = tree.annotations / f"{species}.csv"
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    change(rows)
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def flip(rows):
    names = {"Male": "Female", "Female": "Male"}
    for row in rows:
        row["Gender"] = names.get(row["Gender"], row["Gender"])


def touch(tree):
    os.utime(tree.images / "cat/000005/01.png", ns=(1, 1))


def grow(tree):
    """Another photo of the same name and time."""
    path = tree.images / "cat/000005/01.png"
    found = path.stat()
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def split_anew(tree):
    for path in tree.root.glob("splits.*"):
        path.unlink()
    load_dataset(tree.images, tree.annotations, seed=5)


def another_class(tree):
    """One more species with its records; the split is made anew with it."""
    shutil.copytree(tree.images / "cat", tree.images / "ocelot")
    for path in tree.root.glob("splits.*"):
        path.unlink()


def rename_species(tree):
    (tree.images / "cat").rename(tree.images / "zebra")
    (tree.annotations / "cat.csv").rename(tree.annotations / "zebra.csv")
    for path in tree.root.glob("splits.*"):
        path.unlink()


def new_label(tree):
    edit_labels(tree, lambda rows: rows[1].update(Breed="Aardwolf"))


def reorder(tree):
    """The first class of Color1 becomes the last one."""

    def rename(rows):
        for row in rows:
            row["Color1"] = row["Color1"].replace("Black", "Zinc")

    edit_labels(tree, rename)


BOTH = {
    "touched": (touch, ["photos of cat"]),
    "split anew": (split_anew, ["records are in another split"]),
    "renamed": (rename_species, ["'zebra' is new", "'cat' is gone"]),
    "another class": (another_class, ["'ocelot' is new", "records: 16 are new"]),
}
SPECIALIST = {
    "flipped": (lambda tree: edit_labels(tree, flip), ["labels of cat gender"]),
    "new label": (new_label, ["classes of breed", "'Aardwolf' is new"]),
    "reordered": (reorder, ["classes of color1", "'Zinc' is new", "'Black' is gone"]),
    "grown": (grow, ["photos of cat"]),
    "split anew": BOTH["split anew"],
}


@pytest.fixture(scope="module")
def stopped(tree, module_folder):
    """A tree of its own, and runs of both stages on it that were stopped in their first epoch."""
    own = tree.copy(module_folder / "PetFace")
    flags = [*own.flags, *TINY, "--runs-root", module_folder / "runs"]
    stop = scripts.SignalAtStep(3, signal.SIGTERM)
    for name, more in (
        (scripts.STAGE1, ["--run-name", "one"]),
        (scripts.STAGE2, ["--run-name", "two", "--species", "cat", "--weights", "none"]),
    ):
        assert scripts.run_forked(name, [*flags, *more], module_folder, stop).code == 143
    return own


def copy_of(stopped, tmp_path, script, name):
    """Return a copy of the stopped runs and of their tree, and what resumes the run `name`."""
    tree = stopped.copy(tmp_path / "data/PetFace")
    shutil.copytree(stopped.root.parent / "runs", tmp_path / "runs")
    script_of = {"one": scripts.STAGE1, "two": scripts.STAGE2}[name]
    more = ["--species", "cat", "--weights", "none"] if name == "two" else []
    flags = [*tree.flags, *TINY, *more, "--runs-root", tmp_path / "runs", "--run-name", name]
    stop = scripts.SignalAtStep(1, signal.SIGTERM)
    return tree, partial(script, script_of, flags, stop)


def bytes_of(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "run.lock")
    return {path: path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        *(pytest.param("one", *case, id=f"stage 1 {name}") for name, case in BOTH.items()),
        *(pytest.param("two", *case, id=f"stage 2 {name}") for name, case in SPECIALIST.items()),
    ],
)
def test_what_changed_is_listed_before_anything_is_written(
    stopped, tmp_path, script, name, change, words
):
    tree, resume = copy_of(stopped, tmp_path, script, name)
    change(tree)
    before = bytes_of(tmp_path / "runs")
    assert_refused(resume(), "holds an unfinished run with other data", *words, "--force")
    assert bytes_of(tmp_path / "runs") == before


@pytest.mark.parametrize("name", ["one", "two"])
def test_the_same_data_elsewhere_goes_on_and_says_what_is_not_the_same(
    stopped, tmp_path, script, name
):
    """Labels that are not learnt, and versions."""
    tree, resume = copy_of(stopped, tmp_path, script, name)
    (path,) = (tmp_path / "runs" / name).rglob("*last.pt")
    last = checkpoints.load(path)
    last["data"]["versions"]["numpy"] = "1.0"
    checkpoints.save(path, last)
    edit_labels(tree, flip, "cat" if name == "one" else "dog")
    done = resume()
    assert done.code == 143 and "resuming at epoch 1, step 3" in done.out, done
    assert "resuming with another IMAGES_ROOT" in done.out
    assert f"numpy 1.0 -> {np.__version__}" in done.out
    assert ("labels changed, unused in training: cat gender" in done.out) == (name == "one")


def test_a_checkpoint_says_what_it_learnt_from_and_who_made_it(stage1_run, stage2_run, tree):
    dataset = load(tree)
    stage1 = checkpoints.load(stage1_run.folder / "best.pt")
    data, hashes = stage1["data"], fingerprint.hashes_of(dataset)
    for number, part in enumerate(("train", "val", "test")):
        expected = np.sort(hashes[dataset.record_split == number])
        assert (data["records"][part].numpy() == expected).all()
    assert data["classes"] == {"species": list(dataset.catalog.classes)}
    own = np.frombuffer(hashlib.sha256(b"cat\n000003").digest()[:8], "<i8")
    assert own in hashes
    run = stage1["run"]
    assert run["torch"] == torch.__version__ and run["device"] == "cpu"
    assert (
        run["parameters"]
        == run["trainable"]
        == sum(
            value.numel()
            for name, value in stage1["model"].items()
            if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        )
    )
    assert run["metrics"] == stage1["figures"] and len(run["commit"]) in (0, 40)
    cat = checkpoints.load(stage2_run.folder / "cat/cat_best.pt")
    assert 0 < cat["run"]["trainable"] < cat["run"]["parameters"]
    inherited = cat["data"]["inherited"].numpy()  # stage 1's records of other species
    seen = hashes[(dataset.record_split < 2) & (dataset.catalog.record_class > 0)]
    assert set(inherited.tolist()) == set(seen.tolist())
    assert json.dumps(fingerprint.to_json(cat["data"]))
    drawn = {**cat["data"], "made_up": True}  # an export keeps it, too
    back = fingerprint.from_json(json.loads(json.dumps(fingerprint.to_json(drawn))))
    assert cat["data"]["made_up"] is False and back["made_up"] is True
    assert (fingerprint.seen_by(back, hashes) == fingerprint.seen_by(cat["data"], hashes)).all()


@pytest.mark.parametrize(
    "data",
    [7, {}, {"records": 3}, {"records": {"train": [1], "val": [], "test": []}, "inherited": []}],
)
def test_a_fingerprint_that_makes_no_sense_is_a_message(tmp_path, data):
    with pytest.raises(checkpoints.CheckpointError, match="is malformed"):
        checkpoints.fingerprint_in(tmp_path / "best.pt", {"data": data})


def test_first_weights_of_another_split_are_said_and_of_an_unknown_source_too(
    stage1_run, tree, tmp_path
):
    path, own = stage1_run.folder / "best.pt", tree.copy(tmp_path / "PetFace")
    split_anew(own)
    data = first_weights.describe_learnt(load(own), str(path), "auto")
    both = np.isin(data["records"]["test"], data["inherited"])
    assert both.any()
    torch.save(checkpoints.load(path)["model"], tmp_path / "plain.pt")
    data = first_weights.describe_learnt(load(own), str(tmp_path / "plain.pt"), "auto")
    assert data["unknown"] == ["weights of plain.pt"] and not len(data["inherited"])


def test_a_run_whose_first_weights_know_its_test_records_says_so(
    script, stage1_run, tree, tmp_path
):
    own = tree.copy(tmp_path / "PetFace")
    split_anew(own)
    flags = [*own.flags, *TINY_STAGE1, "--runs-root", tmp_path, "--run-name", "one"]
    more = ["--epochs", 1, "--weights", stage1_run.folder / "best.pt"]
    done = script(scripts.STAGE1, [*flags, *more])
    final = json.loads((tmp_path / "one/final.json").read_text())
    words = final["contaminated"]
    num, total = int(words.split()[0]), int(words.split()[2])
    assert 0 < num <= total == 8 and done.figures()["contaminated"] == words
    assert f"contaminated: {words}" in (tmp_path / "one/report.html").read_text()
    told = write_sweep(tmp_path / "sweep", [SweepRun("a", "seed1", "", final)])
    assert f"contaminated: {words}: a seed1" in told
    assert rows_of(tmp_path / "sweep/runs.csv")[0]["contaminated"] == words


def test_a_finished_run_goes_on_with_more_epochs(script, tree, tmp_path):
    """Without a schedule over the epochs, 1 epoch and 1 more are 2 at once."""
    constant = ["--schedule", "constant", "--warmup-frac", 0, "--epochs", 2]
    flags = [*tree.flags, *TINY_STAGE1, *constant, "--runs-root", tmp_path]
    run = partial(script, scripts.STAGE1)
    assert run([*flags, "--run-name", "straight"]).code == 0
    assert run([*flags, "--run-name", "more", "--epochs", 1]).code == 0
    longer = [*flags, "--run-name", "more"]
    assert_refused(run(longer), "holds a finished run", "--extend")
    stop = scripts.SignalAtStep(5, signal.SIGTERM)
    done = run([*longer, "--extend"], stop)
    assert done.code == 143 and "EPOCHS: 1 -> 2" in done.out
    assert not (tmp_path / "more/final.json").exists()
    assert run([*longer, "--extend"]).code == 0  # the same command
    assert_same(tmp_path / "straight", tmp_path / "more")


def test_force_goes_on_with_its_own_work_and_never_leaves_a_finished_state(script, tree, tmp_path):
    flags = [*tree.flags, *TINY_STAGE2, "--weights", "none", "--runs-root", tmp_path,
             "--run-name", "two", "--species", "cat", "chimp", "--phase-epochs", 1, 1]  # fmt: skip
    run = partial(script, scripts.STAGE2)
    assert run(flags).code == 0
    before = (tmp_path / "two/cat/cat_best.pt").stat().st_mtime_ns
    for call in (1, 2):  # killed while the old files are deleted
        kill = scripts.kill_before_call("petface.training.runs", "_clear", call)
        assert run([*flags, "--force"], kill).code == -9
    done = run([*flags, "--force"], scripts.SignalAtStep(2 * 4 + 3, signal.SIGTERM))
    assert done.code == 143 and (tmp_path / "two/cat/cat_best.pt").stat().st_mtime_ns != before
    assert not (tmp_path / "two/chimp/final.json").exists()
    again = run([*flags, "--force"])
    assert again.code == 0 and "cat: finished before, left alone" in again.out
    assert "resuming at epoch" in again.out and not (tmp_path / "two/forced.txt").exists()
