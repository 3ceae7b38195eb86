"""Formats and suffixes of encoded photos, and their bytes reduced to the pixel data."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from typing import Final

from petface.errors import install_line

FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # Pillow's names
_HEIC_SUFFIXES: Final = frozenset({".heic", ".heif", ".hif"})
_SUFFIXES: Final = frozenset(
    (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".mpo", ".webp")
    + (".bmp", ".dib", ".gif", ".tif", ".tiff", ".avif", ".avifs")
)
_OTHERS: Final = {  # first bytes of well-known formats that are not supported
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"8BPS": "Photoshop",
    b"%PDF": "PDF",
    b"<": "HTML, SVG or XML",
    b"PK\x03\x04": "ZIP",
    b"\0\0\1\0": "icon",
}
_HEIC_BRANDS: Final = (b"hei", b"hev", b"mif1", b"msf1")

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_PNG_END: Final = b"\0\0\0\0IEND\xaeB`\x82"
_PIXEL_CHUNKS: Final = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
_TURNING_TEXTS: Final = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # hold an orientation


def has_heic() -> bool:
    """Check whether the optional package that reads HEIC is installed."""
    return find_spec("pillow_heif") is not None


@cache
def formats() -> tuple[str, ...]:
    """Return the supported formats by Pillow's names."""
    if not has_heic():
        return FORMATS
    import pillow_heif

    pillow_heif.register_heif_opener()
    return (*FORMATS, "HEIF")


def not_a_photo_name(name: str | bytes) -> str | None:
    """Return why a file of this name is not taken as a photo, or None if it is."""
    suffix = os.path.splitext(os.fsdecode(name))[1].lower()
    if suffix in _HEIC_SUFFIXES and not has_heic():
        return f"HEIC, which needs {install_line('heic')}"
    return None if suffix in _SUFFIXES | _HEIC_SUFFIXES else "not an image suffix"


def not_read_text(data: bytes) -> str:
    """Describe bytes that match none of the supported formats."""
    wanted, kind = ", ".join(formats()), data[8:12]
    if data[4:8] == b"ftyp":
        if kind.startswith(_HEIC_BRANDS) and not has_heic():
            return f"a HEIC photo; to read it: {install_line('heic')}"
        return f"not a {wanted} image but {kind.decode('ascii', 'replace')!r}, or a damaged one"
    found = [name for begin, name in _OTHERS.items() if data.startswith(begin)]
    return f"not a {wanted} image{f' but {found[0]}; convert it' if found else ''}"


def header_size(data: bytes) -> tuple[int, int] | None:
    """Return the width and height in a PNG header, or None for anything else."""
    if not data.startswith(_PNG) or data[12:16] != b"IHDR" or len(data) < 33:
        return None
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def attempts(data: bytes) -> Iterator[tuple[bytes, bool]]:
    """Yield bytes to decode, each time with less metadata, and whether they are plain.

    Plain means a PNG file of pixels alone. The first that can be decoded is used, whatever text,
    profiles and previews hold. Raises `ValueError` for damaged pixels of a PNG file.
    """
    if data.startswith(_PNG):
        yield from _png_attempts(data)
        return
    yield data, False
    if data.startswith(b"\xff\xd8"):
        yield _jpeg_pixels(data), False


def _png_attempts(data: bytes) -> Iterator[tuple[bytes, bool]]:
    """Yield `attempts` of a PNG; Pillow ignores pixel checksums and would return wrong pixels."""
    chunks: list[tuple[bytes, memoryview]] = []  # kind, whole chunk
    at, view = len(_PNG), memoryview(data)
    while len(data) >= at + 8 and (kind := data[at + 4 : at + 8]) != b"IEND":
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        is_pixels, chunk = kind in _PIXEL_CHUNKS, view[at:end]
        if is_pixels and end > len(data) + 4:
            raise ValueError(f"truncated, {end - 4 - len(data):,} bytes are missing")
        fits = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if is_pixels and not fits:
            raise ValueError("damaged, the checksum of the pixel data does not fit")
        is_turning = kind == b"eXIf" or data.startswith(_TURNING_TEXTS, at + 8)
        is_second = kind == b"IHDR" and bool(chunks)
        if fits and not is_second and (is_pixels or is_turning):
            chunks.append((kind, chunk))
        at = end
    kinds, without_texts = {kind for kind, _ in chunks}, (*_PIXEL_CHUNKS, b"eXIf")
    yield b"".join([_PNG, *(c for _, c in chunks), _PNG_END]), kinds <= {b"IHDR", b"IDAT"}
    if not kinds.issubset(without_texts):
        kept = (chunk for kind, chunk in chunks if kind in without_texts)
        yield b"".join([_PNG, *kept, _PNG_END]), False


def _jpeg_pixels(data: bytes) -> bytes:
    """Remove metadata before the pixels of a JPEG file that does not affect them."""
    parts, at = [data[:2]], 2
    while data[at : at + 1] == b"\xff" and (marker := data[at + 1 : at + 2]) != b"\xda":
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        is_app = b"\xe0" <= marker <= b"\xef" or marker == b"\xfe"  # a comment among them
        is_exif = data.startswith(b"Exif\0\0", at + 4)
        if not is_app or marker in (b"\xe0", b"\xee") or is_exif:  # JFIF and Adobe: the colours
            parts.append(data[at:end])
        at = max(end, at + 2)
    return b"".join([*parts, data[at:]])
