"""Views of a photo: what they show, and that logits are their plain mean in every engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from petface.data.images import Preprocessing
from petface.inference.views import AveragedViews, views_of
from petface.models.network import Network

PIXELS = torch.randint(0, 256, (5, 32, 32, 3), generator=torch.Generator().manual_seed(0)).to(
    torch.uint8
)


def network_of():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    model = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    return Network.for_inference(model.eval(), Preprocessing(32), "cpu", "fp32", (2.0,))


def test_flip_is_the_mirror_image_and_five_are_the_corners():
    same, mirror = views_of(PIXELS, "flip")
    assert same is PIXELS
    assert np.array_equal(
        mirror[2].numpy(),
        np.asarray(Image.fromarray(PIXELS[2].numpy()).transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    )
    five = views_of(PIXELS, "five")
    assert len(five) == 5 and five[0] is PIXELS
    assert all(view.shape == PIXELS.shape and view.dtype == torch.uint8 for view in five)
    corners = [(0, 0), (4, 0), (0, 4), (4, 4)]  # left, top
    for view, (x, y) in zip(five[1:], corners, strict=True):
        whole = Image.fromarray(PIXELS[1].numpy())
        wanted = whole.resize((32, 32), Image.Resampling.BILINEAR, box=(x, y, x + 28, y + 28))
        away = np.abs(view[1].numpy().astype(int) - np.asarray(wanted).astype(int))
        # Pillow looks a little beyond the box at its border
        assert away[2:-2, 2:-2].max() <= 1
    assert views_of(PIXELS, "none") == [PIXELS]


@pytest.mark.parametrize("views", ["flip", "five"])
def test_logits_are_the_mean_over_the_views(views):
    network = network_of()
    (found,) = AveragedViews(network, views).answer_pixels(PIXELS)
    wanted = torch.stack([network.answer_pixels(v)[0] for v in views_of(PIXELS, views)]).mean(0)
    torch.testing.assert_close(found, wanted)
    assert (found - network.answer_pixels(PIXELS)[0]).abs().max() > 1e-4


def test_what_is_around_the_network_is_the_networks():
    network = AveragedViews(network_of(), "flip")
    assert network.temperatures == (2.0,) and network.preprocessing == Preprocessing(32)
