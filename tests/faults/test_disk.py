"""Disks and networks that fail: photos are tried again, then a stop that resumes; whole files."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import shutil
import signal
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path

import numpy as np
import pytest
import torch

from petface import files
from petface.data import images, splits
from petface.data.dataset import load_dataset
from petface.data.images import ImageError, decode
from petface.data.loading import FileImages
from petface.data.sources.petface import scan
from petface.errors import MachineError, UserError
from petface.inference.predict import find_photos
from petface.training import runs
from tests import naive, scripts
from tests.conftest import TINY_STAGE1
from tests.data.test_images import encoded, photo
from tests.end_to_end.test_resume import loads
from tests.sameness import assert_same

NUMBERS = [getattr(errno, name) for name in (
    "EIO", "ESTALE", "EMFILE", "ENFILE", "ETIMEDOUT", "EACCES", "EPERM", "ENOMEM", "EINTR",
    "ENOTCONN", "ENODEV", "EHOSTDOWN", "EREMOTEIO",
)]  # fmt: skip


# ---- One photo, one tree ----


@dataclass(frozen=True)
class FailingDisk:
    """Fail where a photo is opened, or in the middle of it, from the `first` opening on."""

    number: int
    name: str
    times: int = 1_000_000
    first: int = 1
    in_middle: bool = False

    def __call__(self) -> None:
        files._PAUSES_S, calls, disk = (0.01, 0.01, 0.01), itertools.count(1), self

        class Photo(FileIO):
            """A file that opens and reads where it is not its turn to fail."""

            def __init__(self, path: str) -> None:
                is_meant = str(path).endswith(disk.name)
                self.fails = is_meant and 0 <= next(calls) - disk.first < disk.times
                if self.fails and not disk.in_middle:
                    raise OSError(disk.number, os.strerror(disk.number), str(path))
                super().__init__(path)

            def read(self, size: int = -1) -> bytes:
                if self.fails:
                    raise OSError(disk.number, os.strerror(disk.number), str(self.name))
                return super().read(size)

        images.FileIO = Photo


def test_what_passes_is_not_seen_and_what_does_not_is_the_machines(monkeypatch, tmp_path):
    path = tmp_path / "00.png"
    path.write_bytes(encoded(photo()))
    monkeypatch.setattr(files, "_PAUSES_S", ())
    for number in NUMBERS:
        with monkeypatch.context() as patch:
            patch.setattr(images, "FileIO", FileIO)
            FailingDisk(number, "00.png", 3)()
            assert decode(path).shape == (37, 23, 3)
            FailingDisk(number, "00.png")()
            words = rf"00.png: .*\({errno.errorcode[number]}, "
            with pytest.raises(MachineError, match=words) as caught:
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
    (small / "root").symlink_to(small / "store")
    for look, words in (
        (scan, "12 broken link"),
        (lambda path: find_photos([str(path)]), "12 link that leads nowhere"),
    ):
        with pytest.raises(UserError, match=f"{words}.*0.png -> {target}"):
            look(small / "images")
        with pytest.raises(UserError, match=f"leads to {small}/store, which is not there"):
            look(small / "root/cat")


@pytest.mark.parametrize("target", ["not_mounted/splits.csv", "splits.csv"])
def test_no_new_split_is_made_in_place_of_a_dead_link(tree, tmp_path, target):
    """The disk that holds the split may come back; a new one would change what is compared."""
    path = tmp_path / "splits.csv"
    path.symlink_to(target)
    with pytest.raises(UserError, match="leads to .*, which is not there"):
        load_dataset(tree.images, tree.annotations, splits_file=path)
    assert path.is_symlink() and [*tmp_path.iterdir()] == [path]


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file that gives EIO")
@pytest.mark.parametrize("name", ["splits.csv", "splits.json"])
def test_a_split_that_the_disk_does_not_give_is_not_to_be_deleted(tmp_path, monkeypatch, name):
    path, one = tmp_path / "splits.csv", (np.array(["cat"]), np.array(["7"]))
    splits.write_splits(path, *one, np.zeros(1, np.int8), seed=0)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/proc/self/mem")
    monkeypatch.setattr(files, "_PAUSES_S", (0.0,))
    with pytest.raises(MachineError, match=rf"{name}: .*EIO.*the same command resumes"):
        splits.read_splits(path, *one)


# ---- The real scripts on a disk that no longer gives a photo ----


@pytest.fixture(scope="module")
def command(tree, stage1_run, stage2_flags, model_flags, evaluation_flags):
    """Return the words of a program that writes into a folder."""
    photos, judge = ["--images-root", tree.images], "tools/find_label_errors.py"
    stage1 = ["--checkpoint", stage1_run.folder / "best.pt", "--device", "cpu", "--num-workers", 0]

    def words(program: str, out: Path) -> list[object]:
        runs = ["--runs-root", out.parent, "--run-name", out.name]
        return {
            "stage1": [scripts.STAGE1, *tree.flags, *TINY_STAGE1, *runs],
            "stage2": [scripts.STAGE2, *stage2_flags, *runs],
            "evaluate": [scripts.INFERENCE, *evaluation_flags, "--out-dir", out],
            "predict": [scripts.INFERENCE, "predict", tree.images, *model_flags,
                        "--out", out / "a.csv"],
            "pack": [scripts.PACK, *photos, "--image-size-px", 32, "--out", out / "a.bin"],
            "audit": ["tools/audit.py", *tree.flags, "--workers", 0, "--out", out],
            "label_errors": [judge, *tree.flags, *stage1, "--out", out],
        }[program]  # fmt: skip

    return words


ETIMEDOUT = [("ETIMEDOUT", False)]
FAULTS = [("EIO", True), ("EIO", False), ("ESTALE", False), ("EMFILE", False), ("EACCES", False),
          ("ESTALE", True)]  # fmt: skip  # and whether in the middle of a file
FINISHED = {"final.json", "petface_eval_summary.json", "a.csv", "a.bin", "audit.json",
            "label_errors.csv"}  # fmt: skip


@pytest.fixture
def straight(script, command, stage1_run, stage2_run, evaluation_run, tmp_path):
    """Give the folder of an undisturbed run of a program."""

    def folder(program: str) -> Path:
        done = {"stage1": stage1_run.folder, "stage2": stage2_run.folder,
                "evaluate": evaluation_run.folder}  # fmt: skip
        if program not in done:
            name, *flags = command(program, tmp_path / "straight")
            script(name, flags).checked()
        return done.get(program, tmp_path / "straight")

    return folder


@pytest.mark.parametrize(
    ("program", "more", "faults"),
    [
        ("stage1", [], ETIMEDOUT),
        ("evaluate", ["--num-workers", 2], ETIMEDOUT),
        ("predict", [], ETIMEDOUT),
        ("predict", ["--num-workers", 2], ETIMEDOUT),
        ("pack", ["--num-workers", 2], ETIMEDOUT),
        *(
            pytest.param(name, [], FAULTS, marks=pytest.mark.slow)
            for name in ("stage1", "stage2", "evaluate", "predict", "pack", "audit", "label_errors")
        ),
    ],
)
def test_a_program_stops_where_it_is_and_goes_on_as_if_nothing_had_been(
    script, tree, command, straight, program, more, faults, tmp_path
):
    """Each fault in turn, in one folder; then the same command ends as if nothing had been."""
    split, photos, first = naive.splits(tree.root), naive.photos(tree.images), 1
    place = [name for name in photos if name.startswith("dog")][-1]
    if program in ("stage1", "stage2"):  # the first look at the data opens it once
        place = next(name for name in photos if split[tuple(name.split("/")[:2])] == "val")
        first = 2
    name, *flags = command(program, tmp_path / "out")
    for fault, in_middle in faults:
        disk = FailingDisk(getattr(errno, fault), place, first=first, in_middle=in_middle)
        done = script(name, [*flags, *more], disk)
        scripts.assert_refused(done, place, fault, "same command")
        assert not FINISHED & {path.name for path in (tmp_path / "out").rglob("*")}, fault
    again = script(name, [*flags, *more]).checked()
    assert_same(straight(program), tmp_path / "out")
    if program == "stage1":
        assert "resuming at epoch 1, step" in again.out and "step 0" not in again.out
    elif program == "evaluate":
        assert "unreadable 2" in again.out and "too_large 1" in again.out
        rows = naive.rows_of(tmp_path / "out/petface_eval_per_image.csv")
        said = {row["message"] for row in rows if row["status"] in ("unreadable", "too_large")}
        assert any("empty (0 bytes)" in text for text in said) and len(said) == 3


def without_locks(number):
    """Have a file system without locks."""

    def flock(*_):
        raise OSError(number, os.strerror(number))

    fcntl.flock = flock


@pytest.mark.slow
@pytest.mark.parametrize("program", ["stage1", "evaluate", "predict", "pack"])
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_costs_one_warning(
    script, command, straight, program, number, tmp_path
):
    name, *flags = command(program, tmp_path / "out")
    done = script(name, flags, partial(without_locks, number)).checked()
    assert done.err.count("cannot be locked") == 1 and os.strerror(number) in done.err
    assert_same(straight(program), tmp_path / "out")


# ---- A full disk ----


def test_a_disk_that_fills_while_saving_leaves_whole_files(script, command, tmp_path):
    """best.pt takes 45 MB, last.pt with the optimizer's state 134 MB."""
    folder, (name, *flags) = tmp_path / "run", command("stage1", tmp_path / "run")
    full = partial(script, name, flags, partial(scripts.limit, "RLIMIT_FSIZE", 60_000_000))
    scripts.assert_refused(full(), f"error: cannot write {folder / 'last.pt'}: ", "bytes free")
    assert not list(folder.glob("*.partial-write")) and not (folder / "last.pt").exists()
    torch.load(folder / "best.pt", weights_only=True)
    assert script(name, flags, scripts.SignalAtStep(12 + 3, signal.SIGTERM)).code == 143
    before = (folder / "last.pt").read_bytes()
    assert full().code == 1 and (folder / "last.pt").read_bytes() == before
    assert loads(folder / "last.pt") == (1, 3)


def test_a_disk_that_fills_while_rows_are_written_leaves_whole_rows(
    script, command, evaluation_run, tmp_path
):
    """The table takes 15 kB."""
    name, *flags = command("evaluate", tmp_path / "out")
    done = script(name, flags, partial(scripts.limit, "RLIMIT_FSIZE", 8_000))
    scripts.assert_refused(done, "error: cannot write ", "bytes free")
    kept = (tmp_path / "out/petface_eval_per_image.csv.unfinished").read_bytes()
    whole = (evaluation_run.folder / "petface_eval_per_image.csv").read_bytes()
    assert whole.startswith(kept) and kept.endswith(b"\n") and kept.count(b"\n") > 8
    assert not list((tmp_path / "out").glob("*.partial-write"))
    script(name, flags).checked()
    assert_same(evaluation_run.folder, tmp_path / "out")


class Full(FileIO):
    """A file on a disk that is full."""

    def write(self, _content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_without_room_for_the_name_of_the_holder_is_told(tmp_path, monkeypatch):
    """The very first write of a run; closing the file must not raise a second time."""
    monkeypatch.setattr(runs, "FileIO", Full)
    message = r"cannot write .*run\.lock: No space left on device \([\d,]+ bytes free\)"
    with pytest.raises(UserError, match=message), runs.open_run(tmp_path / "run", "LR = 0.5\n"):
        pass
    monkeypatch.undo()
    with runs.open_run(tmp_path / "run", "LR = 0.5\n"):  # and it holds nothing
        pass
