"""Grad-CAM against a second implementation with plain hooks, and on networks whose eyes we know."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from petface.data.images import Preprocessing, resize
from petface.errors import UserError
from petface.inference import gradcam
from petface.models.architecture import Architecture, ChinchillaMultiHeadResNet18, build_classifier
from petface.models.backbones import BACKBONES
from petface.models.network import Network, NonFiniteError


class Corner(nn.Module):
    """Looks at the upper left corner only: class 0 is its brightness, class 1 its darkness."""

    def __init__(self):
        super().__init__()
        self.layer4 = Mask()

    def forward(self, x):
        seen = self.layer4(x).mean((1, 2, 3))
        return torch.stack([seen, -seen], dim=1)


class Mask(nn.Module):
    def forward(self, x):
        x = F.avg_pool2d(x, 4)
        mask = torch.zeros_like(x)
        mask[:, :, :2, :2] = 1
        return x * mask


def network_of(model, size_px, mean=None):
    rule = Preprocessing(size_px, "stretch", mean, mean and (0.2, 0.25, 0.3))
    return Network.build(model.eval(), rule, "cpu", "fp32")


def reference(network, layer, pixels, head, wanted):
    """Selvaraju et al., equations 1 and 2, for one photo, with plain hooks."""
    kept = {}
    handles = [
        layer.register_forward_hook(lambda _m, _i, out: kept.update(maps=out)),
        layer.register_full_backward_hook(lambda _m, _g, out: kept.update(slope=out[0])),
    ]
    rule = network.preprocessing
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float().requires_grad_() / 255
    if rule.mean:
        x = (x - torch.tensor(rule.mean).view(1, 3, 1, 1)) / torch.tensor(rule.std).view(1, 3, 1, 1)
    logits = network.model(x)
    logits = logits[head] if isinstance(logits, tuple) else logits
    network.model.zero_grad()
    logits[0, wanted].backward()
    for handle in handles:
        handle.remove()
    maps, slope = kept["maps"][0].detach().numpy(), kept["slope"][0].numpy()
    cam = np.zeros(maps.shape[1:])
    for k in range(len(maps)):
        cam += slope[k].mean() * maps[k]
    cam = np.maximum(cam, 0)
    pixel, stride = np.arange(pixels.shape[0]), pixels.shape[0] // len(cam)
    centres = np.arange(len(cam)) * stride  # of odd kernels with equal padding
    cam = np.stack([np.interp(pixel, centres, row) for row in cam])
    cam = np.stack([np.interp(pixel, centres, column) for column in cam.T], axis=1)
    return cam / cam.max() if cam.max() > 0 else cam


def photos(num, side, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, side, side, 3), dtype=np.uint8)


def gradcam_of(network, photo, head, wanted, layer=gradcam.LAST):
    batch = torch.from_numpy(photo)[None]
    return gradcam.gradcams(network, batch, head, np.array([wanted]), layer)[0]


def compare(network, layer, side, num_classes, head=0):
    pixels = photos(3, side)
    classes = np.array([0, num_classes - 1, 0])
    found = gradcam.gradcams(network, torch.from_numpy(pixels), head, classes)
    assert found.shape == (3, side, side) and found.dtype == np.float32
    for photo, wanted, cam in zip(pixels, classes, found, strict=True):
        expected = reference(network, layer, photo, head, int(wanted))
        np.testing.assert_allclose(cam, expected, atol=2e-4)
        one = gradcam_of(network, photo, head, int(wanted))
        np.testing.assert_allclose(one, expected, atol=2e-4)
    assert found.max() == pytest.approx(1.0) and found.std() > 0


@pytest.mark.parametrize(
    ("name", "attention"), [("resnet18", "none"), ("mobilenet_v2", "se"), ("resnet18", "se")]
)
def test_the_species_network_of_several_backbones(name, attention):
    """Attention belongs to the last stage: its map is the one that is pooled."""
    torch.manual_seed(1)
    model = build_classifier(Architecture(name, attention), 4)
    last = model.layer4 if name == "resnet18" else model.features
    compare(network_of(model, 64, (0.4, 0.5, 0.6)), last, 64, 4)


def test_several_bodies_speak_together():
    """Their maps in a row are the maps of one network."""
    torch.manual_seed(6)
    model = build_classifier(Architecture("mobilenet_v3_small", bodies=2), 3)
    network, pixels, classes = network_of(model, 96), photos(2, 96), np.array([0, 2])
    both = gradcam.gradcams(network, torch.from_numpy(pixels), 0, classes)
    cams = torch.zeros(2, 3, 3)
    with torch.inference_mode():
        for k, body in enumerate(model.bodies):
            x = body.features(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
            # the mean over the places has the same slope everywhere: that of the linear head
            slope = model.head.weight[classes, 576 * k : 576 * (k + 1)] / 9
            cams += (x * slope[:, :, None, None]).sum(1)
    expected = gradcam.enlarge(cams.relu(), 96, 96)
    expected = (expected / expected.amax((1, 2), keepdim=True)).numpy()
    np.testing.assert_allclose(both, expected, atol=2e-4)
    assert not any(end._forward_hooks for end in gradcam.stage_ends(model, "layer4"))


def test_each_head_of_a_specialist_has_its_own_map():
    torch.manual_seed(2)
    model = ChinchillaMultiHeadResNet18({"breed": 5, "gender": 2})
    network = network_of(model, 64)
    for head, size in ((0, 5), (1, 2)):
        compare(network, model.body.layer4, 64, size, head)


def test_maps_follow_what_the_network_sees():
    network = network_of(Corner(), 16)
    photo = np.full((16, 16, 3), 200, np.uint8)
    cam = gradcam_of(network, photo, 0, 0)
    assert cam[:5, :5].min() == pytest.approx(1.0)
    assert not cam[8:].any() and not cam[:, 8:].any()
    assert not gradcam_of(network, photo, 0, 1).any()  # nothing speaks for darkness


@pytest.mark.parametrize("name", BACKBONES)
def test_a_cell_lies_where_it_looks(name):
    """The pixels that a cell depends on have their middle where `enlarge` puts the cell."""
    torch.manual_seed(5)
    network = network_of(build_classifier(Architecture(name), 2), 224)
    kept = {}
    (end,) = gradcam.stage_ends(network.model, "layer3")
    handle = end.register_forward_hook(lambda _m, _i, out: kept.update(maps=out))
    x = torch.rand(2, 3, 224, 224, requires_grad=True)
    network.model(x)
    handle.remove()
    (slope,) = torch.autograd.grad(kept["maps"][:, :, 7, 7].square().sum(), x)
    seen = slope.square().sum((0, 1, 2))
    middle = float((seen * torch.arange(224)).sum() / seen.sum())
    alone = torch.zeros(1, 14, 14)
    alone[0, 7, 7] = 1
    drawn = gradcam.enlarge(alone, 224, 224)[0].sum(0)
    assert float((drawn * torch.arange(224)).sum() / drawn.sum()) == pytest.approx(112)
    assert middle == pytest.approx(112, abs=4)  # in the middle of the 8th of 14 parts it were 119.5


def test_it_leaves_the_network_as_it_was_and_works_in_inference_mode():
    torch.manual_seed(3)
    model = build_classifier(Architecture("resnet18"), 3)
    network = network_of(model, 64)
    photo = photos(1, 64)[0]
    before = network.answer_pixels(torch.from_numpy(photo)[None])[0]
    first = gradcam_of(network, photo, 0, 1)
    with torch.inference_mode():
        second = gradcam_of(network, photo, 0, 1)
    np.testing.assert_array_equal(first, second)
    assert torch.equal(before, network.answer_pixels(torch.from_numpy(photo)[None])[0])
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.layer4._forward_hooks


SIDES = {
    3: ("stem", 2),
    32: ("layer2", 4),
    64: ("layer3", 4),
    97: ("layer4", 4),
    224: ("layer4", 7),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_has_as_many_cells_as_are_counted(name):
    network = build_classifier(Architecture(name), 2).eval()
    for side, (layer, cells) in SIDES.items():
        kept = {}
        (end,) = gradcam.stage_ends(network, layer)
        handle = end.register_forward_hook(lambda _m, _i, out, kept=kept: kept.update(maps=out))
        with torch.inference_mode():
            network(torch.zeros(1, 3, side, side))
        handle.remove()
        assert kept["maps"].shape[2:] == (cells, cells)


def test_the_layer_is_the_last_that_still_shows_places():
    found = {side: gradcam.finest_useful_layer(network_of(Corner(), side)) for side in SIDES}
    assert found == SIDES
    with pytest.raises(UserError, match="knows no Linear"):
        gradcam.stage_ends(nn.Linear(2, 2), "layer4")


def test_an_overlay_shows_the_photo_where_the_map_is_zero():
    photo = photos(1, 8)[0]
    cam = np.zeros((8, 8), np.float32)
    cam[2, 3] = 1
    picture = gradcam.overlay(photo, cam)
    changed = (picture != photo).any(axis=2)
    assert changed[2, 3] and changed.sum() == 1
    expected = 0.35 * photo[2, 3] + 0.65 * np.array([220, 20, 20])
    np.testing.assert_allclose(picture[2, 3], expected, atol=1)


def test_a_png_for_one_photo_explains_the_answer_given():
    torch.manual_seed(4)
    network = network_of(build_classifier(Architecture("resnet18"), 3), 64)
    photo = photos(1, 50)[0]
    png = gradcam.overlay_png(network, photo)
    assert np.asarray(Image.open(io.BytesIO(png))).shape == (64, 64, 3)
    small = torch.from_numpy(resize(photo, 64, "stretch"))[None]
    best = int(network.answer_pixels(small)[0].argmax())
    assert png == gradcam.overlay_png(network, photo, 0, best)
    assert png != gradcam.overlay_png(network, photo, 0, (best + 1) % 3)
    network.model.fc.bias.data[1] = torch.nan
    with pytest.raises(NonFiniteError):
        gradcam.overlay_png(network, photo)
