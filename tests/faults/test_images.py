"""Fault rows 1 to 5 for one image: an array comes back, or an `ImageError`, and nothing else."""

from __future__ import annotations

import contextlib
import os
import resource
import struct
import sys
import threading
import time
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petface.data import images
from petface.data.images import ImageError, decode
from tests.conftest import bomb
from tests.data.test_images import chunks, encoded, joined, photo

PNG = encoded(photo())


def reason_of(source: object) -> str:
    with pytest.raises(ImageError) as caught:
        decode(source)
    return caught.value.reason


DAMAGED = {
    "zero bytes": (b"", "empty"),
    "one byte": (b"\x89", "not a PNG"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", "not a PNG"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a PNG"),
    "half a png": (PNG[: len(PNG) // 2], "truncated"),
    "half a jpeg": (encoded(photo(), "JPEG")[:-50], "[Tt]runcated"),
    "half a webp": (encoded(photo(), "WEBP")[:-50], ""),
    "png header alone": (PNG[:33], ""),
    "png of no width": (bomb(0, 10), ""),
    # Pillow knows these
    **{k: (encoded(photo(), k), "not a PNG") for k in ("PPM", "TGA", "PCX", "ICO", "EPS")},
}


@pytest.mark.parametrize(("content", "words"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_are_unreadable_and_named(content, words, tmp_path):
    path = tmp_path / "00.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=f"00.png: (?=.).*{words}") as caught:
        decode(path)
    assert caught.value.reason == reason_of(content) == "unreadable"
    assert "\n" not in str(caught.value)


def test_every_flipped_bit_in_png_pixel_data_is_noticed():
    png = PNG
    start = png.index(b"IDAT") + 4
    end = png.index(b"IEND") - 4  # the checksum included
    for position in range(start, end):
        damaged = bytearray(png)
        damaged[position] ^= 1 << position % 8
        assert reason_of(bytes(damaged)) == "unreadable"


def test_pixel_data_in_several_chunks_and_text_between_is_read():
    head, (_, data), end = chunks(PNG)
    several = [(b"IDAT", part) for part in (data[:1], data[1:50], b"", data[50:])]
    text = b"tEXt", b"comment\0hello"
    np.testing.assert_array_equal(
        decode(joined([head, text, *several, text, end])), np.array(photo())
    )


@pytest.mark.parametrize(
    "kind",
    [OSError, SyntaxError, ValueError, struct.error, EOFError, zlib.error, IndexError]
    + [OverflowError, TypeError, KeyError, AttributeError, RuntimeError, AssertionError]
    + [KeyboardInterrupt],
)
def test_whatever_pillow_raises_becomes_one_error_but_an_interrupt(kind, monkeypatch):
    def broken(*_args: object, **_options: object) -> None:
        raise kind("deep inside")

    monkeypatch.setattr(images.Image, "open", broken)
    wanted = ImageError if issubclass(kind, Exception) else kind
    with pytest.raises(wanted, match="deep inside"):
        decode(b"anything")


@pytest.mark.parametrize("side", [60_000, 10_000, 8_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_from_its_header_and_memory_stays_flat(side, tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(side, side))
    assert path.stat().st_size < 3_000
    decode(PNG)  # whatever Pillow loads once is loaded
    peak_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    with pytest.raises(ImageError, match="bomb.png.*50,000,000 pixels") as caught:
        decode(path)
    python_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_before
    assert caught.value.reason == "too_large"
    assert python_peak < 2_000_000
    assert grown * (1 if sys.platform == "darwin" else 1024) < 20_000_000


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_size_is_refused_by_the_header_in_every_format_and_before_damage():
    def patched(kind: str, after: bytes, offset: int, layout: str, *values: int) -> bytes:
        content = bytearray(encoded(photo(), kind))
        struct.pack_into(layout, content, content.index(after) + offset, *values)
        return bytes(content)

    damaged = bytearray(bomb(8_000, 8_000))
    damaged[60] ^= 1
    width = struct.pack("<HHI", 256, 4, 1)  # type LONG, one value; the height comes next
    for large in (
        bomb(10_000, 10_000),
        bytes(damaged),
        patched("BMP", b"BM", 18, "<ii", 9_000, 9_000),
        patched("GIF", b"GIF", 6, "<HH", 60_000, 1_000),
        patched("JPEG", b"\xff\xc0", 5, ">HH", 9_000, 9_000),
        patched("TIFF", width, 8, "<IHHII", 9_000, 257, 4, 1, 9_000),
    ):
        assert reason_of(large) == "too_large"


def tiff_of_one_tile(side: int, tile: int) -> bytes:
    """A small picture as a corner of a large tile, which would be decoded whole."""
    data = zlib.compress(bytes(tile * tile), 9)
    tags = {256: side, 257: side, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile,
            324: 8 + 2 + 12 * 10 + 4, 325: len(data)}  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + data


def test_a_long_side_and_a_large_tile_are_refused_as_well():
    for width, height in ((49_999_999, 1), (1, 49_999_999), (20_001, 2)):
        assert reason_of(bomb(width, height)) == "too_large"
    assert decode(np.zeros((1, 20_000, 3), np.uint8)).shape == (1, 20_000, 3)
    assert decode(tiff_of_one_tile(10, 32)).shape == (10, 10, 3)
    assert reason_of(tiff_of_one_tile(10, 16_000)) == "too_large"
    assert reason_of(tiff_of_one_tile(10, 24_000)[:600]) == "too_large"


def test_threads_decode_together_no_more_than_there_is_room_for(monkeypatch, tmp_path):
    """Who finds no room waits; small photos never do, and a child process starts with no debts."""
    monkeypatch.setattr(images, "SMALL_PIXELS", 100)
    monkeypatch.setattr(images, "MAX_PIXELS", 1_000)
    images._make_room()
    path = tmp_path / "00.png"
    path.write_bytes(bomb(20, 20))
    sources = [path, bomb(20, 20), bomb(50, 50)] * 10  # of the first two only two at once
    held, fits, lock = [0], [], threading.Lock()

    def work(source: object) -> None:
        with images.room_for(source):
            own = images.num_pixels(source)
            with lock:
                held[0] += own
                fits.append(held[0] <= 1_000 or held[0] == own)
            time.sleep(0.001)
            with lock:
                held[0] -= own

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, sources))
    assert held[0] == 0 and all(fits)
    with images.room_for(sources[2]):
        for small in (bomb(9, 9), b"no photo", tmp_path, tmp_path / "none"):
            with images.room_for(small):
                pass
        if (child := os.fork()) == 0:
            with images.room_for(sources[2]):
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    monkeypatch.undo()
    images._make_room()


def test_arrays_and_pil_images_obey_the_same_limit(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    decode(np.zeros((10, 10, 3), np.uint8))
    assert reason_of(np.zeros((10, 11, 3), np.uint8)) == "too_large"
    assert reason_of(Image.new("RGB", (11, 10))) == "too_large"


@pytest.mark.parametrize("keyword", [b"comment", b"Raw profile type exif", b"XML:com.adobe.xmp"])
@pytest.mark.parametrize("size", [3_000_000, 50_000_000])
def test_text_that_unpacks_to_much_decides_nothing_and_memory_stays_flat(keyword, size):
    head, *rest = chunks(PNG)
    text = b"zTXt", keyword + b"\0\0" + zlib.compress(b"\0" * size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    np.testing.assert_array_equal(decode(joined([head, text, *rest])), np.array(photo()))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000


def in_time(source: object) -> str:
    """Decode in a thread, because what is tested here is that it does not hang."""
    answers = []

    def work() -> None:
        try:
            decode(source)
        except ImageError as error:
            answers.append(str(error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive(), "decode hangs"
    return answers[0]


def test_what_is_no_regular_file_is_refused_without_a_hang(tmp_path):
    (tmp_path / "folder.png").mkdir()
    assert "not a regular file" in in_time(tmp_path / "folder.png")
    with contextlib.suppress(AttributeError, OSError):  # no pipes on this system
        os.mkfifo(tmp_path / "pipe.png")
        assert "not a regular file" in in_time(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    message = in_time(tmp_path / "loop.png")
    assert "loop.png: " in message and "Errno" not in message
    assert "no such file" in in_time(tmp_path / "missing.png")
    assert "null" in in_time("a\0b.png")


def test_a_file_name_that_is_not_utf8_can_be_read_and_printed(tmp_path):
    path = Path(tmp_path, os.fsdecode(b"caf\xe9.png"))
    try:
        path.touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(ImageError) as caught:
        decode(str(path))
    assert "caf\\xe9.png: empty" in str(caught.value).encode("utf-8").decode()
    path.write_bytes(PNG)
    np.testing.assert_array_equal(decode(path), np.array(photo()))
    np.testing.assert_array_equal(decode(str(path)), np.array(photo()))
