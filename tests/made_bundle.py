"""Checkpoints of untrained networks for the tiny tree, and their bundle, made once a process."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from petface.data.dataset import Dataset, load_dataset
from petface.data.images import Preprocessing
from petface.export.bundle import write_bundle
from petface.export.model import ExportOptions
from petface.models import checkpoints
from tests import reference_networks as reference
from tests.conftest import Tree

RULE = Preprocessing(32, "stretch", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
SPECIES = ("cat", "chimp", "dog", "yak")
BREEDS = ["Bulldog, Olde mix", "P. t. verus", "Plain"]
CALIBRATION = {
    "temperature": 1.5,
    "threshold": 0.6,
    "conformal_quantile": 0.9,
    "wanted_accuracy": 0.9,
    "conformal_alpha": 0.1,
}


def write_checkpoints(folder: Path) -> tuple[Path, Path]:
    """Write a stage 1, a specialist for cats and an identity network, where a run leaves them."""
    ((weight, bias),) = reference.linear_heads(fc=len(SPECIES)).values()
    stage1 = folder / "stage1" / "best.pt"
    checkpoints.save(
        stage1,
        {
            "model": {**reference.resnet18_body(), "fc.weight": weight, "fc.bias": bias},
            "class_to_index": {name: number for number, name in enumerate(SPECIES)},
            "preprocessing": RULE.to_dict(),
            "calibration": {"species": CALIBRATION},
        },
    )
    checkpoints.save(
        folder / "stage2" / "cat" / "cat_best.pt",
        {
            "model": reference.stored(reference.linear_heads(gender=2, breed=3)),
            "species": "cat",
            "head_vocabs": {"gender": ["female", "male"], "breed": BREEDS},
            "preprocessing": RULE.to_dict(),
            "calibration": {"breed": CALIBRATION},
        },
    )
    checkpoints.save(
        folder / "identity" / "best.pt",
        {
            "model": reference.stored(reference.linear_heads(embedding=16)),
            "embedding_size": 16,
            "preprocessing": RULE.to_dict(),
            "matching": {"threshold": 0.5, "false_match_rate": 0.01},
            "kind": "identity",
        },
    )
    return stage1, folder / "stage2"


def dataset_of(tree: Tree) -> Dataset:
    """The tiny tree, split once."""
    return load_dataset(tree.images, tree.annotations)


@functools.cache
def made_bundle(tree: Tree) -> tuple[Path, Path]:
    """A folder with the checkpoints, and one with their bundle; to be read only."""
    folder = Path(tempfile.mkdtemp(prefix="petface_made_bundle_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    stage1, stage2 = write_checkpoints(folder / "runs")
    cat = {"cat": stage2 / "cat" / "cat_best.pt"}
    identity, options = folder / "runs/identity/best.pt", ExportOptions()
    write_bundle(folder / "bundle", stage1, cat, dataset_of(tree), options, identity=identity)
    return folder / "runs", folder / "bundle"
