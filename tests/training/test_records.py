"""The picture of the first batch: its pixels, the labels of base and tail, mixed or not."""

import numpy as np
import torch
from PIL import Image

from petface.data.loading import Batch
from petface.training.augment.mixing import Mixed
from petface.training.records import TILE_PX, BatchPicture


def test_a_tile_is_the_image_and_its_label_stands_below_red_for_a_minority_class(tmp_path):
    images = torch.rand(3, 3, TILE_PX, TILE_PX)
    labels = {"breed": torch.tensor([1, 0, -1]), "gender": torch.tensor([-1, 1, -1])}
    batch = Batch(0, np.arange(3), images, labels, torch.tensor([False, True, False]))
    names = {"breed": ("Aegean", "Bengal"), "gender": ("female", "\u2642")}
    for mixed in (None, Mixed(images, torch.tensor([1, 2, 0]), 0.7)):
        BatchPicture(tmp_path, names).draw(batch, images, mixed)
        drawn = np.asarray(Image.open(tmp_path / "batch.png"))
        expected = (images[1] * 255).to(torch.uint8).permute(1, 2, 0).numpy()
        assert (drawn[:TILE_PX, TILE_PX : 2 * TILE_PX] == expected).all()
        first, tail, unknown = np.split(drawn[TILE_PX:, : 3 * TILE_PX].astype(int), 3, axis=1)
        assert (first.min() < 60) and (np.ptp(first, axis=2) == 0).all()  # black on white
        assert np.ptp(tail, axis=2).max() > 100  # red
        assert (unknown == 255).all() or mixed
