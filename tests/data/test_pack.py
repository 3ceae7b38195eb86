"""A pack reads as the files do; damage and changes are refused; an interruption loses nothing."""

from __future__ import annotations

import itertools
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from petface.data import pack as module
from petface.data.catalog import listed_files
from petface.data.images import Preprocessing
from petface.data.loading import FileImages
from petface.data.pack import PackedImages, class_digests, image_source, make_pack, pack_path
from petface.data.sources.petface import scan
from petface.errors import UserError

DATA_AT = 4096
RULE = Preprocessing(12, "letterbox")


@pytest.fixture(autouse=True)
def _many_threads(monkeypatch) -> None:
    """As on a machine of many cores, for photos that are not tiny."""
    monkeypatch.setattr(module, "num_cores", lambda: 16)
    monkeypatch.setattr(module, "_BYTES_PER_THREAD", 3000)


@pytest.fixture
def images(tree, tmp_path: Path) -> Path:
    """The photos of the tiny dataset in a folder of their own."""
    return tree.copy(tmp_path / "data").images


@pytest.fixture
def catalog(images):
    return scan(images).catalog


@pytest.fixture
def path(images, catalog) -> Path:
    """A finished pack."""
    make_pack(pack_path(images, RULE), catalog, RULE)
    return pack_path(images, RULE)


def assert_same_reading(pack: PackedImages, files: FileImages, num_failures: int = 3) -> None:
    order = np.random.default_rng(1).permutation(len(files.catalog))
    one, other = pack.read(order), files.read(order)
    assert len(one.arrays) == len(other.arrays) == 1
    assert np.array_equal(one.arrays[0].numpy(), other.arrays[0].numpy())
    assert one.status.tolist() == other.status.tolist()
    assert one.failures == other.failures and len(one.failures) == num_failures


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pack_reads_as_the_files_do(images, catalog, workers) -> None:
    path = pack_path(images, RULE)
    assert path == images.parent / "pack_12_letterbox.bin"
    make_pack(path, catalog, RULE, num_workers=workers)
    pack = PackedImages(path, catalog, RULE)
    assert_same_reading(pack, FileImages(catalog, RULE))
    assert_same_reading(pack, FileImages(catalog, RULE))  # checksums are not compared again
    assert pack.num_unreadable == 3
    pack.check()
    assert [p.name for p in images.parent.glob("pack*")] == ["pack_12_letterbox.bin"]


def test_memory_of_pixels_is_used_again_when_nobody_has_them(catalog, path) -> None:
    pack = PackedImages(path, catalog, RULE)
    first = pack.read(np.arange(10, 60)).arrays[0]
    wanted, view = first.clone(), first[3:]
    place = first.data_ptr()
    del first
    others = [pack.read(np.arange(n, n + 60)).arrays[0] for n in (40, 69)]
    assert len({tensor.data_ptr() for tensor in others} | {place}) == 3
    assert torch.equal(view, wanted[3:])
    del view
    assert pack.read(np.arange(10, 50)).arrays[0].data_ptr() == place


def test_bytes_lie_where_the_format_says(catalog, path) -> None:
    content = path.read_bytes()
    wanted = FileImages(catalog, RULE).read(np.arange(len(catalog))).arrays[0].numpy().tobytes()
    assert content[DATA_AT : DATA_AT + len(wanted)] == wanted
    (entries_at,) = struct.unpack("<Q", content[-56:-48])
    assert entries_at == DATA_AT + len(wanted)
    assert len(content) - 56 - entries_at == len(catalog) * 25


def test_a_source_is_chosen_by_one_word(images, catalog, tmp_path) -> None:
    assert isinstance(image_source(catalog, "", RULE), FileImages)
    made = image_source(catalog, "auto", RULE)
    assert isinstance(made, PackedImages) and made.path == pack_path(images, RULE)
    before = made.path.stat().st_mtime_ns
    assert image_source(catalog, "auto", RULE).path == made.path
    assert made.path.stat().st_mtime_ns == before, "made once"
    assert len(image_source(catalog, str(made.path), RULE, RULE).read(np.arange(3)).arrays) == 2
    with pytest.raises(UserError, match=r"none: .*No such file.*python -m tools\.pack_images"):
        image_source(catalog, str(tmp_path / "none"), RULE)
    with pytest.raises(UserError, match="already exists"):
        make_pack(made.path, catalog, RULE)


def test_one_species_is_read_from_the_pack_of_all(images, catalog) -> None:
    dogs = scan(images, ["dog"]).catalog
    assert_same_reading(image_source(dogs, "auto", RULE), FileImages(dogs, RULE), 1)
    assert PackedImages(pack_path(images, RULE), catalog, RULE).num_unreadable == 3


def test_a_pack_that_is_cut_short_is_refused(catalog, path) -> None:
    whole = path.read_bytes()
    for length in [*range(30), *np.random.default_rng(2).integers(30, len(whole), 20).tolist()]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="end is missing"):
            PackedImages(path, catalog, RULE)
        path.write_bytes(whole[:length] + whole[-56:])  # the end is there, the begin is cut
        with pytest.raises(UserError, match="is damaged"):
            PackedImages(path, catalog, RULE)
        assert module.head_length(whole[:length]) == (DATA_AT if length >= 24 else 0)
    path.write_bytes(whole.replace(b"letterbox", b"letterbix", 1))  # every length is right
    with pytest.raises(UserError, match="is damaged"):
        PackedImages(path, catalog, RULE)


def test_the_digest_of_a_class_sees_where_paths_are_cut() -> None:
    one, other = (listed_files("/", names) for names in (["ab", "c"], ["a", "bc"]))
    assert one.path_bytes.tolist() == other.path_bytes.tolist()
    assert class_digests(one) != class_digests(other)
    assert class_digests(one) == class_digests(listed_files("/other", ["ab", "c"]))


def test_another_tree_rule_or_changed_photo_is_refused(images, catalog, path) -> None:
    with pytest.raises(UserError, match="holds .*letterbox.* not .*stretch"):
        PackedImages(path, catalog, Preprocessing(12))
    photo = images / "cat" / "000000" / "00.png"
    stamp = photo.stat().st_mtime_ns
    os.utime(photo, ns=(stamp, stamp + 1))
    with pytest.raises(UserError, match=r"00\.png changed since .* build it again"):
        PackedImages(path, catalog, RULE)
    os.utime(photo, ns=(stamp, stamp))
    PackedImages(path, catalog, RULE)
    (images / "cat" / "000000" / "new.png").write_bytes(photo.read_bytes())
    with pytest.raises(UserError, match="holds other images of cat than"):
        PackedImages(path, scan(images).catalog, RULE)


def test_a_pack_that_shrinks_while_it_is_read_is_an_error(catalog, path) -> None:
    pack = PackedImages(path, catalog, RULE)
    pack.read(np.arange(100))
    os.truncate(path, DATA_AT + 1000)
    with pytest.raises(UserError, match="is damaged"):
        pack.read(np.arange(100))


def stop_at(monkeypatch, call: int, share: float) -> None:
    """Interrupt the `call`-th write of a pack, with `share` of its bytes written."""
    real, calls = module._append, itertools.count(1)

    def torn(where, handle, content):
        if next(calls) == call:
            real(where, handle, content[: int(len(content) * share)])
            raise KeyboardInterrupt
        real(where, handle, content)

    monkeypatch.setattr(module, "_append", torn)


def test_an_interrupted_packing_resumes_and_ends_in_the_same_bytes(
    images, catalog, path, monkeypatch
) -> None:
    wanted = path.read_bytes()
    path.unlink()
    for call, share in ((1, 0.5), (2, 0.5), (3, 0.3), (2, 1.0), (3, 0.7)):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_at(patch, call, share)
            make_pack(path, catalog, RULE)
        assert not path.exists()
    make_pack(path, catalog, RULE)
    assert path.read_bytes() == wanted
    assert [p.name for p in images.parent.glob("pack*")] == [path.name]


def test_a_photo_changed_between_two_starts_is_packed_anew(images, catalog, monkeypatch) -> None:
    path = pack_path(images, RULE)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 6, 0)
        make_pack(path, catalog, RULE)
    Image.new("RGB", (9, 9), (1, 2, 3)).save(images / "cat" / "000000" / "00.png")
    make_pack(path, catalog, RULE)
    assert_same_reading(PackedImages(path, catalog, RULE), FileImages(catalog, RULE))


def test_a_second_process_and_a_small_disk_are_refused(images, catalog, monkeypatch) -> None:
    path = pack_path(images, RULE)
    with module._unfinished(path), pytest.raises(UserError, match="being written by"):
        make_pack(path, catalog, RULE)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"\d+ images to pack, 0\.00 GB; 0\.00 GB are free; use"):
        make_pack(path, catalog, RULE)
    refused = pytest.raises(UserError, match="cannot write .*No space left")
    with Path("/dev/full").open("wb", buffering=0) as full, refused:
        module._append(path, full, b"whole")
