from __future__ import annotations

import numpy as np
import pytest
import torch

from tests import naive
from tests.conftest import BOMB, EMPTY, TRUNCATED
from tests.training.small import Small, make_job, samples_of


@pytest.fixture
def job(tree, tmp_path):
    torch.manual_seed(0)
    return make_job(tree.images, tmp_path, Small())


@pytest.fixture
def samples():
    """Thirty images with labels that follow from their number; some of them unknown."""
    images = np.arange(30)
    return samples_of(images, np.where(images % 5, images % 3, -1), images % 2)


@pytest.fixture
def unknown():
    """The same images without a known label."""
    return samples_of(np.arange(30), np.full(30, -1), np.full(30, -1))


@pytest.fixture
def paths(tree):
    """Of every photo, in the order of the catalog."""
    return [tree.images / path for path in naive.photos(tree.images)]


@pytest.fixture
def readable(tree, paths):
    """The numbers of the first thirty photos, without those that cannot be read."""
    spoilt = {tree.images / path for path in (TRUNCATED, BOMB, EMPTY)}
    return [number for number in range(30) if paths[number] not in spoilt]
