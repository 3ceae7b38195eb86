"""Mutated images through `petface.data.images.decode`: an array or an error, soon and small."""

from __future__ import annotations

import functools
import io
import os
import random
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image, PngImagePlugin

from petface.data import images
from petface.data.images import MAX_PIXELS, ImageError
from tests.torture.fuzz import Fuzzer, damaged

MEMORY_BYTES = 1_000_000_000  # address space
_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def image_fuzzer(
    _folder: Path, decode: Callable[[bytes], object] = images.decode, patience_s: float = 20.0
) -> Fuzzer:
    """Attack a decoder."""
    judge = functools.partial(_judge, decode)
    return Fuzzer(_draw_image, judge, memory_bytes=MEMORY_BYTES, patience_s=patience_s)


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
    with mock.patch.object(images, "_png_decoder", lambda: None):
        try:
            return decode(data)
        except ImageError as error:
            return str(error)


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
    alpha, pages = Image.fromarray(rgba), {"save_all": True, "append_images": later}
    ways: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "png": (rgb, "PNG", {}),
        "png palette": (rgb.convert("P"), "PNG", {"transparency": 3}),
        "png alpha": (alpha, "PNG", {}),
        "png grey alpha": (alpha.convert("LA"), "PNG", {}),
        "png 16 bit": (deep, "PNG", {}),
        "png 1 bit": (rgb.convert("1"), "PNG", {}),
        "png animated": (rgb, "PNG", pages),
        "png text": (rgb, "PNG", {"pnginfo": text, "exif": exif}),
        "avif": (rgb, "AVIF", {"exif": exif}),
        "mpo": (rgb.copy(), "MPO", {"save_all": True, "append_images": [rgb.rotate(9)]}),
        "jpeg": (rgb, "JPEG", {"exif": exif}),
        "jpeg progressive": (rgb, "JPEG", {"progressive": True}),
        "jpeg grey": (rgb.convert("L"), "JPEG", {}),
        "jpeg cmyk": (rgb.convert("CMYK"), "JPEG", {}),
        "webp": (rgb, "WEBP", {"exif": exif}),
        "webp lossless": (alpha, "WEBP", {"lossless": True}),
        "webp animated": (rgb, "WEBP", pages),
        "gif": (rgb.convert("P"), "GIF", {}),
        "gif animated": (rgb, "GIF", pages),
        "bmp": (rgb, "BMP", {}),
        "bmp palette": (rgb.convert("P"), "BMP", {}),
        "bmp 1 bit": (rgb.convert("1"), "BMP", {}),
        "tiff": (rgb, "TIFF", {}),
        "tiff lzw": (rgb, "TIFF", {"compression": "tiff_lzw"}),
        "tiff deflate": (alpha, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "tiff jpeg": (rgb, "TIFF", {"compression": "jpeg"}),
        "tiff fax": (rgb.convert("1"), "TIFF", {"compression": "group4"}),
        "tiff 16 bit": (deep, "TIFF", {}),
        "tiff float": (Image.fromarray(grey.astype(np.float32) / 255), "TIFF", {}),
        "tiff pages": (rgb, "TIFF", pages),
    }
    found = {}
    for name, (image, kind, options) in ways.items():
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        found[name] = stream.getvalue()
    return found


def _draw_image(number: int, draw: random.Random) -> tuple[str, bytes]:
    """Change one of the images in turn; the header of a PNG with its checksum mended, too."""
    names = [*_sources()]
    name = names[number % len(names)]
    data, other = _sources()[name], draw.choice([*_sources().values()])
    is_png = data.startswith(b"\x89PNG")

    def header_number() -> bytes:
        """Put an extreme number of 1, 2 or 4 bytes somewhere into the first 200 bytes."""
        layout = draw.choice(("B", "<H", ">H", "<I", ">I"))
        size = struct.calcsize(layout)
        number = struct.pack(layout, draw.choice(_EXTREMES) & (256**size - 1))
        place = draw.randrange(max(1, min(200, len(data)) - size))
        return data[:place] + number + data[place + size :]

    def header_with_checksum() -> bytes:
        """Change the header of a PNG so that the decoder believes it."""
        place = 16 + draw.randrange(13)
        changed = data[12:place] + draw.randbytes(1) + data[place + 1 : 29]
        return data[:12] + changed + struct.pack(">I", zlib.crc32(changed)) + data[33:]

    def two_headers() -> bytes:
        """Put a second header of other sizes before the pixels of a PNG, or behind some of them."""
        sizes = struct.pack(">II", draw.randrange(1, 90), draw.randrange(1, 90))
        header = b"IHDR" + sizes + data[24:29]
        whole = b"\0\0\0\x0d" + header + struct.pack(">I", zlib.crc32(header))
        place = draw.choice([33, data.rindex(b"IDAT") - 4, data.rindex(b"IEND") - 4])
        return data[:place] + whole + data[place:]

    ways: dict[str, Callable[[], bytes]] = {
        **{f"damaged {n}": lambda: damaged(data, draw) for n in range(3)},
        "header number": header_number,
        "header": header_with_checksum if is_png else header_number,
        "two headers": two_headers if is_png else lambda: damaged(data, draw),
        "spliced": lambda: data[: draw.randrange(len(data))] + other[draw.randrange(len(other)) :],
    }
    kind = draw.choice([*ways])
    return f"{name}, {kind}", ways[kind]()


# Faults that are planted where this part looks, in processes of their own.


def _hang(_data: bytes) -> np.ndarray:
    while True:
        time.sleep(1)


def _hoard(_data: bytes) -> np.ndarray:
    """Take more memory than there is."""
    try:
        return np.zeros((50_000, 50_000, 3), np.uint8)
    except MemoryError as error:
        raise ImageError("no memory") from error


hang = functools.partial(image_fuzzer, decode=_hang, patience_s=0.3)
crash = functools.partial(image_fuzzer, decode=lambda _: os.abort())  # as a decoder in C does
swallow = functools.partial(image_fuzzer, decode=lambda _: np.zeros((4, 4), np.uint8))
hoard = functools.partial(image_fuzzer, decode=_hoard)
