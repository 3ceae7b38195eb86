"""A stage 1 of three species, and the specialist of one of them, as trainers leave them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from petface.data.images import Preprocessing
from petface.models import checkpoints
from tests import reference_networks as reference

SPECIES = ("cat", "chinchilla", "yak")
COLOURS = ("White", "Black, or so", "'Beige'", "NA")
HEADS = reference.linear_heads(color1=4, gender=2)


def write_stage1(path: Path, model: dict[str, Tensor], rule: Preprocessing) -> None:
    """Store a classifier of `SPECIES`."""
    classes = {name: k for k, name in enumerate(SPECIES)}
    content = {"model": model, "class_to_index": classes, "preprocessing": rule.to_dict()}
    checkpoints.save(path, content)


def write_chinchilla(folder: Path, rule: Preprocessing) -> None:
    """Store the specialist where its run leaves it, with `HEADS`."""
    content = {
        "model": reference.stored(HEADS),
        "species": "chinchilla",
        "head_vocabs": {"color1": list(COLOURS), "gender": ["female", "male"]},
        "preprocessing": rule.to_dict(),
    }
    checkpoints.save(folder / "chinchilla" / "chinchilla_best.pt", content)
