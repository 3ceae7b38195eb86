"""What is measured of photos, against naive loops and photos made by hand."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from petface.analysis import photos
from petface.analysis.photos import SHARPNESS_PX, sharpness
from petface.data.catalog import listed_files
from petface.data.loading import OK


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(30, 256, (height, width, 3), dtype=np.uint8)


def test_sharpness_is_the_variance_of_the_laplacian_and_falls_with_blur():
    pixels = noise(SHARPNESS_PX, SHARPNESS_PX)
    g = pixels @ np.array([0.299, 0.587, 0.114])
    values = [
        4 * g[y, x] - g[y - 1, x] - g[y + 1, x] - g[y, x - 1] - g[y, x + 1]
        for y in range(1, SHARPNESS_PX - 1)
        for x in range(1, SHARPNESS_PX - 1)
    ]
    assert sharpness(pixels) == pytest.approx(np.var(values), rel=1e-4)
    blurred = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(1))
    assert sharpness(pixels) > 10 * sharpness(np.array(blurred))
    assert sharpness(np.full((50, 70, 3), 90, np.uint8)) == 0


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
    looked = photos.look_at(listed_files(tmp_path, names), places, workers)
    found, is_bad = looked.seen, np.isin(places, [5, 6])
    np.testing.assert_array_equal(found["status"] == OK, ~is_bad)
    for name, values in (("brightness", 2 * places), ("width_px", 8 + places), ("short_side", 8)):
        np.testing.assert_array_equal(found[name], np.where(is_bad, 0, values))
    assert len(looked.failures) == 2 and str(tmp_path) not in "".join(looked.failures)
    assert len(photos.look_at(listed_files(tmp_path, []), places[:0], workers).seen) == 0
