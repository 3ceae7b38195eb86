"""Graphs against Pillow and torch: resizing by every rule, networks, the guard, joining."""

from __future__ import annotations

import resource

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from petface.data import images
from petface.data.images import Preprocessing
from petface.export import graphs
from petface.models import backbones
from petface.models.architecture import PLAIN, Architecture, build_classifier, forward_with_maps
from petface.models.familiarity import fit_guard
from petface.models.network import fold_batchnorm
from tests import reference_networks as reference

SIZES = [
    (1, 1),
    (1, 500),
    (500, 1),
    (37, 91),
    (91, 37),
    (224, 224),
    (224, 300),
    (480, 640),
    (65, 64),
]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(graphs.with_metadata(model, {}))


def noise(height: int, width: int, num: int = 2) -> np.ndarray:
    draw = np.random.default_rng(height * 1000 + width)
    return draw.integers(0, 256, (num, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("rule", images.RESIZE_RULES)
@pytest.mark.parametrize("size_px", [224, 33])
def test_the_graph_resizes_as_pillow_does(rule: str, size_px: int) -> None:
    model = session(graphs.preprocessing_graph(Preprocessing(size_px, rule)))
    for height, width in SIZES:
        photos = noise(height, width)
        (found,) = model.run(None, {"pixels": photos})
        expected = np.stack([images.resize(photo, size_px, rule) for photo in photos])
        assert found.shape == (2, 3, size_px, size_px) and found.dtype == np.float32
        grey = np.rint(found.transpose(0, 2, 3, 1) * 255)
        assert np.abs(grey - expected).max() <= 1, (height, width)


def test_where_enlarging_meets_ties_few_pixels_of_noise_are_two_levels_off() -> None:
    model = session(graphs.preprocessing_graph(Preprocessing(224)))
    photos = noise(64, 64)  # 3.5 times: one weight in seven is a half
    (found,) = model.run(None, {"pixels": photos})
    expected = np.stack([images.resize(photo, 224, "stretch") for photo in photos])
    off = np.abs(np.rint(found.transpose(0, 2, 3, 1) * 255) - expected)
    assert off.max() <= 2 and (off == 2).mean() < 1e-3


@pytest.mark.parametrize("rule", images.RESIZE_RULES)
def test_an_image_of_the_right_size_passes_bit_for_bit(rule: str) -> None:
    for mean, std in ((None, None), (MEAN, STD)):
        model = session(graphs.preprocessing_graph(Preprocessing(40, rule, mean, std)))
        photos = noise(40, 40)
        expected = torch.from_numpy(photos).permute(0, 3, 1, 2).float().div(255)
        if mean is not None:
            centre, spread = (torch.tensor(three).view(3, 1, 1) for three in (mean, std))
            expected = (expected - centre) / spread
        (found,) = model.run(None, {"pixels": photos})
        assert np.array_equal(found, expected.numpy())


def test_a_strip_that_is_cropped_does_not_take_gigabytes() -> None:
    strip = np.repeat(np.arange(60_000) % 251, 3).astype(np.uint8).reshape(1, 1, 60_000, 3)
    model = session(graphs.preprocessing_graph(Preprocessing(224, "center_crop")))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (found,) = model.run(None, {"pixels": strip})
    # The whole strip at 224 px would be 224 x 13,440,000 pixels, 9 GB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB
    expected = images.resize(strip[0], 224, "center_crop")
    assert np.abs(np.rint(found[0].transpose(1, 2, 0) * 255) - expected).max() <= 1


def features_of(num: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(num, 960, generator=draw).abs() * 30


def test_network_and_guard_answer_as_torch_does() -> None:
    heads = reference.linear_heads(species=4)
    ((weight, bias),) = heads.values()
    model = build_classifier(PLAIN, 4)
    model.load_state_dict({**reference.resnet18_body(), "fc.weight": weight, "fc.bias": bias})
    model.eval()
    x = torch.rand(5, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    expected = reference.reference_logits(x, heads)["species"]
    with torch.inference_mode():
        means = backbones.stage_means(forward_with_maps(model, x)[1])
    guard = fit_guard(features_of(120, 0), torch.arange(120) % 4, features_of(60, 1))
    assert guard is not None
    fold_batchnorm(model)
    network = graphs.network_graph(model, 48, ["species"], with_means=True)
    whole = graphs.joined(network, graphs.guard_graph(guard))
    found = session(whole)
    assert [(o.name, o.shape, o.type) for o in found.get_outputs()] == [
        ("species", ["B", 4], "tensor(float)"),
        ("guard_score", ["B"], "tensor(double)"),
    ]
    logits, scores = found.run(None, {"image": x.numpy()})
    assert np.abs(logits - expected.numpy()).max() < 1e-4
    np.testing.assert_allclose(scores, guard.score(means).numpy(), rtol=1e-5)
    assert "BatchNormalization" not in {node.op_type for node in whole.graph.node}
    text = whole.SerializeToString()
    assert b"site-packages" not in text and b"/work/" not in text and b"stack_trace" not in text


@pytest.mark.parametrize(
    "architecture",
    [
        Architecture("resnet18", attention="se", hidden=5, dropout=0.5, bodies=2),
        *(
            pytest.param(Architecture(name), marks=pytest.mark.slow)
            for name in ("resnet50", "efficientnet_b0", "mobilenet_v3_small", "mobilenet_v2")
        ),
    ],
    ids=str,
)
def test_networks_of_any_architecture_answer_as_torch_does(architecture: Architecture) -> None:
    torch.manual_seed(0)
    model = build_classifier(architecture, 4).eval()
    x = torch.rand(3, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits, maps = forward_with_maps(model, x)
    fold_batchnorm(model)
    network = session(graphs.network_graph(model, 48, ["species"], with_means=True))
    assert {entry.name for entry in network.get_outputs()} == {"species", "stage_means"}
    for num in (1, 3):
        found, means = network.run(["species", "stage_means"], {"image": x[:num].numpy()})
        np.testing.assert_allclose(found, logits[:num].numpy(), atol=1e-4)
        np.testing.assert_allclose(
            means, backbones.stage_means(maps)[:num].numpy(), rtol=1e-3, atol=1e-4
        )


def test_joining_keeps_names_apart_and_what_is_not_connected() -> None:
    def graph(name: str, text: str) -> onnx.ModelProto:
        return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 18]> {name} {text}')

    first = graph(
        "one", "(float[B] x) => (float[B] a, float[B] b) {t = Neg(x) a = Abs(t) b = Neg(t)}"
    )
    second = graph("two", "(float[B] b) => (float[B] y) {t = Add(b, b) y = Neg(t)}")
    found = session(graphs.joined(first, second))
    assert [entry.name for entry in found.get_outputs()] == ["a", "y"]
    a, y = found.run(None, {"x": np.array([1, -2], np.float32)})
    assert a.tolist() == [1, 2] and y.tolist() == [-2, 4]
