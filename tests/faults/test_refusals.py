"""Data, checkpoints and names that cannot be used, on the real scripts: one line, nothing lost."""

from __future__ import annotations

import fcntl
import os
import signal

import pytest
import torch

from tests import naive, scripts
from tests.conftest import TINY_STAGE1
from tests.faults.test_checkpoints import Planted
from tests.scripts import assert_refused


@pytest.fixture
def own(tree, stage1_run, tmp_path):
    """The dataset with its splits.csv, to change."""
    assert stage1_run.result.code == 0
    return tree.copy(tmp_path / "data")


@pytest.fixture
def stage1(script, own, tmp_path):
    flags = [*own.flags, *TINY_STAGE1, "--runs-root", tmp_path / "runs", "--run-name", "run"]
    return lambda *more, hook=None: script(scripts.STAGE1, [*flags, *more], hook)


# trees, annotations, splits


def test_the_wrong_level_of_the_tree_is_shown_with_the_right_one(stage1, own, tmp_path):
    assert_refused(stage1("--images-root", own.root), "use this folder instead", own.images)
    assert_refused(stage1("--images-root", own.images / "cat"), "images/<species>/<record>/<image>")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("Name,Breed\n1,Pinscher é\n".encode("latin-1"), ["line 2", "not UTF-8"]),
        (b"Name,Breed\n1,a,b\n", ["line 2", "3 cells"]),
        (b"Breed\na\n", ["line 1", "no column Name"]),
        (b"", ["is empty"]),
    ],
)
def test_annotations_that_are_no_table_are_named_with_their_line(stage1, own, content, words):
    (own.annotations / "cat.csv").write_bytes(content)
    assert_refused(stage1(), own.annotations / "cat.csv", *words)


@pytest.mark.parametrize("name", [scripts.STAGE1, scripts.INFERENCE])
def test_an_edited_split_and_changed_data_are_refused(script, own, evaluation_flags, tree, name):
    flags = [str(f).replace(str(tree.root), str(own.root)) for f in evaluation_flags]
    flags = flags if name == scripts.INFERENCE else own.flags
    path = own.root / "splits.csv"
    whole = path.read_text()
    path.write_text(whole.replace("test", "train", 1))
    assert_refused(script(name, flags), path, "edited", "delete")
    path.write_text(whole)
    (own.images / "dog/000099").mkdir()
    (own.images / "dog/000099/00.png").write_bytes(b".")
    assert_refused(script(name, flags), "000099", "delete")


# checkpoints


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture
def models(stage1_run, stage2_run, tmp_path):
    """Copies of stage 1 and of the specialist of cats, and the flags that name them."""
    (tmp_path / "stage2").mkdir()
    paths = tmp_path / "best.pt", tmp_path / "stage2/cat_best.pt"
    paths[0].write_bytes((stage1_run.folder / "best.pt").read_bytes())
    paths[1].write_bytes((stage2_run.folder / "cat/cat_best.pt").read_bytes())
    return paths, ["--stage1-checkpoint", paths[0], "--stage2-folder", tmp_path / "stage2",
                   "--device", "cpu"]  # fmt: skip


def test_a_damaged_checkpoint_ends_every_way_to_ask_in_one_line(script, models, tree, tmp_path):
    (stage1, cat), flags = models
    photo = tree.images / naive.photos(tree.images)[0]
    whole = cat.read_bytes()
    flipped(cat)
    evaluate = ["evaluate", *tree.flags, *flags, "--out-dir", tmp_path / "out"]
    predict = ["predict", photo, *flags, "--out", tmp_path / "a.csv"]
    for arguments in (evaluate, predict):
        assert_refused(script(scripts.INFERENCE, arguments), cat, "checksum", "copy the file again")
    cat.write_bytes(whole)
    stage1.write_bytes(stage1.read_bytes()[:99_999])
    for arguments in ([photo, *flags], predict, evaluate):
        assert_refused(script(scripts.INFERENCE, arguments), stage1, "damaged")
    assert not (tmp_path / "out").exists() and not (tmp_path / "a.csv").exists()


def test_a_damaged_last_checkpoint_is_named_and_left(stage1, tmp_path):
    assert stage1(hook=scripts.SignalAtStep(2, signal.SIGTERM)).code == 143
    last = tmp_path / "runs/run/last.pt"
    flipped(last)
    before = last.read_bytes()
    assert_refused(stage1(), last, "checksum")
    assert last.read_bytes() == before


def test_answers_that_are_not_finite_are_rows_without_a_class(script, models, tree, tmp_path):
    (stage1, _), flags = models
    content = torch.load(stage1, weights_only=True)
    content["model"]["fc.bias"][1] = float("nan")
    torch.save(content, stage1)
    folder = tree.images / "cat/000000"
    out = tmp_path / "a.csv"
    done = script(scripts.INFERENCE, ["predict", folder, *flags, "--out", out]).checked()
    num = len(list(folder.iterdir()))
    assert done.figures()["non_finite"] == str(num)
    rows = out.read_text(encoding="utf-8").splitlines()[1:]
    assert len(rows) == num and all(",non_finite,the network's answer" in row for row in rows)
    evaluate = ["evaluate", *tree.flags, *flags, "--out-dir", tmp_path / "out"]
    done = script(scripts.INFERENCE, evaluate).checked()
    text = (tmp_path / "out/petface_eval_per_image.csv").read_text(encoding="utf-8")
    assert text.count(",non_finite,,,,") == len(naive.photos(tree.images)) - 3
    assert '"non_finite": 126' in (tmp_path / "out/petface_eval_summary.json").read_text()


def test_a_class_that_is_a_path_leads_nowhere(script, models, tree, tmp_path):
    (stage1, cat), flags = models
    (tmp_path / "secret_best.pt").write_bytes(cat.read_bytes())
    content = torch.load(stage1, weights_only=True)
    names = ["../secret", *list(content["class_to_index"])[1:]]
    content["class_to_index"] = {name: k for k, name in enumerate(names)}
    content["model"]["fc.bias"][0] = 1e6
    torch.save(content, stage1)
    photo = tree.images / naive.photos(tree.images)[0]
    assert_refused(script(scripts.INFERENCE, [photo, *flags]), "'../secret'", "plain name")


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/../../out", ".."])
def test_a_run_name_that_leaves_the_runs_is_refused(stage1, script, stage2_flags, tmp_path, name):
    assert_refused(stage1("--run-name", name), repr(name), "plain name inside")
    flags = [*stage2_flags, "--runs-root", tmp_path / "runs", "--species", "cat"]
    assert_refused(script(scripts.STAGE2, [*flags, "--run-name", name]), name, "plain name inside")
    assert_refused(script(scripts.STAGE2, [*flags, "--species", name]), name)


# rivals


class HeldBy:
    """Hold a file as another process does."""

    def __init__(self, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.handle = path.open("a+b")

    def __enter__(self):
        fcntl.flock(self.handle, fcntl.LOCK_EX)

    def __exit__(self, *_):
        self.handle.close()


def test_a_second_process_on_a_table_or_a_pack_is_told_who_has_it(
    script, models, tree, evaluation_flags, tmp_path
):
    photo = tree.images / naive.photos(tree.images)[0]
    out, pack, table = tmp_path / "out", tmp_path / "pack.bin", tmp_path / "a.csv"
    for held, name, arguments in [
        (out / "petface_eval_per_image.csv", scripts.INFERENCE,
         [*evaluation_flags, "--out-dir", out]),
        (table, scripts.INFERENCE, ["predict", photo, *models[1], "--out", table]),
        (pack, "tools/pack_images.py", ["--images-root", tree.images, "--out", pack]),
    ]:  # fmt: skip
        with HeldBy(held.with_name(held.name + ".unfinished")):
            assert_refused(script(name, arguments), f"is being written by process {os.getpid()}")
        assert not held.exists()


def test_planted_code_is_not_run_by_the_script(script, models, tree, tmp_path):
    (stage1, _), flags = models
    trace = tmp_path / "trace"
    torch.save({"model": Planted(trace)}, stage1)
    photo = tree.images / naive.photos(tree.images)[0]
    done = script(scripts.INFERENCE, [photo, *flags])
    assert_refused(done, stage1, "holds pickled objects", "mkdir")
    assert not trace.exists()
