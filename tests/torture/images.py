"""Mutated images through `petface.data.images.decode`, in processes that may die without harm.

    python -m tests.torture.images petface.data.images:decode 20 0 0 2000   # what a worker does

A worker has little address space and a timer whose signal ends it: a crash and a hang of the
decoder's C code are seen from outside, by the signal that the worker died of.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.torture.outcome import DAMAGES, Outcome, peak_bytes

MEMORY_BYTES = 1_000_000_000  # address space of a worker
PATIENCE_S = 20.0  # for one image; any takes well below a second on a machine that is not busy
DECODE = "petface.data.images:decode"
_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_REPOSITORY = Path(__file__).resolve().parents[2]


def torture_images(
    num_images: int, seed: int, decode: str = DECODE, patience_s: float = PATIENCE_S
) -> Outcome:
    """Decode mutated images one by one; each gives an array or an `ImageError`, soon and small.

    `decode` is "module:function".
    """
    begun, outcome = time.monotonic(), Outcome("images", "mutated images")
    results: Counter[str] = Counter()
    peak_kb, slowest_s, first = 0, 0.0, 0
    while first < num_images:
        rows, code, last_words = _run_worker(decode, patience_s, seed, first, num_images)
        for row in rows:
            results[row["result"]] += 1
            peak_kb, slowest_s = max(peak_kb, row["peak_kb"]), max(slowest_s, row["seconds"])
            if row["result"] not in ("array", "refused"):
                outcome.failures.append(f"image {row['number']} ({row['kind']}): {row['why']}")
        first += len(rows)
        if code == 0:
            break
        end = "hang" if code == -signal.SIGALRM else "crash"
        results[end] += 1
        kind, _ = mutated(first, seed)
        outcome.failures.append(f"image {first} ({kind}): {end}, exit code {code} {last_words}")
        first += 1
    outcome.counts = {
        "decoded": results["array"],
        "refused": results["refused"],
        "crashes": results["crash"],
        "hangs": results["hang"],
        "peak_mb": peak_kb // 1000,
        "slowest_s": slowest_s,
    }
    outcome.seconds = time.monotonic() - begun
    return outcome


def _run_worker(
    decode: str, patience_s: float, seed: int, first: int, end: int
) -> tuple[list[dict[str, Any]], int, str]:
    """Let a worker decode images from `first` on; what it told, how it ended, its last words."""
    command = [sys.executable, "-m", "tests.torture.images", decode]
    done = subprocess.run(
        [*command, *map(str, (patience_s, seed, first, end))],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        cwd=_REPOSITORY,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.endswith("}")]
    return rows, done.returncode, done.stderr.strip().rpartition("\n")[2]


def _work(
    decode: Callable[[bytes], object], patience_s: float, seed: int, first: int, end: int
) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    warnings.simplefilter("ignore")
    for number in range(first, end):
        kind, data = mutated(number, seed)
        signal.setitimer(signal.ITIMER_REAL, patience_s)  # its signal ends the process
        begun = time.monotonic()
        result, why = _judge(decode, data)
        seconds = time.monotonic() - begun
        signal.setitimer(signal.ITIMER_REAL, 0)
        row = {"number": number, "kind": kind, "result": result, "why": why}
        print(json.dumps({**row, "peak_kb": peak_bytes() // 1024, "seconds": seconds}), flush=True)


def _judge(decode: Callable[[bytes], object], data: bytes) -> tuple[str, str]:
    """Name what came of an image: "array", "refused" or "wrong", and why."""
    from petface.data.images import MAX_PIXELS, ImageError

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
    return "array", ""


def mutated(number: int, seed: int) -> tuple[str, bytes]:
    """Give the kind and the bytes of image `number`, the same in every process."""
    draw = np.random.default_rng([seed, number])
    names = list(_sources())
    name = names[number % len(names)]
    data = _sources()[name]
    mutation = _MUTATIONS[int(draw.integers(len(_MUTATIONS)))]
    return f"{name}, {mutation.__name__.strip('_')}", bytes(mutation(bytearray(data), draw))


_SOURCES: dict[str, bytes] = {}


def _sources() -> dict[str, bytes]:
    """Draw one photo and encode it in every way that a data set may hold; made once."""
    if _SOURCES:
        return _SOURCES
    rows, columns = np.mgrid[0:40, 0:53]
    waves = [128 + 90 * np.sin(columns / 5 + c) * np.cos(rows / 7) for c in range(4)]
    rgba = np.stack(waves, axis=2).astype(np.uint8)
    rgb = Image.fromarray(np.ascontiguousarray(rgba[:, :, :3]))
    grey = rgba[:, :, 0]
    exif = Image.Exif()
    exif[0x0112] = 6
    later = [rgb.rotate(90), rgb.rotate(180)]
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    ways: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "png": (rgb, "PNG", {}),
        "png palette": (rgb.convert("P"), "PNG", {"transparency": 3}),
        "png alpha": (Image.fromarray(rgba), "PNG", {}),
        "png grey alpha": (Image.fromarray(rgba).convert("LA"), "PNG", {}),
        "png 16 bit": (deep, "PNG", {}),
        "png 1 bit": (rgb.convert("1"), "PNG", {}),
        "png animated": (rgb, "PNG", {"save_all": True, "append_images": later}),
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
    for name, (image, kind, options) in ways.items():
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        _SOURCES[name] = stream.getvalue()
    return _SOURCES


def _damaged(data: bytearray, draw: np.random.Generator) -> bytes:
    """Flip, overwrite, cut out, put in or cut off, as a broken disk or transfer does."""
    own = random.Random(int(draw.integers(2**32)))
    return own.choice(DAMAGES)(bytes(data), 0, len(data), own)


def _header_number(data: bytearray, draw: np.random.Generator) -> bytearray:
    """Put an extreme number of 1, 2 or 4 bytes somewhere into the first 200 bytes."""
    layout = ("B", "<H", ">H", "<I", ">I")[int(draw.integers(5))]
    size = struct.calcsize(layout)
    value = _EXTREMES[int(draw.integers(len(_EXTREMES)))] & (256**size - 1)
    place = int(draw.integers(max(1, min(200, len(data)) - size)))
    struct.pack_into(layout, data, place, value)
    return data


def _header_with_checksum(data: bytearray, draw: np.random.Generator) -> bytearray:
    """Change the header of a PNG and mend its checksum, so that the decoder believes it."""
    if not data.startswith(b"\x89PNG"):
        return _header_number(data, draw)
    data[16 + int(draw.integers(13))] = int(draw.integers(256))
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    return data


def _spliced(data: bytearray, draw: np.random.Generator) -> bytearray:
    """Go on in the middle of another file."""
    other = list(_sources().values())[int(draw.integers(len(_sources())))]
    return data[: int(draw.integers(len(data)))] + other[int(draw.integers(len(other))) :]


_MUTATIONS = (_damaged, _damaged, _damaged, _header_number, _header_with_checksum, _spliced)


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
    from petface.data.images import ImageError

    try:
        return np.zeros((50_000, 50_000, 3), np.uint8)
    except MemoryError as error:
        raise ImageError("no memory") from error


if __name__ == "__main__":
    module, _, function = sys.argv[1].partition(":")
    decoder = getattr(importlib.import_module(module), function)
    _work(decoder, float(sys.argv[2]), *map(int, sys.argv[3:]))
