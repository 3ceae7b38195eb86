"""A pack gives what the files give; damage and changes are refused; stops lose nothing."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petface.data import packing
from petface.data.images import Preprocessing
from petface.data.loading import FileImages
from petface.data.pack import PackedImages, pack_path
from petface.data.packing import image_source, make_pack
from petface.data.sources.petface import scan
from petface.errors import UserError

DATA_AT = 4096
RULE = Preprocessing(12, "letterbox")
COMPRESSIONS = ("none", "zlib")
NUM_IMAGES = 200  # several slices


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Photos of odd sizes and modes; two of them broken, in the first and in the last slice."""
    draw = np.random.default_rng(0)
    root = tmp_path / "data" / "images"
    for number in range(NUM_IMAGES):
        folder = root / ("cat", "dog")[number % 2] / f"{number // 4:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        height, width = draw.integers(3, 40, 2)
        pixels = draw.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).convert("L" if number % 7 == 0 else "RGB").save(
            folder / f"{number:03d}.png"
        )
    (root / "cat" / "000001" / "004.png").write_bytes(b"<html>")
    (root / "dog" / "000049" / "199.png").write_bytes(b"")
    return root


@pytest.fixture
def catalog(tree):
    return scan(tree).catalog


def assert_same_reading(pack: PackedImages, files: FileImages) -> None:
    order = np.random.default_rng(1).permutation(len(files.catalog))
    one, other = pack.read(order), files.read(order)
    assert len(one.arrays) == len(other.arrays) == 1
    assert np.array_equal(one.arrays[0].numpy(), other.arrays[0].numpy())
    assert one.status.tolist() == other.status.tolist()
    assert one.failures == other.failures and len(one.failures) == 2


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_pack_gives_what_the_files_give(tree, catalog, compression, workers) -> None:
    path = pack_path(tree, RULE)
    assert path == tree.parent / "pack_12_letterbox.bin"
    make_pack(path, catalog, RULE, compression=compression, num_workers=workers)
    pack = PackedImages(path, catalog, RULE)
    assert_same_reading(pack, FileImages(catalog, RULE))
    assert_same_reading(pack, FileImages(catalog, RULE))  # checksums are not compared again
    assert pack.num_unreadable == 2
    pack.check()
    assert sorted(p.name for p in tree.parent.iterdir()) == ["images", "pack_12_letterbox.bin"]


def test_bytes_of_a_raw_pack_lie_where_the_format_says(catalog, tmp_path) -> None:
    make_pack(tmp_path / "p", catalog, RULE)
    content = (tmp_path / "p").read_bytes()
    wanted = FileImages(catalog, RULE).read(np.arange(len(catalog))).arrays[0].numpy().tobytes()
    assert content[DATA_AT : DATA_AT + len(wanted)] == wanted
    (entries_at,) = struct.unpack("<Q", content[-56:-48])
    assert entries_at == DATA_AT + len(wanted)
    assert len(content) - 56 - entries_at == NUM_IMAGES * 25


def test_a_source_is_chosen_by_one_word(tree, catalog, tmp_path) -> None:
    assert isinstance(image_source(catalog, "", RULE), FileImages)
    made = image_source(catalog, "auto", RULE)
    assert isinstance(made, PackedImages) and made.path == pack_path(tree, RULE)
    before = made.path.stat().st_mtime_ns
    assert image_source(catalog, "auto", RULE).path == made.path
    assert made.path.stat().st_mtime_ns == before, "made once"
    assert (
        image_source(catalog, str(made.path), RULE, RULE).read(np.arange(3)).arrays[1] is not None
    )
    with pytest.raises(UserError, match=r"none: .*No such file.*python -m tools\.pack_images"):
        image_source(catalog, str(tmp_path / "none"), RULE)
    with pytest.raises(UserError, match="there already"):
        make_pack(made.path, catalog, RULE)


def test_one_species_is_read_from_the_pack_of_all(tree, catalog) -> None:
    dogs = scan(tree, ["dog"]).catalog
    for pack in (image_source(dogs, "auto", RULE), PackedImages(pack_path(tree, RULE), dogs)):
        one, other = pack.read(np.arange(100)), FileImages(dogs, RULE).read(np.arange(100))
        assert np.array_equal(one.arrays[0], other.arrays[0]) and one.failures == other.failures
    assert PackedImages(pack_path(tree, RULE), catalog, RULE).num_unreadable == 2


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_damage_anywhere_is_refused_or_changes_nothing(tree, catalog, compression) -> None:
    """Every region of the file: one byte flipped at 150 places, and cut off at 20."""
    path = pack_path(tree, RULE)
    make_pack(path, catalog, RULE, compression=compression)
    whole = path.read_bytes()
    draw = np.random.default_rng(2)
    files = FileImages(catalog, RULE)
    entries_at = struct.unpack("<Q", whole[-56:-48])[0]
    places = {
        "header": draw.integers(0, DATA_AT, 30),
        "pixels": draw.integers(DATA_AT, entries_at, 60),
        "entries": draw.integers(entries_at, len(whole) - 56, 40),
        "tail": draw.integers(len(whole) - 56, len(whole), 20),
    }
    refused = dict.fromkeys(places, 0)
    for region, offsets in places.items():
        for offset in offsets.tolist():
            damaged = bytearray(whole)
            damaged[offset] ^= 1 << int(draw.integers(8))
            path.write_bytes(damaged)
            try:
                assert_same_reading(PackedImages(path, catalog, RULE), files)
            except UserError as error:
                assert str(path) in str(error) and "make it again" in str(error)
                refused[region] += 1
    assert refused == {"header": 30, "pixels": 60, "entries": 40, "tail": 20}
    for length in draw.integers(0, len(whole), 20).tolist():
        path.write_bytes(whole[:length])
        with pytest.raises(UserError):
            PackedImages(path, catalog, RULE)


def test_another_tree_rule_or_changed_photo_is_refused(tree, catalog) -> None:
    path = pack_path(tree, RULE)
    make_pack(path, catalog, RULE)
    with pytest.raises(UserError, match="holds .*letterbox.* not .*stretch"):
        PackedImages(path, catalog, Preprocessing(12))
    photo = tree / "cat" / "000000" / "000.png"
    stamp = photo.stat().st_mtime_ns
    os.utime(photo, ns=(stamp, stamp + 1))
    with pytest.raises(UserError, match=r"000\.png changed since"):
        PackedImages(path, catalog, RULE)
    os.utime(photo, ns=(stamp, stamp))
    PackedImages(path, catalog, RULE)
    (tree / "cat" / "000000" / "new.png").write_bytes(photo.read_bytes())
    with pytest.raises(UserError, match="holds other images of cat than"):
        PackedImages(path, scan(tree).catalog, RULE)


def test_a_pack_that_shrinks_while_it_is_read_is_an_error(tree, catalog) -> None:
    path = pack_path(tree, RULE)
    make_pack(path, catalog, RULE)
    pack = PackedImages(path, catalog, RULE)
    pack.read(np.arange(100))
    os.truncate(path, DATA_AT + 1000)
    with pytest.raises(UserError, match="is damaged"):
        pack.read(np.arange(100))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_stopped_making_goes_on_and_ends_in_the_same_bytes(
    tree, catalog, compression, monkeypatch
) -> None:
    path = pack_path(tree, RULE)
    make_pack(path, catalog, RULE, compression=compression)
    wanted = path.read_bytes()
    path.unlink()
    real = packing._append
    num_stops = 0
    for stop_at, part in ((1, 0.5), (2, 0.5), (3, 0.3), (2, 1.0), (3, 0.7), (99, 0)):
        calls = [0]

        def torn(where, handle, content, calls=calls, stop_at=stop_at, part=part):
            calls[0] += 1
            if calls[0] == stop_at:
                real(where, handle, content[: int(len(content) * part)])
                raise KeyboardInterrupt
            real(where, handle, content)

        monkeypatch.setattr(packing, "_append", torn)
        try:
            make_pack(path, catalog, RULE, compression=compression)
        except KeyboardInterrupt:
            assert not path.exists()
            num_stops += 1
    assert num_stops == 5 and path.read_bytes() == wanted
    assert sorted(p.name for p in tree.parent.iterdir()) == ["images", path.name]


def test_a_photo_changed_between_two_starts_is_packed_anew(tree, catalog, monkeypatch) -> None:
    path, real, calls = pack_path(tree, RULE), packing._append, [0]

    def stop_late(where, handle, content):
        calls[0] += 1
        if calls[0] == 6:
            raise KeyboardInterrupt
        real(where, handle, content)

    monkeypatch.setattr(packing, "_append", stop_late)
    with pytest.raises(KeyboardInterrupt):
        make_pack(path, catalog, RULE)
    monkeypatch.setattr(packing, "_append", real)
    Image.new("RGB", (9, 9), (1, 2, 3)).save(tree / "cat" / "000000" / "000.png")
    make_pack(path, catalog, RULE)
    assert_same_reading(PackedImages(path, catalog, RULE), FileImages(catalog, RULE))


def test_a_second_process_and_a_small_disk_are_refused(tree, catalog, monkeypatch) -> None:
    path = pack_path(tree, RULE)
    with (
        packing._unfinished(path),
        pytest.raises(UserError, match="being written by"),
    ):
        make_pack(path, catalog, RULE)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"200 images to pack, 0\.00 GB; 0\.00 GB are free; take"):
        make_pack(path, catalog, RULE)
