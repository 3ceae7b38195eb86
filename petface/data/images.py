"""Decode a file, bytes, a PIL image or an array to RGB uint8, and resize it.

Training, evaluation and serving follow the same rules:

- Only regular files are read (a pipe would hang): PNG, JPEG (also MPO), WEBP, GIF, BMP, TIFF, AVIF,
  and HEIC with the extra `heic`, whatever the suffix.
- Metadata (text, profiles, previews) never makes an image unreadable.
- An image above `MAX_PIXELS`, or with a side above `MAX_SIDE_PX`, is rejected by its header.
- EXIF orientation is applied; a damaged EXIF block is ignored.
- 16-bit grey is scaled to 8 bits by round(v / 257). 32-bit integers are first clipped to 16 bits.
  Float grey ranges from 0 to 1. Pillow reduces 16-bit colour to its high byte.
- Transparency (alpha channel, palette alpha, colour key) is composited on black.
- Of animated files the first frame is used. Pillow converts other modes to RGB.
- Damaged images raise `ImageError`. PNG checksums detect any flipped bit; the other formats have no
  checksums, so only damage that stops the decoder is detected.
"""

from __future__ import annotations

import io
import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, fields
from functools import cache, partial
from importlib.util import find_spec
from io import FileIO
from threading import Lock, Semaphore
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from petface import files
from petface.data import encoded
from petface.errors import UserError

if TYPE_CHECKING:  # decoding alone does not need torch
    from torch import Tensor

MAX_PIXELS: Final = 50_000_000  # 150 MB as RGB; up to 1 GB while decoding
MAX_SIDE_PX: Final = 20_000  # longer than phone panoramas; each row costs a decoder time
SMALL_PIXELS: Final = 1_000_000  # smaller photos do not wait for room, see `room_for`
MAX_FILE_BYTES: Final = 400_000_000  # `MAX_PIXELS` at 64 bits each
RESIZE_RULES: Final = ("stretch", "center_crop", "letterbox")

# Mean and standard deviation per channel on the scale 0..1, by the name that settings use.
STATISTICS: Final[dict[str, tuple[tuple[float, ...] | None, tuple[float, ...] | None]]] = {
    "none": (None, None),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # torchvision's pretrained models
}

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | np.ndarray"

_PNG_RGB = b"\x08\x02\0\0\0"  # 8 bit, colour, no interlace; no alpha
_EXIF_ORIENTATION = 0x0112
_TIFF_TILE_WIDTH = 322  # the length is the next tag
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_Made = TypeVar("_Made")
_turn: Lock
_room: Semaphore

# Pillow keeps four blocks of pixels (at most 64 MB) for the next images. Otherwise the C library
# frees and page-faults the memory of each image, which is half the time of a small JPEG.
Image.core.set_blocks_max(4)


class ImageError(UserError):
    """An unusable image; `reason` ("unreadable", "too_large") becomes the `status` of its row."""

    def __init__(self, message: str, reason: str = "unreadable") -> None:
        super().__init__(message)
        self.reason = reason


class MissingError(ImageError):
    """The file does not exist."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes network input; stored in checkpoints and used by everything downstream.

    "stretch" resizes both sides to `size_px`. "center_crop" resizes the short side and keeps the
    centre. "letterbox" resizes the long side and pads with black. Raises `UserError` for invalid
    values.
    """

    size_px: int = 224
    resize: str = "stretch"
    mean: tuple[float, ...] | None = None  # per channel on the scale 0..1; None = none
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if type(self.size_px) is not int or self.size_px < 1:
            raise UserError(f"preprocessing: size_px {self.size_px!r} is not a positive integer")
        if self.resize not in RESIZE_RULES:
            raise UserError(f"preprocessing: resize must be in {RESIZE_RULES}, not {self.resize!r}")
        if (self.mean is None) != (self.std is None):
            raise UserError("preprocessing: mean and std go together: give both or neither")
        for name, values in (("mean", self.mean), ("std", self.std)):
            numbers: tuple[float, ...] = ()
            with suppress(TypeError, ValueError):
                numbers = tuple(float(value) for value in values or ())
            if values is not None and (len(numbers) != 3 or not all(map(math.isfinite, numbers))):
                what = f"{name} must be three finite numbers, not {values!r}"
                raise UserError(f"preprocessing: {what}")
            object.__setattr__(self, name, numbers or None)
        if self.std is not None and min(self.std) <= 0:
            raise UserError(f"preprocessing: std must be above 0, not {self.std}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python values without tuples, for JSON and for a checkpoint."""
        values = asdict(self)
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Read the result of `to_dict`; missing, unknown or invalid entries raise `UserError`."""
        names = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping) or set(values) != names:
            raise UserError(f"preprocessing: expected entries {sorted(names)}, found {values!r}")
        return cls(**values)


def num_pixels(source: ImageSource) -> int:
    """Return the pixel count that a file or bytes declare; 0 if decoded already or damaged."""
    if isinstance(source, np.ndarray | Image.Image):
        return 0
    with suppress(Exception):
        data = source if isinstance(source, bytes) else read_photo(source, "")
        size = encoded.header_size(data)
        return math.prod(size or _first_that_works(data, lambda image, _: _size(image)))
    return 0


def decode(source: ImageSource, max_pixels: int | None = None) -> np.ndarray:
    """Decode one image to (H, W, 3) uint8, C-contiguous, writable, sharing no memory with `source`.

    `source` is a path, the bytes of an encoded image, a PIL image (at its current frame) or an
    array: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) uint8, (H, W) uint16 or bool. Raises
    `ImageError` with the source and the reason for any unusable image. Above `max_pixels`
    (default `MAX_PIXELS`) the reason is "too_large". Read failures of the machine are retried, then
    raise `MachineError`, because they say nothing about the photo.
    """
    name = name_of(source)
    return files.patiently(partial(_decode, source, name, max_pixels or MAX_PIXELS), name)


def _decode(source: ImageSource, name: str, max_pixels: int) -> np.ndarray:
    try:
        if isinstance(source, np.ndarray):
            source = _image_of(source, name)
        if isinstance(source, Image.Image):
            return _rgb_array(source, name, max_pixels)
        if not isinstance(source, bytes | bytearray | memoryview):
            source = read_photo(source, name)
        return _decode_bytes(bytes(source), name, max_pixels)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name}: more than {max_pixels:,} pixels", "too_large") from error
    except Exception as error:  # damaged bytes make Pillow raise nearly every type of exception
        if files.is_of_machine(error):
            raise
        detail = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ImageError(f"{name}: {detail or type(error).__name__}") from error


def _make_room() -> None:
    global _turn, _room
    _turn, _room = Lock(), Semaphore(MAX_PIXELS // SMALL_PIXELS)


_make_room()
os.register_at_fork(after_in_child=_make_room)  # what other threads hold would never be given back


@contextmanager
def room_for(source: ImageSource) -> Iterator[None]:
    """Wait until there is room to decode and resize a photo; free it at the end of the block.

    Within such blocks, the threads of this process hold at most `MAX_PIXELS` decoded, not counting
    small photos, which never wait.
    """
    num = min(num_pixels(source), MAX_PIXELS) // SMALL_PIXELS
    with _turn if num else nullcontext():  # nobody overtakes a large photo that waits
        for _ in range(num):
            _room.acquire()
    try:
        yield
    finally:
        if num:
            _room.release(num)


def resize(image: np.ndarray, size_px: int, rule: str) -> np.ndarray:
    """Resize (H, W, 3) uint8 to (size_px, size_px, 3) by one of `RESIZE_RULES`, C-contiguous.

    Resizing is bilinear with antialiasing, as in torchvision's `Resize` of PIL images. An image of
    this size is returned as it is, not copied.
    """
    assert rule in RESIZE_RULES, rule
    height, width = image.shape[:2]
    if (height, width) == (size_px, size_px):
        return np.ascontiguousarray(image)
    picture = Image.fromarray(image)
    bilinear = Image.Resampling.BILINEAR
    if rule == "stretch":
        return np.array(picture.resize((size_px, size_px), bilinear))
    if rule == "center_crop":
        # Crop in source pixels: a whole 1x5000 strip would take 750 MB once resized.
        box = _center_box(width, height, size_px)
        return np.array(picture.resize((size_px, size_px), bilinear, box=box))
    scale = size_px / max(width, height)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    canvas = Image.new("RGB", (size_px, size_px))
    left, top = (size_px - inner[0]) // 2, (size_px - inner[1]) // 2
    canvas.paste(picture.resize(inner, bilinear), (left, top))
    return np.array(canvas)


def _center_box(width: int, height: int, size_px: int) -> tuple[float, float, float, float]:
    """Return the source box (left, top, right, bottom) of the central square.

    It rounds as torchvision's `Resize(size_px)` followed by `CenterCrop(size_px)`.
    """
    short = min(width, height)
    starts, lengths = [], []
    for side in (width, height):
        resized = size_px * side // short
        starts.append(round((resized - size_px) / 2) * side / resized)
        lengths.append(size_px * side / resized)
    right, bottom = starts[0] + lengths[0], starts[1] + lengths[1]
    return starts[0], starts[1], min(right, width), min(bottom, height)


def read_photo(path: str | os.PathLike[str], name: str) -> bytes:
    """Read a regular file; reject anything else before it is opened."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{name}: not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            what = f"{status.st_size:,} bytes are more than {MAX_FILE_BYTES:,}"
            raise ImageError(f"{name}: {what}", "too_large")
        with FileIO(path) as handle:
            return handle.read()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingError(f"{name}: no such file") from error


def read_header(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return width and height from the header of a photo that can be decoded."""
    data = files.patiently(partial(read_photo, path, name_of(path)), name_of(path))
    return _first_that_works(data, lambda image, _: image.size)


def _decode_bytes(data: bytes, name: str, max_pixels: int) -> np.ndarray:
    """Decode an encoded image, without its metadata if that cannot be read."""

    def pixels(image: Image.Image, plain: bytes) -> np.ndarray:
        _check_pixels(*_size(image), name, max_pixels)
        if plain[24:29] == _PNG_RGB and (decoder := _png_decoder()):
            with suppress(Exception):  # Pillow then reports what is wrong
                return np.asarray(decoder(plain))
        return _rgb_array(image, name, max_pixels)

    if not data:
        raise ImageError(f"{name}: empty (0 bytes)")
    if size := encoded.header_size(data):
        _check_pixels(*size, name, max_pixels)
    try:
        return _first_that_works(data, pixels)
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: {encoded.not_read_text(data)}") from error


def _first_that_works(data: bytes, work: Callable[[Image.Image, bytes], _Made]) -> _Made:
    """Call `work` on the first of `attempts` that opens, with its bytes if they are plain."""
    first: Exception | None = None
    for attempt, is_plain in encoded.attempts(data):
        try:
            with Image.open(io.BytesIO(attempt), formats=encoded.formats()) as image:
                return work(image, attempt if is_plain else b"")
        except (ImageError, MemoryError, Image.DecompressionBombError):
            raise
        except Exception as error:
            first = first or error
    raise first or ValueError("holds no image")


@cache
def _png_decoder() -> Callable[[bytes], Any] | None:
    """Return a decoder of plain PNG bytes with Pillow's pixels in half the time.

    None without imagecodecs (extra `decode`).
    """
    if find_spec("imagecodecs") is None:
        return None
    import imagecodecs

    # Not png_decode: in 2026.3.6 each failure drops a reference to None and finally crashes Python.
    return imagecodecs.spng_decode if imagecodecs.SPNG.available else None


def _image_of(array: np.ndarray, name: str) -> Image.Image:
    """Wrap an array as a PIL image."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    is_grey = array.ndim == 2 and array.dtype in (np.uint8, np.uint16, np.bool_)
    is_colour = array.ndim == 3 and array.shape[2] in (3, 4) and array.dtype == np.uint8
    if not (is_grey or is_colour) or array.size == 0:
        kinds = "(H, W, 3), (H, W, 4) or (H, W) of uint8, or (H, W) of uint16 or bool"
        raise ImageError(f"{name}: expected {kinds}, with at least one pixel")
    return Image.fromarray(np.ascontiguousarray(array))


def _size(image: Image.Image) -> tuple[int, int]:
    """Return the decoded width and height; the tiles of a TIFF can exceed the image."""
    tags = getattr(image, "tag_v2", {})
    width, height = tags.get(_TIFF_TILE_WIDTH, 0), tags.get(_TIFF_TILE_WIDTH + 1, 0)
    return max(image.width, width), max(image.height, height)


def _check_pixels(width: int, height: int, name: str, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"{name}: {width}x{height} has no pixels")
    if width * height > max_pixels or max(width, height) > MAX_SIDE_PX:
        what = f"{width}x{height} is more than {max_pixels:,} pixels, or {MAX_SIDE_PX:,} on a side"
        raise ImageError(f"{name}: {what}", "too_large")


def _rgb_array(image: Image.Image, name: str, max_pixels: int) -> np.ndarray:
    """Convert any PIL image to (H, W, 3) uint8 by the rules at the top of this file."""
    _check_pixels(*image.size, name, max_pixels)
    image.load()
    orientation = 1
    with suppress(Exception):  # a damaged EXIF block does not make the pixels unreadable
        # After load(): TIFF applies its own there and drops the tag.
        orientation = int(image.getexif().get(_EXIF_ORIENTATION, 1))
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        rgb = Image.fromarray(_eight_bit(np.asarray(image))).convert("RGB")
    elif image.has_transparency_data:
        layer = image.convert("LA") if image.mode == "La" else image
        layer = layer if layer.mode == "RGBA" else layer.convert("RGBA")  # no second copy
        rgb = Image.new("RGB", layer.size)
        rgb.paste(layer.convert("RGB"), mask=layer.getchannel("A"))
    else:
        rgb = image.convert("RGB")
    if orientation in _TRANSPOSE:
        rgb = rgb.transpose(_TRANSPOSE[orientation])
    return np.array(rgb)


def _eight_bit(grey: np.ndarray) -> np.ndarray:
    """Scale deep grey to uint8: integers from 0..65535, floats from 0..1 (NaN is black)."""
    if grey.dtype.kind == "f":
        return np.rint(np.clip(np.nan_to_num(grey), 0, 1) * 255).astype(np.uint8)
    return ((np.clip(grey, 0, 65535).astype(np.uint32) + 128) // 257).astype(np.uint8)


def name_of(source: ImageSource) -> str:
    """Return the name of a source for messages; bytes that are not UTF-8 are escaped."""
    if isinstance(source, np.ndarray):
        return f"array {source.shape} {source.dtype}"
    if isinstance(source, Image.Image):
        return f"PIL image ({source.mode}, {source.width}x{source.height})"
    if isinstance(source, bytes | bytearray | memoryview):
        return f"image of {len(source):,} bytes"
    return files.readable_name(source)


def to_float(images: Tensor) -> Tensor:
    """Convert (B, 3, H, W) uint8 to float32 in [0, 1], as `augment` does without augmentation."""
    return images.float().div_(255)


def normalise(images: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    """Return (images - mean) / std per channel of (B, 3, H, W); unchanged if None; dtype kept."""
    if mean is None or std is None:
        return images
    from petface.devices import constant

    x = images.float()
    centre, spread = (constant(tuple(row), x.device).view(-1, 1, 1) for row in (mean, std))
    return x.sub(centre).div_(spread).to(images.dtype)
