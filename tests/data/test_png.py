"""The faster decoder gives what Pillow gives, or nothing."""

from __future__ import annotations

import io
import random
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from petface.data import images
from petface.data import png as png_module

pytest.importorskip("imagecodecs")
HEAD = b"\x89PNG\r\n\x1a\n"


def photo(height: int = 37, width: int = 23, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height))


def png(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


def fast(data: bytes) -> np.ndarray | None:
    stream = io.BytesIO(data)
    found = png_module.decode_plain(stream, len(data), images.MAX_PIXELS)
    assert found is not None or stream.tell() == 0
    return found


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], len(HEAD)
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


def joined(parts: list[tuple[bytes, bytes]]) -> bytes:
    """Put chunks together, each with the right checksum."""
    return HEAD + b"".join(
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        for kind, data in parts
    )


@pytest.mark.parametrize("level", [0, 1, 9])
@pytest.mark.parametrize("shape", [(1, 1), (37, 23), (64, 64), (224, 224)])
def test_plain_photos_are_the_same(shape, level):
    image = photo(*shape)
    found = fast(png(image, compress_level=level))
    assert found is not None and found.dtype == np.uint8
    assert found.flags.c_contiguous and found.flags.writeable
    np.testing.assert_array_equal(found, np.array(image))


@pytest.mark.parametrize("filtered", range(5))
def test_every_row_filter(filtered):
    raw = b"".join(bytes([filtered]) + bytes(range(at, at + 30)) for at in range(0, 60, 10))
    head = (10).to_bytes(4, "big") + (6).to_bytes(4, "big") + b"\x08\x02\0\0\0"
    data = joined([(b"IHDR", head), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")])
    np.testing.assert_array_equal(fast(data), np.array(Image.open(io.BytesIO(data))))


def test_pixel_data_in_many_chunks():
    whole = png(photo())
    (_, head), (_, pixels), end = chunks(whole)
    pieces = [(b"IDAT", pixels[at : at + 7]) for at in range(0, len(pixels), 7)]
    data = joined([(b"IHDR", head), *pieces, (b"IDAT", b""), end])
    np.testing.assert_array_equal(fast(data), np.array(photo()))


def test_what_is_not_plain_is_left_to_pillow():
    exif = Image.Exif()
    exif[0x0112] = 6
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", "exif")
    whole = png(photo())
    others = {
        "turned": png(photo(), exif=exif),
        "text": png(photo(), pnginfo=text),
        "colour key": png(photo(), transparency=(1, 2, 3)),
        "alpha": png(photo().convert("RGBA")),
        "grey": png(photo().convert("L")),
        "palette": png(photo().convert("P")),
        "one bit": png(photo().convert("1")),
        "16 bit": png(Image.fromarray(np.zeros((4, 4), np.uint16))),
        "animated": png(photo(), save_all=True, append_images=[photo(seed=1)]),
        "cut short": whole[:-5],
        "no end": joined(chunks(whole)[:-1]),
        "empty": b"",
        "jpeg": b"\xff\xd8\xff" + whole,
    }
    assert [name for name, data in others.items() if fast(data) is not None] == []


def test_more_pixels_than_allowed_and_a_large_file_are_left_to_pillow(monkeypatch):
    data = png(photo(10, 10))
    assert png_module.decode_plain(io.BytesIO(data), len(data), 100) is not None
    assert png_module.decode_plain(io.BytesIO(data), len(data), 99) is None
    monkeypatch.setattr(png_module, "_MAX_BYTES", len(data) - 1)
    assert fast(data) is None


def damaged(number: int) -> bytes:
    """Flip bits or cut; in every other photo the checksums are right nevertheless."""
    draw = random.Random(number)
    data = bytearray(png(photo(seed=number % 7)))
    for _ in range(draw.choice([1, 1, 1, 3])):
        place = draw.choice([range(len(data)), range(45), range(len(data) - 40, len(data))])
        data[draw.choice(place)] ^= 1 << draw.randrange(8)
    if draw.random() < 0.2:
        del data[draw.randrange(len(data)) :]
    at = len(HEAD)
    while number % 2 and at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        data[end : end + 4] = zlib.crc32(bytes(data[at + 4 : end])).to_bytes(4, "big")
        at = end + 4
    return bytes(data)


def outcome(data: bytes) -> np.ndarray | str:
    try:
        return images.decode(data)
    except images.ImageError as error:
        return f"{error.reason}: {error}"


def test_damaged_photos_get_the_same_pixels_or_the_same_error(monkeypatch):
    photos = [damaged(number) for number in range(1500)]
    with monkeypatch.context() as by_pillow_alone:
        by_pillow_alone.setattr(png_module, "_decoder", lambda: None)
        alone = [outcome(data) for data in photos]
    both = [outcome(data) for data in photos]
    num_fast = sum(fast(data) is not None for data in photos)
    assert num_fast > 50, "the faster decoder took part"
    for number, (expected, found) in enumerate(zip(alone, both, strict=True)):
        assert type(found) is type(expected), number
        assert np.array_equal(found, expected), number


def test_without_the_package_pillow_decodes(monkeypatch, tmp_path: Path):
    png_module._decoder.cache_clear()
    monkeypatch.setattr(png_module, "find_spec", lambda _: None)
    path = tmp_path / "photo.png"
    path.write_bytes(png(photo()))
    assert fast(path.read_bytes()) is None
    np.testing.assert_array_equal(images.decode(path), np.array(photo()))
    png_module._decoder.cache_clear()
