"""Mutated images through `petface.data.images.decode`: an array or an error, soon and small."""

from __future__ import annotations

import functools
import importlib
import io
import os
import random
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from petface.data import images
from petface.data.images import MAX_PIXELS, ImageError
from tests.torture.fuzz import MEMORY_BYTES, PATIENCE_S, Fuzzer, damaged, fuzz_apart
from tests.torture.outcome import Outcome

DECODE = "petface.data.images:decode"
_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def torture_images(
    num_images: int, seed: int, decode: str = DECODE, patience_s: float = PATIENCE_S
) -> Outcome:
    """Decode mutated images with `decode`, "module:function"."""
    outcome = Outcome("images", "mutated images")
    name = "tests.torture.images:fuzzer"
    return fuzz_apart(outcome, name, decode, num_images, seed, patience_s)


def fuzzer(decode: str) -> Fuzzer:
    """Attack a decoder."""
    module, _, function = decode.partition(":")
    decoder = getattr(importlib.import_module(module), function)
    return Fuzzer(_draw_image, functools.partial(_judge, decoder))


def _judge(decode: Callable[[bytes], object], data: bytes) -> tuple[str, str]:
    try:
        found = decode(data)
    except ImageError as error:
        if isinstance(error.__cause__, MemoryError):
            return "wrong", f"needs more than {MEMORY_BYTES / 1e6:.0f} MB: {error}"
        is_plain = error.reason in ("unreadable", "too_large") and "\n" not in str(error)
        return ("refused", "") if is_plain else ("wrong", f"{error.reason}: {error}")
    except BaseException as error:
        return "wrong", f"{type(error).__name__}: {error}"
    if not isinstance(found, np.ndarray) or found.dtype != np.uint8 or found.ndim != 3:
        shape = getattr(found, "shape", "no shape")
        return "wrong", f"no picture but {type(found).__name__} of {shape}"
    height, width, channels = found.shape
    if channels != 3 or not 1 <= height * width <= MAX_PIXELS or not found.flags.writeable:
        return "wrong", f"an array of {found.shape}"
    if not np.array_equal(found, _by_pillow_alone(decode, data)):
        return "wrong", "the decoders differ"
    return "decoded", ""


def _by_pillow_alone(decode: Callable[[bytes], Any], data: bytes) -> Any:
    """Decode without the faster decoder of plain PNG files; the text of an error."""
    fast, images._png_decoder = images._png_decoder, lambda: None  # type: ignore[assignment]
    try:
        return decode(data)
    except ImageError as error:
        return str(error)
    finally:
        images._png_decoder = fast


def _draw_image(number: int, draw: random.Random) -> tuple[str, bytes]:
    names = list(_sources())
    name, mutation = names[number % len(names)], draw.choice(_MUTATIONS)
    return f"{name}, {mutation.__name__.strip('_')}", mutation(_sources()[name], draw)


@functools.cache
def _sources() -> dict[str, bytes]:
    """Draw one photo and encode it in every way that a data set may hold; made once."""
    rows, columns = np.mgrid[0:40, 0:53]
    waves = [128 + 90 * np.sin(columns / 5 + c) * np.cos(rows / 7) for c in range(4)]
    rgba = np.stack(waves, axis=2).astype(np.uint8)
    rgb = Image.fromarray(np.ascontiguousarray(rgba[:, :, :3]))
    grey = rgba[:, :, 0]
    exif = Image.Exif()
    exif[0x0112] = 6
    later = [rgb.rotate(90), rgb.rotate(180)]
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw", "x" * 2_000_000, zip=True)
    ways: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "png": (rgb, "PNG", {}),
        "png palette": (rgb.convert("P"), "PNG", {"transparency": 3}),
        "png alpha": (Image.fromarray(rgba), "PNG", {}),
        "png grey alpha": (Image.fromarray(rgba).convert("LA"), "PNG", {}),
        "png 16 bit": (deep, "PNG", {}),
        "png 1 bit": (rgb.convert("1"), "PNG", {}),
        "png animated": (rgb, "PNG", {"save_all": True, "append_images": later}),
        "png text": (rgb, "PNG", {"pnginfo": text, "exif": exif}),
        "avif": (rgb, "AVIF", {"exif": exif}),
        "mpo": (rgb.copy(), "MPO", {"save_all": True, "append_images": [rgb.rotate(9)]}),
        "jpeg": (rgb, "JPEG", {"exif": exif}),
        "jpeg progressive": (rgb, "JPEG", {"progressive": True}),
        "jpeg grey": (rgb.convert("L"), "JPEG", {}),
        "jpeg cmyk": (rgb.convert("CMYK"), "JPEG", {}),
        "webp": (rgb, "WEBP", {"exif": exif}),
        "webp lossless": (Image.fromarray(rgba), "WEBP", {"lossless": True}),
        "webp animated": (rgb, "WEBP", {"save_all": True, "append_images": later}),
        "gif": (rgb.convert("P"), "GIF", {}),
        "gif animated": (rgb, "GIF", {"save_all": True, "append_images": later}),
        "bmp": (rgb, "BMP", {}),
        "bmp palette": (rgb.convert("P"), "BMP", {}),
        "bmp 1 bit": (rgb.convert("1"), "BMP", {}),
        "tiff": (rgb, "TIFF", {}),
        "tiff lzw": (rgb, "TIFF", {"compression": "tiff_lzw"}),
        "tiff deflate": (Image.fromarray(rgba), "TIFF", {"compression": "tiff_adobe_deflate"}),
        "tiff jpeg": (rgb, "TIFF", {"compression": "jpeg"}),
        "tiff fax": (rgb.convert("1"), "TIFF", {"compression": "group4"}),
        "tiff 16 bit": (deep, "TIFF", {}),
        "tiff float": (Image.fromarray(grey.astype(np.float32) / 255), "TIFF", {}),
        "tiff pages": (rgb, "TIFF", {"save_all": True, "append_images": later}),
    }
    found = {}
    for name, (image, kind, options) in ways.items():
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        found[name] = stream.getvalue()
    return found


def _header_number(data: bytes, draw: random.Random) -> bytes:
    """Put an extreme number of 1, 2 or 4 bytes somewhere into the first 200 bytes."""
    layout = draw.choice(("B", "<H", ">H", "<I", ">I"))
    size = struct.calcsize(layout)
    number = struct.pack(layout, draw.choice(_EXTREMES) & (256**size - 1))
    place = draw.randrange(max(1, min(200, len(data)) - size))
    return data[:place] + number + data[place + size :]


def _header_with_checksum(data: bytes, draw: random.Random) -> bytes:
    """Change the header of a PNG and mend its checksum, so that the decoder believes it."""
    if not data.startswith(b"\x89PNG"):
        return _header_number(data, draw)
    place = 16 + draw.randrange(13)
    changed = data[12:place] + draw.randbytes(1) + data[place + 1 : 29]
    return data[:12] + changed + struct.pack(">I", zlib.crc32(changed)) + data[33:]


def _spliced(data: bytes, draw: random.Random) -> bytes:
    """Go on in the middle of another file."""
    other = draw.choice(list(_sources().values()))
    return data[: draw.randrange(len(data))] + other[draw.randrange(len(other)) :]


def _two_headers(data: bytes, draw: random.Random) -> bytes:
    """Put a second header of other sizes before the pixels of a PNG, or behind some of them."""
    if not data.startswith(b"\x89PNG"):
        return damaged(data, draw)
    sizes = struct.pack(">II", draw.randrange(1, 90), draw.randrange(1, 90))
    header = b"IHDR" + sizes + data[24:29]
    whole = b"\0\0\0\x0d" + header + struct.pack(">I", zlib.crc32(header))
    place = draw.choice([33, data.rindex(b"IDAT") - 4, data.rindex(b"IEND") - 4])
    return data[:place] + whole + data[place:]


_MUTATIONS = (
    *(damaged, damaged, damaged),
    *(_header_number, _header_with_checksum, _spliced, _two_headers),
)


# Faults that are planted where this part looks, in processes of their own.


def hang(_data: bytes) -> np.ndarray:
    """Decode nothing, for ever."""
    while True:
        time.sleep(1)


def crash(_data: bytes) -> np.ndarray:
    """Die as a decoder in C does."""
    os.abort()


def swallow(_data: bytes) -> np.ndarray:
    """Return grey where nothing could be read."""
    return np.zeros((4, 4), np.uint8)


def hoard(_data: bytes) -> np.ndarray:
    """Take more memory than there is."""
    try:
        return np.zeros((50_000, 50_000, 3), np.uint8)
    except MemoryError as error:
        raise ImageError("no memory") from error
