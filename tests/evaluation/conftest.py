"""One made evaluation, its photos and its summary for all tests of the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from petface.evaluation.details import read_evaluation
from petface.evaluation.summary import summarise
from tests.evaluation.made_evaluation import Photo, make_evaluation


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Photo]]:
    folder = tmp_path_factory.mktemp("evaluation")
    return folder, make_evaluation(folder, seed=11)


@pytest.fixture(scope="package")
def folder(made: tuple[Path, list[Photo]]) -> Path:
    return made[0]


@pytest.fixture(scope="package")
def photos(made: tuple[Path, list[Photo]]) -> list[Photo]:
    return made[1]


@pytest.fixture(scope="package")
def summary(folder: Path) -> dict[str, Any]:
    return summarise(read_evaluation(folder))
