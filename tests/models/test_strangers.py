"""Made-up strangers, and the guard that a training ends with."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from petface.data.dataset import load_dataset
from petface.data.images import Preprocessing
from petface.data.loading import FileImages, Samples
from petface.models import strangers
from petface.models.architecture import Architecture, build_classifier
from petface.models.guard import Guard
from petface.models.network import Network


def draw() -> np.random.Generator:
    return np.random.default_rng(5)


def test_shuffled_patches_are_those_of_the_photo_in_another_order() -> None:
    photos = draw().integers(0, 256, (3, 35, 35, 3), dtype=np.uint8)
    shuffled = strangers.patches_shuffled(photos, draw())
    assert shuffled.shape == photos.shape and not np.array_equal(shuffled, photos)
    for photo, found in zip(photos, shuffled, strict=True):

        def patches(image: np.ndarray) -> list[bytes]:
            cells = range(0, 32, 8)
            return [image[y : y + 8, x : x + 8].tobytes() for y in cells for x in cells]

        assert sorted(patches(photo)) == sorted(patches(found)) and patches(photo) != patches(found)
        assert not found[32:].any() and not found[:, 32:].any()


def test_noise_and_flat_colours() -> None:
    photos = np.zeros((50, 8, 8, 3), np.uint8)
    noise = strangers.noise(photos, draw())
    assert noise.shape == photos.shape and 120 < noise.mean() < 135 and 70 < noise.std() < 78
    flat = strangers.flat_colour(photos, draw())
    assert (flat == flat[:, :1, :1]).all() and len(np.unique(flat[:, 0, 0], axis=0)) > 45
    flat[0, 0, 0, 0] ^= 1  # its own memory


def test_photos_are_chosen_evenly_over_the_classes() -> None:
    labels = np.repeat([2, 0, 1], [100, 7, 30])
    chosen = strangers.evenly(labels, 40, draw())
    assert (np.diff(chosen) > 0).all()
    assert np.bincount(labels[chosen]).tolist() == [7, 16, 17] or np.bincount(
        labels[chosen]
    ).tolist() == [7, 17, 16]
    assert strangers.evenly(labels, 137, draw()).tolist() == list(range(137))


@pytest.mark.parametrize(
    "architecture",
    [
        Architecture("resnet18"),
        Architecture("efficientnet_b0"),
        Architecture("mobilenet_v2"),
        Architecture("mobilenet_v3_small", attention="se", hidden=5, dropout=0.5, bodies=2),
    ],
    ids=str,
)
def test_a_guard_is_fitted_and_measured(tree, architecture: Architecture) -> None:
    dataset = load_dataset(tree.images, tree.annotations)
    rule = Preprocessing(32)
    torch.manual_seed(0)
    network = Network.build(build_classifier(architecture, 4), rule, "cpu", "bf16")
    places = draw().permutation(len(dataset.catalog))
    labels = dataset.catalog.class_index.astype(np.int64)
    parts = {
        name: Samples(p, {"species": labels[p]}, np.zeros(len(p), bool))
        for name, p in zip(("train", "val", "test"), np.array_split(places, 3), strict=True)
    }
    source = FileImages(dataset.catalog, rule)
    options = {"batch_size": 16, "num_workers": 0, "seed": 1}
    stored, figures = strangers.make_guard(network, source, parts, **options)
    assert figures == json.loads(json.dumps(figures, allow_nan=False)) and figures["fitted"]
    num_ok = sum(len(source.read(part.images).arrays[0]) for part in parts.values())
    assert num_ok < len(dataset.catalog)  # the tree has photos that cannot be read
    again, _ = strangers.make_guard(network, source, parts, **options)
    assert all(
        torch.equal(v, again[k]) if isinstance(v, torch.Tensor) else v == again[k]
        for k, v in stored.items()
    )
    guard = Guard.from_dict(stored, sum(architecture.map_channels))
    exact = Network.build(network.model, rule, "cpu", "fp32")
    pixels = source.read(parts["test"].images).arrays[0]
    means = exact.logits_and_means(pixels)[1]
    assert figures["num_test"] == len(pixels)
    assert figures["test_false_alarms"] == float((~guard.knows(means)).double().mean())
    noise = torch.from_numpy(strangers.noise(pixels.numpy(), draw()))
    known = guard.knows(exact.logits_and_means(noise)[1])
    # other noise, but noise is all alike
    assert abs(figures["missed_strangers"]["noise"] - float(known.double().mean())) < 0.2
    assert set(figures["missed_strangers"]) == {"patches_shuffled", "noise", "flat_colour"}
    assert figures["num_strangers_per_kind"] == len(pixels)
    few = {**parts, "val": Samples(places[:3], {"species": labels[places[:3]]}, np.zeros(3, bool))}
    stored, figures = strangers.make_guard(network, source, few, **options)
    assert stored is None and not figures["fitted"] and "too few" in figures["why_not"]
