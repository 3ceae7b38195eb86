"""A disk or network that fails while photos are read: retried, then a stop that resumes."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass

import pytest

from petface import files
from petface.data import images
from petface.data.images import ImageError, decode
from petface.data.loading import FileImages
from petface.data.sources.petface import scan
from petface.errors import MachineError, UserError
from petface.inference.predict import find_photos
from tests import naive, scripts
from tests.conftest import TINY_STAGE1
from tests.data.test_images import encoded, photo
from tests.sameness import assert_same

NUMBERS = [getattr(errno, name) for name in (
    "EIO", "ESTALE", "EMFILE", "ENFILE", "ETIMEDOUT", "EACCES", "EPERM", "ENOMEM", "EINTR",
    "ENOTCONN", "ENODEV", "EHOSTDOWN", "EREMOTEIO",
)]  # fmt: skip


@dataclass(frozen=True)
class FailingDisk:
    """Fail `times` times where a photo is opened, from the `first` opening in a process on."""

    number: int
    name: str
    times: int = 1_000_000
    first: int = 1

    def __call__(self) -> None:
        calls, real = [0], images.FileIO
        files._PAUSES_S = (0.01, 0.01, 0.01)

        def opened(path):
            calls[0] += str(path).endswith(self.name)
            in_turn = self.first <= calls[0] < self.first + self.times
            if str(path).endswith(self.name) and in_turn:
                raise OSError(self.number, os.strerror(self.number), str(path))
            return real(path)

        images.FileIO = opened


@pytest.fixture
def disk(monkeypatch):
    """Let the disk fail in this process."""
    monkeypatch.setattr(images, "FileIO", images.FileIO)
    monkeypatch.setattr(files, "_PAUSES_S", files._PAUSES_S)
    return lambda *how: FailingDisk(*how)()


@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
def test_what_passes_is_not_seen_and_what_does_not_is_the_machines(number, disk, tmp_path):
    path = tmp_path / "00.png"
    path.write_bytes(encoded(photo()))
    disk(number, "00.png", 3)
    assert decode(path).shape == (37, 23, 3)
    disk(number, "00.png")
    with pytest.raises(MachineError, match=rf"00.png: .*\({errno.errorcode[number]}, ") as caught:
        decode(path)
    assert not isinstance(caught.value, ImageError) and "\n" not in str(caught.value)


def test_no_memory_is_not_the_photos_fault(monkeypatch):
    monkeypatch.setattr(files, "_PAUSES_S", (0.0,))
    monkeypatch.setattr(images.Image, "open", lambda *_, **__: bytes(1 << 62))
    with pytest.raises(MachineError, match="image of .* bytes: "):
        decode(encoded(photo(), "JPEG"))


@pytest.fixture
def small(tmp_path):
    """Two species of three records with two photos each, the files in a store of their own."""
    for place in [f"{s}/{r}/{p}.png" for s in ("cat", "dog") for r in range(3) for p in range(2)]:
        stored, link = tmp_path / "store" / place, tmp_path / "images" / place
        stored.parent.mkdir(parents=True, exist_ok=True)
        stored.write_bytes(encoded(photo()))
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(stored)
    return tmp_path


@pytest.mark.parametrize("gone", ["store", "images", "store/cat", "images/cat"])
@pytest.mark.parametrize("left", [False, True], ids=["removed", "empty"])
def test_a_place_that_is_gone_is_not_many_missing_photos(small, gone, left, monkeypatch):
    monkeypatch.setattr(files, "_PAUSES_S", (0.0,))
    source = FileImages(scan(small / "images").catalog, images.Preprocessing(8))
    everything = source.catalog.record_index * 0 + range(12)
    (small / "images/cat/0/0.png").unlink()
    shutil.rmtree(small / "images/dog/1")
    assert source.read(everything).status.tolist() == [1] + [0] * 7 + [1, 1, 0, 0]
    shutil.rmtree(small / gone)
    if left:
        (small / gone).mkdir()
    with pytest.raises(MachineError, match="ENODEV"):
        source.read(everything)


def test_a_tree_of_dead_links_names_where_the_first_leads(small):
    (small / "store").rename(small / "moved")
    target = small / "store/cat/0/0.png"
    with pytest.raises(UserError, match=f"12 broken link.*0.png -> {target}"):
        scan(small / "images")
    with pytest.raises(UserError, match=f"12 link that leads nowhere.*0.png -> {target}"):
        find_photos([str(small / "images")])
    (small / "root").symlink_to(small / "store")
    for look in (lambda path: scan(path), lambda path: find_photos([str(path)])):
        with pytest.raises(UserError, match=f"leads to {small}/store, which is not there"):
            look(small / "root/cat")


# the real scripts


def stopped(script, name, arguments, number, place, first=1):
    """Run a script on a disk that fails at one photo, then again on a sound one."""
    done = script(name, arguments, FailingDisk(number, place, first=first))
    scripts.assert_refused(done, place, errno.errorcode[number], "same command")
    return script(name, arguments).checked()


def test_a_training_stops_where_it_is_and_goes_on_as_if_nothing_had_been(
    script, tree, stage1_run, tmp_path
):
    split = naive.splits(tree.root)
    place = next(p for p in naive.photos(tree.images) if split[tuple(p.split("/")[:2])] == "val")
    flags = [*tree.flags, *TINY_STAGE1, "--runs-root", tmp_path, "--run-name", "run"]
    # the first look at the data opens it once
    again = stopped(script, scripts.STAGE1, flags, errno.ETIMEDOUT, place, first=2)
    assert "resuming at epoch 1, step" in again.out and "step 0" not in again.out
    assert_same(stage1_run.folder, tmp_path / "run")


def test_an_evaluation_stops_and_its_table_is_the_undisturbed_one(
    script, tree, evaluation_flags, evaluation_run, tmp_path
):
    place = [p for p in naive.photos(tree.images) if p.startswith("dog")][-1]
    flags = [*evaluation_flags, "--num-workers", 2, "--out-dir", tmp_path / "out"]
    again = stopped(script, scripts.INFERENCE, flags, errno.ESTALE, place)
    assert_same(evaluation_run.folder, tmp_path / "out")
    assert "unreadable 2" in again.out and "too_large 1" in again.out
    rows = naive.rows_of(tmp_path / "out/petface_eval_per_image.csv")
    said = {row["message"] for row in rows if row["status"] in ("unreadable", "too_large")}
    assert all((row["message"] != "") == (row["status"] != "ok") for row in rows
               if row["status"] not in ("no_specialist", "non_finite"))  # fmt: skip
    assert any("empty (0 bytes)" in text for text in said) and len(said) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_predictions_and_packs_stop_too(script, tree, model_flags, workers, tmp_path):
    place = naive.photos(tree.images)[-1]
    more = ["--num-workers", workers, "--out"]
    flags = ["predict", tree.images, *model_flags, *more, tmp_path / "out.csv"]
    again = stopped(script, scripts.INFERENCE, flags, errno.EMFILE, place)
    assert again.figures()["unreadable"] == "2"
    flags = ["--images-root", tree.images, "--image-size-px", 32, *more, tmp_path / "pack.bin"]
    again = stopped(script, scripts.PACK, flags, errno.EIO, place)
    assert again.figures()["unreadable"] == "3"
