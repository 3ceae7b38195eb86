"""Pictures of explained mistakes."""

import numpy as np
import pandas as pd
import torch
from PIL import Image

from petface.analysis import attention
from petface.data.catalog import listed_files
from petface.inference import gradcam
from tests.inference.test_gradcam import Tiny, gradcam_of, network_of, photos


def test_the_maps_of_mistakes_are_those_of_each_photo_alone(tmp_path):
    """Photo 3 cannot be read; the truth of photo 4 is no class."""
    torch.manual_seed(0)
    network = network_of(Tiny(), 16)
    for number, pixels in enumerate(photos(6, 16)):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"")
    catalog = listed_files(tmp_path, [f"{number}.png" for number in range(6)])
    mistakes = pd.DataFrame(
        {
            "species": ["cat", "cat", "cat", "cat", "dog"],
            "true": ["Plain", "Tabby", "Plain", "Unheard", "Plain"],
            "predicted": "Other",
            "probability": 0.75,
            "true_probability": [0.25, 0.25, 0.25, np.nan, 0.25],
            "image": "a very long name " * 20 + "two\nlines \u202eright to left",
        },
        index=[2, 1, 3, 4, 0],
    )
    every = np.arange(6)
    work = attention.Work(catalog, every, pd.DataFrame(), every, {"breed": mistakes})
    classes = ["Plain", "Tabby", "Other"]
    found = attention.explain(work, network, "breed", 0, classes, "cat")
    assert {place: len(own) for place, own in found.items()} == {2: 3, 1: 3, 4: 2}
    assert set(attention.explain(work, network, "breed", 0, classes, None)) == {2, 1, 4, 0}
    layer, _ = gradcam.finest_useful_layer(network)
    photo = photos(6, 16)[1]
    answer, truth = (gradcam_of(network, photo, 0, number, layer) for number in (2, 1))
    expected = [photo, gradcam.overlay(photo, answer), gradcam.overlay(photo, truth)]
    for picture, wanted in zip(found[1], expected, strict=True):
        np.testing.assert_allclose(picture, wanted, atol=1)
    attention.draw_mistakes(tmp_path / "sheet.png", mistakes, found)
    side = attention.PICTURE_PX
    with Image.open(tmp_path / "sheet.png") as sheet:
        drawn = np.asarray(sheet)
    assert drawn.shape[0] == 3 * side and (drawn[:side, 3 * side :] < 128).any()
    for row, place in enumerate((2, 1)):
        small = Image.fromarray(photos(6, 16)[place]).resize((side, side))
        np.testing.assert_array_equal(drawn[row * side + 64, 64], np.asarray(small)[64, 64])
    assert (drawn[2 * side :, 2 * side : 3 * side] == 255).all()  # no map, and no text over it
    attention.draw_mistakes(tmp_path / "none.png", mistakes, {})
    assert not (tmp_path / "none.png").exists()
