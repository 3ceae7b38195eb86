"""Both trainers with two bodies and attention, tiny; what they leave answers and is explained."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from inference_engine import TwoStageInference
from petface.models import checkpoints, layouts
from petface.models.architecture import Architecture
from tests import scripts
from tests.conftest import TINY_STAGE1, TINY_STAGE2

pytestmark = pytest.mark.slow
WIDE = ["--backbone", "mobilenet_v3_small", "--bodies", 2, "--attention", "se"]
HEAD = ["--head-hidden", 6, "--dropout", 0.2]


@pytest.fixture(scope="module")
def trained(tree, module_folder):
    """Stage 1, and a specialist whose first body is one that a specialist alone was trained in."""
    root, plain = ["--runs-root", module_folder], ["--backbone", "mobilenet_v3_small"]
    one = [*tree.flags, *TINY_STAGE1, "--epochs", 1, *WIDE, *HEAD, *root, "--run-name", "stage1"]
    cat = [*tree.flags, *TINY_STAGE2, "--species", "cat", "--phase-epochs", 1, 1, *root]
    first = [*cat, *plain, "--weights", "none", "--run-name", "first"]
    begin = [module_folder / "first" / "{species}" / "{species}_best.pt", "none"]
    second = [*cat, *WIDE, "--weights", *begin, "--run-name", "stage2"]
    commands = [(scripts.STAGE1, one), (scripts.STAGE2, first), (scripts.STAGE2, second)]
    results = [scripts.run_forked(*words, module_folder).checked() for words in commands]
    return module_folder, results[2].out


def test_the_checkpoints_say_what_they_are_of(trained):
    folder, out = trained
    species = checkpoints.read_stage1(folder / "stage1" / "best.pt")
    assert species.architecture == Architecture("mobilenet_v3_small", "se", 6, 0.2, 2)
    cats = layouts.read_stage2(folder / "stage2" / "cat" / "cat_best.pt", "cat")
    assert cats.model.architecture == Architecture("mobilenet_v3_small", "se", bodies=2)
    assert "first weights: file cat_best.pt + random" in out
    first = checkpoints.load(folder / "first" / "cat" / "cat_best.pt")
    assert first["backbone"] == "mobilenet_v3_small" and "architecture" not in first
    stem = "features.0.0.weight"  # frozen in both phases
    now = cats.model.state_dict()
    assert torch.equal(now[f"body.bodies.0.{stem}"], first["model"][f"body.{stem}"])
    assert not torch.equal(now[f"body.bodies.1.{stem}"], first["model"][f"body.{stem}"])


def test_both_stages_answer_and_are_explained(trained, tree):
    folder, _ = trained
    both = TwoStageInference(folder / "stage1" / "best.pt", folder / "stage2", "cpu")
    photo = next((tree.images / "cat" / "000001").iterdir())
    answer = both.infer(photo)
    assert answer["species"]["label"] in ("cat", "chimp", "dog", "yak")
    json.dumps(answer)
    final = json.loads((folder / "stage1" / "final.json").read_text())
    assert np.isfinite(final["test_accuracy"])
