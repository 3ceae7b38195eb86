"""The mean maps of classes, and pictures of explained photos."""

import numpy as np
import pytest
import torch
from PIL import Image

from petface.analysis import attention
from petface.data.catalog import listed_files
from petface.inference import gradcam
from tests.inference.test_gradcam import Tiny, network_of, photos


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return network_of(Tiny(), 16)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for number, pixels in enumerate(photos(6, 16)):
        Image.fromarray(pixels).save(root / f"{number}.png")
    (root / "3.png").write_bytes(b"")
    return listed_files(root, [f"{number}.png" for number in range(6)])


def test_mean_maps_are_the_mean_of_the_maps_of_readable_photos(network, catalog):
    found = attention.HeadMaps()
    classes = np.array([0, 1, 0, 1, 1, 0])
    names = [("cat", "Plain") if k == 0 else ("cat", "Tabby") for k in classes]
    found.add_class_maps(network, catalog, np.arange(6), 0, classes, names)
    layer, cells = gradcam.finest_useful_layer(network)
    assert found.layers == {(layer, cells)} == {("layer1", 4)}
    rings = []
    for number, name in enumerate([("cat", "Plain"), ("cat", "Tabby")]):
        own = [k for k in range(6) if classes[k] == number and k != 3]
        maps = [gradcam.gradcam(network, photos(6, 16)[k], 0, number, layer) for k in own]
        entry = found.classes[name]
        assert entry.num == len(own)
        np.testing.assert_allclose(entry.total / entry.num, np.mean(maps, axis=0), atol=1e-5)
        for cam in maps:
            inner = cam[2:-2, 2:-2].sum()
            rings += [1 - inner / cam.sum()] if cam.any() else []
    summary = found.summary()
    assert summary["num"] == 5 and summary["border_energy_frac"] == pytest.approx(np.mean(rings))
    assert summary["border_area_frac"] == pytest.approx(1 - 12 * 12 / 256)


def test_tiles_hold_the_photo_and_a_map_for_each_class_asked(network, catalog):
    classes = np.array([[0, 1], [2, -1], [1, 2]])
    captions = [["a"], ["b"], ["c"]]
    tiles = attention.example_tiles(network, catalog, np.array([1, 2, 3]), 0, classes, captions)
    assert {row: (len(tile.pictures), tile.lines) for row, tile in tiles.items()} == {
        0: (3, ["a"]),
        1: (2, ["b"]),  # and none for the photo that cannot be read
    }
    photo = photos(6, 16)[1]
    np.testing.assert_array_equal(tiles[0].pictures[0], photo)
    expected = gradcam.overlay(photo, gradcam.gradcam(network, photo, 0, 1, "layer1"))
    np.testing.assert_allclose(tiles[0].pictures[2], expected, atol=1)


def test_long_lines_end_with_their_tile(tmp_path):
    black = np.zeros((8, 8, 3), np.uint8)
    long = attention.Tile([black], ["a very long name " * 9, "two\nlines", "‮right to left"])
    attention.draw_sheet(tmp_path / "sheet.png", "title", [long, attention.Tile([black], [])])
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("L"))
    top = np.flatnonzero((sheet == 0).sum(axis=1) >= 2 * attention.PICTURE_PX)[0]
    ink = sheet[top + attention.PICTURE_PX :] < 128
    columns = np.flatnonzero(ink.any(axis=0))
    left = np.flatnonzero(sheet[top] == 0)[0]
    assert columns.min() >= left and columns.max() < left + attention.PICTURE_PX
