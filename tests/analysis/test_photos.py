"""What is measured of photos made by hand."""

import numpy as np
import pytest
from PIL import Image

from petface.analysis import photos
from petface.data.catalog import listed_files
from petface.data.loading import OK


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
    for name, values in (("brightness", 2 * places), ("width_px", 8 + places)):
        np.testing.assert_array_equal(found[name], np.where(is_bad, 0, values))
    assert len(looked.failures) == 2 and str(tmp_path) not in "".join(looked.failures)
    assert len(photos.look_at(listed_files(tmp_path, []), places[:0], workers).seen) == 0
