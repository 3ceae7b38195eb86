"""One made evaluation, its photos and its summary for all tests of the folder."""

from __future__ import annotations

import pytest

from petface.evaluation.details import read_evaluation
from petface.evaluation.summary import summarise
from tests.evaluation.made_evaluation import make_evaluation


@pytest.fixture(scope="package")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    return folder, make_evaluation(folder, seed=11)


@pytest.fixture(scope="package")
def folder(made):
    return made[0]


@pytest.fixture(scope="package")
def photos(made):
    return made[1]


@pytest.fixture(scope="package")
def summary(folder):
    return summarise(read_evaluation(folder))
