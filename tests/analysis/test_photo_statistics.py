"""Statistics of photos against naive loops and photos made by hand."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from petface.analysis import photo_statistics
from petface.analysis.photo_statistics import SHARPNESS_PX, black_border_frac, measure, sharpness
from petface.data.catalog import listed_files
from petface.data.loading import OK


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(30, 256, (height, width, 3), dtype=np.uint8)


def test_sharpness_is_the_variance_of_the_laplacian():
    pixels = noise(SHARPNESS_PX, SHARPNESS_PX)
    g = [[0.299 * r + 0.587 * g + 0.114 * b for r, g, b in row] for row in pixels.tolist()]
    values = [
        4 * g[y][x] - g[y - 1][x] - g[y + 1][x] - g[y][x - 1] - g[y][x + 1]
        for y in range(1, SHARPNESS_PX - 1)
        for x in range(1, SHARPNESS_PX - 1)
    ]
    assert sharpness(pixels) == pytest.approx(np.var(values), rel=1e-4)


def test_blur_lowers_sharpness_and_a_flat_photo_has_none():
    photo = Image.fromarray(noise(128, 128))
    found = [
        sharpness(np.array(photo.filter(ImageFilter.GaussianBlur(radius))))
        for radius in (0, 1, 2, 4)
    ]
    assert found == sorted(found, reverse=True) and found[0] > 10 * found[1]
    assert sharpness(np.full((50, 70, 3), 90, np.uint8)) == 0


def naive_border(pixels):
    """From each edge along each row and column until a pixel is not nearly black."""
    height, width = pixels.shape[:2]
    border = set()
    lines = [[(y, x) for x in range(width)] for y in range(height)]
    lines += [[(y, x) for y in range(height)] for x in range(width)]
    for line in lines:
        for way in (line, line[::-1]):
            for y, x in way:
                if max(pixels[y, x]) > 8:
                    break
                border.add((y, x))
    return len(border) / (height * width)


def test_black_border():
    photo = noise(20, 30)
    assert black_border_frac(photo) == 0
    photo[:3], photo[:, 28:] = 8, 0
    assert black_border_frac(photo) == pytest.approx((3 * 30 + 17 * 2) / 600)
    photo[10:12, 10:15] = 0  # black inside the photo is no border
    assert black_border_frac(photo) == pytest.approx(naive_border(photo)) == 124 / 600
    photo[0, 0, 1] = 9  # one channel is not black: only the way along this row ends here
    assert black_border_frac(photo) == pytest.approx(naive_border(photo)) == 123 / 600
    assert black_border_frac(np.zeros((4, 5, 3), np.uint8)) == 1


def test_black_corners_of_a_turned_photo():
    turned = np.array(Image.fromarray(noise(64, 64)).rotate(10))
    found = black_border_frac(turned)
    assert found == pytest.approx(naive_border(turned))
    assert 0.05 < found < 0.2


def test_light_and_shape():
    photo = np.full((40, 80, 3), 100, np.uint8)
    photo[:, 40:] = 200
    found = measure(photo)
    assert list(found) == list(photo_statistics.STATISTICS)
    assert found["brightness"] == 150 and found["contrast"] == 50
    assert found["aspect_ratio"] == 2 and found["short_side"] == 40 and found["black_border"] == 0


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
    found = photo_statistics.measure_photos(listed_files(tmp_path, names), places, workers)
    is_bad = np.isin(places, [5, 6])
    np.testing.assert_array_equal(found["status"] == OK, ~is_bad)
    np.testing.assert_array_equal(found["brightness"][~is_bad], 2 * places[~is_bad])
    np.testing.assert_allclose(found["aspect_ratio"][~is_bad], (8 + places[~is_bad]) / 8)
    assert np.isnan(found["sharpness"][is_bad]).all()


def test_no_photo_at_all(tmp_path):
    found = photo_statistics.measure_photos(listed_files(tmp_path, []), np.zeros(0, np.int64), 0)
    assert found.shape == (0,)
