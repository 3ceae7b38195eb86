"""What is measured of photos; their hashes and the search for near ones, against loops."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from petface.analysis import duplicates
from petface.data import images
from petface.data.catalog import listed_files
from petface.data.loading import OK


def photo(seed: int, side: int = 96) -> np.ndarray:
    """A smooth random picture: (side, side, 3) uint8."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 200, (7, 7, 3), dtype=np.uint8))
    return np.array(coarse.resize((side, side), Image.Resampling.BICUBIC))


def copies(pixels: np.ndarray) -> list[np.ndarray]:
    """The photo encoded again, resized, and brighter."""
    picture = Image.fromarray(pixels)
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=70)
    side = round(pixels.shape[0] * 0.9)
    return [
        images.decode(encoded.getvalue()),
        np.array(picture.resize((side, side), Image.Resampling.LANCZOS)),
        np.array(ImageEnhance.Brightness(picture).enhance(1.1)),
    ]


def check_pairs(result: duplicates.NearPairs, hashes: np.ndarray, records: np.ndarray) -> int:
    """Compare every hash with every other, bit by bit: the pairs within the radius, no others."""
    bits = np.array([[bin(a ^ b).count("1") for b in hashes.tolist()] for a in hashes.tolist()])
    is_near = np.triu(bits <= result.radius, k=1) & (records[:, None] != records)
    order = np.lexsort(result.pairs.T[::-1])
    np.testing.assert_array_equal(result.pairs[order], np.argwhere(is_near))
    np.testing.assert_array_equal(result.distance[order], bits[is_near])
    return len(order)


def clustered_hashes(num: int, seed: int) -> np.ndarray:
    """Hashes a few bits from one of five, so that many pairs are near."""
    draw = np.random.default_rng(seed)
    hashes = draw.integers(0, 2**64, 5, dtype=np.uint64)[draw.integers(0, 5, num)]
    for _ in range(5):
        flips = np.uint64(1) << draw.integers(0, 64, num, dtype=np.uint64)
        hashes ^= flips * (draw.random(num) < 0.5)
    return hashes


def test_the_search_finds_every_near_pair_of_different_records_and_no_other():
    hashes = clustered_hashes(250, seed=1)
    records = np.random.default_rng(2).integers(0, 60, 250)
    result = duplicates.near_pairs(hashes, hashes, records)
    assert check_pairs(result, hashes, records) > 3
    assert (result.radius, result.crowded) == (6, 0)


def test_six_bits_are_found_wherever_they_lie():
    for equal in itertools.combinations(range(8), 2):  # the bytes that the two share
        other = sum(1 << 8 * byte for byte in range(8) if byte not in equal)
        hashes = np.array([0, other], np.uint64)
        result = duplicates.near_pairs(hashes, hashes, np.array([0, 1]))
        assert result.distance.tolist() == [6], equal


def test_the_search_says_where_it_is_not_complete(monkeypatch):
    hashes, records = clustered_hashes(250, seed=1), np.arange(250)
    num = len(duplicates.near_pairs(hashes, hashes, records).pairs)
    monkeypatch.setattr(duplicates, "_MAX_CANDIDATES", num // 3)
    result = duplicates.near_pairs(hashes, hashes, records)
    assert result.radius < 6 and 0 < check_pairs(result, hashes, records) <= num // 3
    monkeypatch.setattr(duplicates, "_WINDOW", 10)
    result = duplicates.near_pairs(*np.full((2, 30), 7, np.uint64), np.arange(30))
    assert result.crowded == 2 * 30 - 10 - 1 and 0 < len(result.pairs) < 30 * 29 // 2


def test_records_with_equal_pixels_form_a_chain_that_crosses_the_splits():
    digests = np.array([9, 5, 9, 9, 9, 5, 4], np.uint64)
    records = np.array([0, 1, 2, 2, 3, 1, 4])
    splits = np.array([0, 0, 2, 2, 0, 0, 0])
    pairs = duplicates.exact_pairs(digests, records, splits)
    assert sorted(map(tuple, pairs.tolist())) in ([(0, 4), (2, 4)], [(0, 4), (3, 4)])


def test_a_digest_tells_pixels_and_shapes_apart():
    pixels = photo(0)
    other = pixels.copy()
    other[50, 50, 1] ^= 1
    digest = duplicates.pixel_digest
    assert digest(pixels) == digest(pixels[:, ::-1][:, ::-1]) != digest(other)
    assert digest(np.zeros((2, 8, 3), np.uint8)) != digest(np.zeros((8, 2, 3), np.uint8))


@pytest.mark.parametrize("shape", [(64, 96), (50, 33), (1, 5), (7, 200)])
def test_a_thumbnail_holds_the_mean_of_each_area(shape):
    height, width = shape
    pixels = np.random.default_rng(4).integers(0, 256, (height, width, 3), dtype=np.uint8)
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    # each pixel repeated 32 times a side: then every area is whole
    fine = np.repeat(np.repeat(grey, 32, axis=0), 32, axis=1)
    expected = fine.reshape(32, height, 32, width).mean(axis=(1, 3))
    assert np.abs(duplicates.thumbnail(pixels) - expected).max() <= 0.5 + 1e-3


def test_copies_are_near_and_strangers_are_not():
    originals = [photo(seed) for seed in range(12)]
    small = np.array([duplicates.thumbnail(pixels) for pixels in originals])
    hashes = duplicates.perceptual_hashes(small)
    for row, pixels in enumerate(originals):
        for copy in copies(pixels):
            both = np.stack((small[row], duplicates.thumbnail(copy)))
            bits = np.bitwise_count(hashes[row] ^ duplicates.perceptual_hashes(both[1:])[0])
            assert bits <= duplicates.MAX_HASH_DISTANCE
            difference = duplicates.thumbnail_difference(both[:1], both[1:])[0]
            assert difference <= duplicates.MAX_DIFFERENCE
    strangers = np.array([(i, j) for i in range(12) for j in range(i)])
    found = duplicates.thumbnail_difference(*small[strangers.T])
    assert found.min() > duplicates.MAX_DIFFERENCE
    i, j = strangers[5]
    a, b = ((t - t.mean()) / t.std() for t in small[[i, j]].astype(float))
    assert found[5] == pytest.approx(np.abs(a - b).mean(), abs=1e-5)


def test_the_hash_tells_which_low_cosine_terms_exceed_their_median():
    small = duplicates.thumbnail(photo(0)).astype(float)
    cosines = np.cos(np.pi / 32 * np.arange(8)[:, None] * (np.arange(32) + 0.5))
    terms = (cosines @ small @ cosines.T).ravel()
    bits = np.packbits(terms > np.median(terms)).view(np.uint64)[0]
    assert duplicates.perceptual_hashes(small[None])[0] == bits


def test_mirrored_copies_are_pairs_once_and_strangers_are_none():
    small = np.array([duplicates.thumbnail(photo(seed)) for seed in range(8)])
    copies_of = np.concatenate((small, small[:3, :, ::-1], small[3:5]))
    straight, mirrored = (duplicates.perceptual_hashes(copies_of[:, :, ::step]) for step in (1, -1))
    found = duplicates.near_pairs(straight, mirrored, np.arange(len(copies_of)))
    expected = [(0, 8), (1, 9), (2, 10), (3, 11), (4, 12)]
    assert sorted(map(tuple, found.pairs.tolist())) == expected and not found.distance.any()
    none = np.zeros(0, np.uint64)
    assert duplicates.near_pairs(none, none, np.zeros(0, int)).pairs.shape == (0, 2)


@pytest.mark.parametrize("workers", [0, 2])
def test_files_are_measured_in_order_and_broken_ones_counted(tmp_path, workers):
    names = []
    for number in range(40):
        names.append(f"{number % 7}/{number}.png")
        path = tmp_path / names[-1]
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8 + number, 3), 2 * number, np.uint8)).save(path)
    (tmp_path / names[5]).write_bytes(b"no image")
    (tmp_path / names[6]).unlink()
    places = np.array([*range(39, 2, -1)])
    looked = duplicates.look_at(listed_files(tmp_path, names), places, workers)
    found, is_bad = looked.seen, np.isin(places, [5, 6])
    np.testing.assert_array_equal(found["status"] == OK, ~is_bad)
    for name, values in (("brightness", 2 * places), ("width_px", 8 + places)):
        np.testing.assert_array_equal(found[name], np.where(is_bad, 0, values))
    assert len(looked.failures) == 2 and str(tmp_path) not in "".join(looked.failures)
    assert len(duplicates.look_at(listed_files(tmp_path, []), places[:0], workers).seen) == 0
