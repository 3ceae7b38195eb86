"""A specialist of another program is scored by the labels of the annotation file, or not at all."""

from __future__ import annotations

import pytest
import torch

from inference_engine import evaluate_full_dataset
from petface.data.annotations import read_species
from petface.export.model import ExportOptions, export_model
from petface.models import checkpoints
from tests import reference_networks as reference
from tests.made_bundle import RULE, dataset_of, write_checkpoints


@pytest.mark.parametrize("num_more", [0, 2])
def test_a_legacy_dog_is_scored_where_its_classes_have_names(tree, tmp_path, capsys, num_more):
    stage1, stage2 = write_checkpoints(tmp_path / "runs")
    content = checkpoints.load(stage1)
    content["model"]["fc.weight"].zero_()
    content["model"]["fc.bias"] = torch.tensor([0.0, 0.0, 9.0, 0.0])  # always a dog
    checkpoints.save(stage1, content)
    num = len(read_species(tree.annotations / "dog.csv", "dog").vocabularies["breed"]) + num_more
    model = {f"backbone.{name}": value for name, value in reference.resnet18_body().items()}
    model |= {"head_attr2.weight": torch.zeros(num, 512), "head_attr2.bias": torch.eye(num)[0]}
    folder = tmp_path / "runs" / "stage2_dog_noaug"
    folder.mkdir()
    content = {"state_dict": model, "preprocessing": RULE.to_dict()}
    torch.save(content, folder / "dog_best.pt")
    found = evaluate_full_dataset(
        tree.images,
        tree.annotations,
        stage1_checkpoint=stage1,
        stage2_folder=stage2,
        out_dir=tmp_path / "evaluation",
        device="cpu",
        num_workers=0,
    )["stage2"]["per_feature"]["breed"]
    said = capsys.readouterr()
    assert (found["num"] > 0 and found["correct"] > 0) == (num_more == 0)
    assert ("not scored" in said.out) == (num_more > 0)
    assert "head attr2 is read as breed" in said.err
    if not num_more:  # a bundle keeps the names
        path = folder / "dog_best.pt"
        _, card = export_model(path, "dog", dataset_of(tree), ExportOptions(num_parity=2))
        assert card["sources"] == {"breed": "annotations"} and card["labels"] == {}
