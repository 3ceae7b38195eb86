"""One slice through networks that are made up, against a loop; how the work is cut."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from petface.data.loading import Decoded
from petface.evaluation.run import is_answer, own_slices, plan_slices, predict
from petface.inference.loading import Stage


class FirstPixels:
    """A network whose logits are the first pixels of a photo, and these doubled for more heads."""

    def __init__(self, num_heads=1):
        self.num_heads, self.asked = num_heads, list[int]()

    def answer_pixels(self, pixels):
        self.asked.append(len(pixels))
        logits = pixels.reshape(len(pixels), -1)[:, :3].float()
        logits = torch.where(logits == 255, torch.nan, logits)
        return tuple(logits * (1 + head) for head in range(self.num_heads))


def stage(num_heads=1):
    network: Any = FirstPixels(num_heads)
    names = dict.fromkeys(["species", "breed"][:num_heads], ("a", "b", "c"))
    return Stage(Path("none"), None, network, names, {}, {}), network


def decoded(logits):
    """Photos whose first pixels are these; the first image of the slice is unreadable."""
    pixels = torch.zeros((len(logits), 2, 2, 3), dtype=torch.uint8)
    for photo, values in zip(pixels, logits, strict=True):
        photo[0, 0] = torch.tensor(values)
    return Decoded((pixels,), np.array([1, *[0] * len(logits)], np.uint8), [])


@pytest.mark.parametrize(
    ("logits", "right"),
    [
        ([[1, 5, 2], [9, 5, 2], [1, 7, 2]], [True, False, True]),
        ([[1, 5, 2], [0, 6, 2]], [True, True]),
        ([[8, 5, 2]], [False]),
        ([[255, 5, 2], [1, 5, 2]], [False, True]),  # not finite
        ([], []),
    ],
)
def test_a_specialist_predicts_where_stage_1_is_right(logits, right):
    (stage1, _), (specialist, network) = stage(), stage(2)
    places = np.arange(7, 8 + len(logits))
    found = predict(places, decoded(logits), stage1, specialist, 1)()
    assert found.places is places and found.status.tolist() == [1, *[0] * len(logits)]
    assert found.is_right.tolist() == right and found.species.shape == (len(logits), 3)
    wanted = np.array([z for z, ok in zip(logits, right, strict=True) if ok], np.float32)
    assert network.asked == ([len(wanted)] if len(wanted) else [])
    for head, answer in enumerate(found.heads):
        np.testing.assert_array_equal(answer, wanted * (1 + head))
    assert len(found.heads) == (2 if len(wanted) else 0)
    alone = predict(places, decoded(logits), stage1, None, 1)()
    assert alone.is_right.tolist() == right and alone.heads == ()


def test_slices_hold_one_class_each_and_every_image_once():
    classes = np.repeat([0, 1, 3], [5, 1, 7])
    plan = plan_slices(classes, 3)
    assert np.concatenate(plan).tolist() == list(range(13))
    assert [len(places) for places in plan] == [3, 2, 1, 3, 2, 2]
    assert all(len(set(classes[places].tolist())) == 1 for places in plan)
    assert plan_slices(classes[:0], 3) == []


def test_the_slices_of_several_processes_are_those_of_one(monkeypatch):
    for num_slices, world_size in itertools.product((0, 1, 2, 5, 300), (1, 2, 3, 8)):
        plan = [np.array([place]) for place in range(num_slices)]
        own = []
        for rank in range(world_size):
            for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", world_size)):
                monkeypatch.setenv(name, str(value))
            own.append([int(places[0]) for places in own_slices(plan)])
        assert sum(own, []) == list(range(num_slices))
        assert max(map(len, own)) - min(map(len, own)) <= 1


def test_a_logit_that_is_no_number_makes_no_answer():
    logits = torch.tensor([[2.0, 1.0], [torch.nan, 1.0], [2.0, -torch.inf], [1.0, 2.0]])
    assert is_answer(logits, 0).tolist() == [True, False, False, False]
