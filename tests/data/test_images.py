"""One documented rule per kind of image, and resizing, against plain loops and torchvision."""

from __future__ import annotations

import io
import json
import pickle
import random
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from petface.data import images
from petface.data.images import ImageError, Preprocessing, decode, resize
from petface.errors import UserError
from tests.torture import fuzz

WIDTH, HEIGHT = 19, 13


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


COLOUR = noise(HEIGHT, WIDTH, 3)
ALPHA = noise(HEIGHT, WIDTH, seed=1)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def photo(height: int = 37, width: int = 23, seed: int = 0) -> Image.Image:
    return Image.fromarray(noise(5, 4, 3, seed=seed)).resize((width, height))


HEAD = b"\x89PNG\r\n\x1a\n"


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Take a PNG apart into (kind, content)."""
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


def on_black(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Composite pixel by pixel: colour * alpha / 255, rounded."""
    out = np.empty((*alpha.shape, 3), np.uint8)
    for y, x in np.ndindex(alpha.shape):
        for channel in range(3):
            out[y, x, channel] = round(int(colour[y, x, channel]) * int(alpha[y, x]) / 255)
    return out


def assert_pixels(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.dtype == np.uint8 and found.flags.c_contiguous and found.flags.writeable
    np.testing.assert_array_equal(found, wanted)


def test_every_format_and_kind_of_source_gives_the_same_pixels(tmp_path):
    picture = Image.fromarray(COLOUR)
    for kind in ("PNG", "BMP", "TIFF", "WEBP"):
        assert_pixels(decode(encoded(picture, kind, lossless=True)), COLOUR)
    jpeg = encoded(picture, "JPEG")
    assert_pixels(decode(jpeg), np.array(Image.open(io.BytesIO(jpeg))))
    path = tmp_path / "00.png"
    path.write_bytes(encoded(picture))
    array = COLOUR.copy()
    for source in (path, str(path), path.read_bytes(), Image.open(path), array, picture):
        found = decode(source)
        assert_pixels(found, COLOUR)
        found[:] = 0  # shares nothing with its source
    assert np.array_equal(array, COLOUR) and np.array_equal(np.array(picture), COLOUR)
    pytest.raises(TypeError, decode, 3)  # a programming error


def test_grey_one_bit_and_palette():
    grey = COLOUR[:, :, 0]
    three = np.stack([grey] * 3, axis=2)
    assert_pixels(decode(encoded(Image.fromarray(grey))), three)
    assert_pixels(decode(grey), three)
    assert_pixels(decode(grey[:, :, None]), three)
    bits = grey > 127
    for source in (encoded(Image.fromarray(bits)), bits):
        assert_pixels(decode(source), np.where(bits[:, :, None], [[[255] * 3]], 0).astype(np.uint8))
    palette = noise(256, 3, seed=2)
    picture = Image.fromarray(grey, "L").convert("P")
    picture.putpalette(palette.tobytes())
    for kind in ("PNG", "GIF", "BMP"):
        assert_pixels(decode(encoded(picture, kind)), palette[np.array(picture)])


def test_sixteen_bit_grey_is_scaled_not_clipped():
    deep = np.arange(WIDTH * HEIGHT).reshape(HEIGHT, WIDTH) * 65535 // (WIDTH * HEIGHT - 1)
    deep = deep.astype(np.uint16)
    wanted = np.array([[round(int(v) / 257) for v in row] for row in deep], np.uint8)
    wanted = np.stack([wanted] * 3, axis=2)
    assert wanted.min() == 0 and wanted.max() == 255
    picture = Image.fromarray(deep)
    big_endian = Image.frombytes("I;16B", (WIDTH, HEIGHT), deep.astype(">u2").tobytes())
    sources = [encoded(picture), encoded(picture, "TIFF"), encoded(big_endian, "TIFF")]
    for source in [*sources, picture, big_endian, deep, Image.fromarray(deep.astype(np.int32))]:
        assert_pixels(decode(source), wanted)


@pytest.mark.filterwarnings("error")  # casting NaN is undefined and warns
def test_deeper_numbers_are_clipped_and_floats_run_from_0_to_1():
    whole = Image.fromarray(np.array([[-5, 0, 257, 65535, 1 << 20]], np.int32))
    assert decode(whole)[0, :, 0].tolist() == [0, 0, 1, 255, 255]
    real = Image.fromarray(np.array([[-1.0, 0.5, 1.0, 9.0, np.nan, np.inf]], np.float32))
    for source in (real, encoded(real, "TIFF")):
        assert decode(source)[0, :, 1].tolist() == [0, 128, 255, 255, 0, 255]


def test_alpha_is_composited_on_black():
    rgba = np.dstack([COLOUR, ALPHA])
    wanted = on_black(COLOUR, ALPHA)
    for source in (rgba, Image.fromarray(rgba), encoded(Image.fromarray(rgba))):
        assert_pixels(decode(source), wanted)
    webp = encoded(Image.fromarray(rgba), "WEBP", lossless=True, exact=True)
    assert_pixels(decode(webp), wanted)
    grey_alpha = Image.merge("LA", [Image.fromarray(COLOUR[:, :, 0]), Image.fromarray(ALPHA)])
    grey = np.stack([COLOUR[:, :, 0]] * 3, axis=2)
    assert_pixels(decode(encoded(grey_alpha)), on_black(grey, ALPHA))
    assert np.abs(decode(grey_alpha.convert("La")).astype(int) - on_black(grey, ALPHA)).max() <= 1


def test_transparent_palette_entries_and_colour_keys_turn_black():
    palette, alphas = noise(256, 3, seed=2), noise(256, seed=3)
    picture = Image.fromarray(ALPHA).convert("P")
    picture.putpalette(palette.tobytes())
    index = np.array(picture)
    wanted = on_black(palette[index], alphas[index])
    assert_pixels(decode(encoded(picture, transparency=alphas.tobytes())), wanted)
    one = int(index[4, 4])
    for kind in ("PNG", "GIF"):
        found = decode(encoded(picture, kind, transparency=one))
        assert_pixels(
            found, np.where((index == one)[:, :, None], 0, palette[index]).astype(np.uint8)
        )
    key = tuple(int(v) for v in COLOUR[2, 3])
    found = decode(encoded(Image.fromarray(COLOUR), transparency=key))
    is_key = (key == COLOUR).all(axis=2, keepdims=True)
    assert_pixels(found, np.where(is_key, 0, COLOUR).astype(np.uint8))


def test_cmyk_and_ycbcr_become_rgb():
    cmyk = noise(HEIGHT, WIDTH, 4)
    picture = Image.frombytes("CMYK", (WIDTH, HEIGHT), cmyk.tobytes())
    ink = 255.0 - cmyk.astype(float)
    wanted = ink[:, :, :3] * ink[:, :, 3:] / 255  # (1 - c) * (1 - k)
    assert np.abs(decode(encoded(picture, "TIFF")) - wanted).max() <= 1
    jpeg = encoded(picture, "JPEG", quality=100, subsampling=0)
    assert np.abs(decode(jpeg) - wanted).mean() < 3  # not inverted
    ycbcr = Image.fromarray(COLOUR).convert("YCbCr")
    assert np.abs(decode(ycbcr).astype(int) - COLOUR).max() <= 3


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_animated_gives_the_first_frame(kind):
    first = Image.new("RGB", (WIDTH, HEIGHT), (200, 10, 30))
    second = Image.new("RGB", (WIDTH, HEIGHT), (0, 250, 0))
    source = encoded(first, kind, save_all=True, append_images=[second], lossless=kind == "WEBP")
    assert Image.open(io.BytesIO(source)).n_frames == 2
    if kind == "MPO":  # a JPEG of several pictures
        assert np.abs(decode(source).astype(int) - (200, 10, 30)).max() <= 3
    else:
        assert_pixels(decode(source), np.array(first))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    source = encoded(Image.fromarray(COLOUR), kind, exif=exif)
    wanted = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(source))).convert("RGB"))
    assert wanted.shape[:2] == ((HEIGHT, WIDTH) if orientation < 5 else (WIDTH, HEIGHT))
    assert_pixels(decode(source), wanted)
    assert_pixels(decode(Image.open(io.BytesIO(source))), wanted)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"MM\0*\xff\xff\xff\xff" + b"\x99" * 20, b"garbage" * 3])
def test_damaged_exif_counts_as_none(exif):
    assert_pixels(decode(encoded(Image.fromarray(COLOUR), exif=b"Exif\0\0" + exif)), COLOUR)


def test_arrays_of_another_kind_are_refused():
    shapes = [(4, 4, 3), (4, 4, 2), (3, 4, 4, 3), (0, 4, 3), (4, 4, 3)]
    for shape, kind in zip(shapes, ("f4", "u1", "u1", "u1", "u2"), strict=True):
        with pytest.raises(ImageError, match="array"):
            decode(np.zeros(shape, kind))


SHAPES = [(37, 53), (64, 64), (300, 211), (225, 224), (1, 1), (1, 5000), (4999, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size_px", [24, 64])
def test_resizing_equals_torchvision_on_pil(shape, size_px):
    image = noise(*shape, 3)

    def torchvision(*size: int) -> np.ndarray:
        bilinear = InterpolationMode.BILINEAR
        return np.array(TF.resize(Image.fromarray(image), list(size), interpolation=bilinear))

    np.testing.assert_array_equal(resize(image, size_px, "stretch"), torchvision(size_px, size_px))
    wanted = TF.center_crop(Image.fromarray(torchvision(size_px)), [size_px, size_px])
    found = resize(image, size_px, "center_crop")
    assert np.abs(found.astype(int) - np.array(wanted)).max() <= 1  # Pillow's box is float32
    inner = [max(1, round(side * size_px / max(shape))) for side in shape]
    (top, left), wanted = ((size_px - side) // 2 for side in inner), np.zeros_like(found)
    wanted[top : top + inner[0], left : left + inner[1]] = torchvision(*inner)
    np.testing.assert_array_equal(resize(image, size_px, "letterbox"), wanted)
    square = noise(size_px, size_px, 3)
    for rule in images.RESIZE_RULES:
        assert resize(image, size_px, rule).flags.c_contiguous
        assert resize(square, size_px, rule) is square
        assert resize(square[:, ::-1], size_px, rule).flags.c_contiguous


def test_preprocessing_round_trips_through_json():
    other = Preprocessing(96, "letterbox", (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    for wanted in (Preprocessing(), other):
        stored = json.loads(json.dumps(wanted.to_dict()))
        assert stored == wanted.to_dict() and Preprocessing.from_dict(stored) == wanted
    assert Preprocessing(mean=[0, 0, 0], std=[1, 1, 1]).mean == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"size_px": 0}, "size_px"),
        ({"size_px": 224.0}, "size_px"),
        ({"size_px": True}, "size_px"),
        ({"resize": "squash"}, "squash"),
        ({"mean": [0.5] * 3}, "both"),
        ({"mean": [0.5] * 2, "std": [1.0] * 3}, "mean"),
        ({"mean": [0.5] * 3, "std": [1.0, 1.0, 0.0]}, "std"),
        ({"mean": [float("nan")] * 3, "std": [1.0] * 3}, "mean"),
        ({"mean": "abc", "std": [1.0] * 3}, "mean"),
        ({"sise_px": 3}, "sise_px"),
    ],
)
def test_nonsense_in_a_stored_preprocessing_is_refused(change, word):
    with pytest.raises(UserError, match=word):
        Preprocessing.from_dict(Preprocessing().to_dict() | change)
    for incomplete in (None, {}, {"size_px": 224}, [1]):
        with pytest.raises(UserError, match="expected entries"):
            Preprocessing.from_dict(incomplete)


def test_image_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(ImageError("a.png: huge", "too_large")))
    assert (str(error), error.reason) == ("a.png: huge", "too_large")


# ---- the faster decoder of plain PNG files: what Pillow gives, or nothing ----


@pytest.fixture
def fast(monkeypatch) -> list[bytes]:
    """List the files that the faster decoder took."""
    pytest.importorskip("imagecodecs")
    real, taken = images._png_decoder(), []

    def decoder(data: bytes) -> object:
        pixels = real(data)
        taken.append(data)
        return pixels

    monkeypatch.setattr(images, "_png_decoder", lambda: decoder)
    return taken


def damaged(number: int) -> bytes:
    """Damage a photo; in every other one the checksums are right nevertheless."""
    draw = random.Random(number)
    whole = encoded(photo(seed=number % 7))
    begin, end = draw.choice([(0, len(whole)), (0, 45), (len(whole) - 40, len(whole))])
    data = fuzz.damaged(whole, draw, begin, end)
    return joined(chunks(data)) if number % 2 else data


def outcome(data: bytes) -> np.ndarray | str:
    try:
        return decode(data)
    except ImageError as error:
        return f"{error.reason}: {error}"


def test_plain_photos_are_decoded_fast_and_all_as_by_pillow(fast, monkeypatch):
    (_, head), (_, pixels), end = chunks(encoded(photo()))
    pieces = [(b"IDAT", pixels[at : at + 7]) for at in range(0, len(pixels), 7)]
    plain = [
        *(encoded(photo(*shape)) for shape in [(1, 1), (37, 23), (224, 224)]),
        *(encoded(photo(), compress_level=level) for level in (0, 1, 9)),
        joined([(b"IHDR", head), *pieces, (b"IDAT", b""), end]),
    ]
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", "exif")
    others = [
        *(encoded(photo(), **how) for how in ({"exif": exif}, {"pnginfo": text})),
        encoded(photo(), transparency=(1, 2, 3)),
        *(encoded(photo().convert(mode)) for mode in ("RGBA", "L", "P", "1")),
        encoded(Image.fromarray(np.zeros((4, 4), np.uint16))),
        b"\xff\xd8\xff" + encoded(photo()),
    ]
    whole = [outcome(data) for data in plain + others]
    assert fast == plain
    broken = [damaged(number) for number in range(1500)]
    found = whole + [outcome(data) for data in broken]
    assert len(fast) > 50, "the faster decoder took part"
    monkeypatch.setattr(images, "_png_decoder", lambda: None)
    for number, (data, one) in enumerate(zip(plain + others + broken, found, strict=True)):
        other = outcome(data)
        assert type(one) is type(other) and np.array_equal(one, other), number


def test_large_files_and_pictures_are_refused_before_they_are_decoded(fast, monkeypatch, tmp_path):
    whole, path = encoded(photo()), tmp_path / "large.png"
    with pytest.raises(ImageError, match="more than 850 pixels"):
        decode(whole, max_pixels=37 * 23 - 1)
    monkeypatch.setattr(images, "MAX_FILE_BYTES", len(whole) - 1)
    path.write_bytes(whole)
    with pytest.raises(ImageError, match="bytes are more than") as caught:
        decode(path)
    assert caught.value.reason == "too_large" and fast == []


def test_without_the_package_pillow_decodes(monkeypatch):
    images._png_decoder.cache_clear()
    monkeypatch.setattr(images, "find_spec", lambda _: None)
    assert images._png_decoder() is None
    assert_pixels(decode(encoded(photo())), np.array(photo()))
    images._png_decoder.cache_clear()
