"""The border share of maps, and pictures of explained mistakes."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from petface.analysis import attention
from petface.data.catalog import listed_files
from petface.inference import gradcam
from tests.inference.test_gradcam import Tiny, gradcam_of, network_of, photos


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


def test_maps_of_readable_photos_and_the_share_of_their_border(network, catalog, tmp_path):
    """Against the map of each photo alone; photo 3 cannot be read."""
    labels = ["Plain", "Tabby", "Plain", "Tabby", "Tabby", "Plain"]
    answers = pd.DataFrame({"species": "cat", "breed_true": labels, "breed_pred": labels})
    answers["breed_correct"] = 1.0
    answers.loc[[1, 2], ["breed_pred", "breed_correct"]] = ["Other", 0.0]
    mistakes = answers.loc[[2, 1]].rename(columns={"breed_true": "true", "breed_pred": "predicted"})
    mistakes = mistakes.assign(probability=0.75, true_probability=0.25, image="x.png")
    every = np.arange(6)
    work = attention.Work(catalog, every, answers, every, {"breed": mistakes})
    found, classes = attention.HeadMaps(), ["Plain", "Tabby", "Other"]
    options = {"photos_per_class": 9, "seed": 0}
    attention.explain(found, work, network, "breed", 0, classes, "cat", **options)
    layer, cells = gradcam.finest_useful_layer(network)
    assert found.layers == {(layer, cells)}
    rings = []
    for k in (0, 4, 5):
        cam = gradcam_of(network, photos(6, 16)[k], 0, classes.index(labels[k]), layer)
        rings += [1 - cam[2:-2, 2:-2].sum() / cam.sum()] if cam.any() else []
    summary = found.summary()
    assert summary["num"] == 3 and summary["border_energy_frac"] == pytest.approx(np.mean(rings))
    assert summary["border_area_frac"] == pytest.approx(1 - 12 * 12 / 256)
    assert set(found.pictures) == {1, 2}
    photo = photos(6, 16)[1]
    answer, truth = (gradcam_of(network, photo, 0, number, layer) for number in (2, 1))
    expected = [photo, gradcam.overlay(photo, answer), gradcam.overlay(photo, truth)]
    for picture, wanted in zip(found.pictures[1], expected, strict=True):
        np.testing.assert_allclose(picture, wanted, atol=1)
    told = attention.draw_maps(work, {"breed": found}, tmp_path)["breed"]
    with Image.open(tmp_path / told["photo_files"][0]) as sheet:
        shown = np.asarray(sheet)[64, 64], np.asarray(sheet)[128 + 64, 64]
    side = attention.PICTURE_PX
    for pixel, row in zip(shown, (2, 1), strict=True):
        small = Image.fromarray(photos(6, 16)[row]).resize((side, side))
        np.testing.assert_array_equal(pixel, np.asarray(small)[64, 64])


def test_a_long_or_strange_text_stays_on_the_right(tmp_path):
    black = np.zeros((8, 8, 3), np.uint8)
    lines = ["a very long name " * 20, "two\nlines", "\u202eright to left"]
    attention.draw_strip(tmp_path / "strip.png", [([black] * 3, lines), ([black] * 2, [])])
    sheet = np.asarray(Image.open(tmp_path / "strip.png").convert("L"))
    side = attention.PICTURE_PX
    assert sheet.shape[0] == 2 * side and (sheet[:side, : 3 * side] == 0).all()
    assert (sheet[:side, 3 * side :] < 128).any() and (sheet[side:, 2 * side :] == 255).all()
