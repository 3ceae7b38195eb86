"""Exporting one checkpoint: its graph, what it is measured on, int8 kept or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from petface.data.dataset import load_dataset
from petface.data.images import Preprocessing
from petface.data.pack import image_source
from petface.errors import UserError
from petface.export import model as model_module
from petface.export.bundle import describe
from petface.export.model import (
    ExportOptions,
    accuracies,
    export_model,
    network_graph,
    read_photos,
)
from petface.inference.onnx_check import OPERATORS
from petface.models import checkpoints, layouts
from petface.models.architecture import Architecture, build_classifier
from petface.models.checkpoints import Checkpoint
from petface.models.network import Network
from tests.made_bundle import dataset_of, made_bundle

RULE = Preprocessing(48, "stretch", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(scope="module")
def cat(tree) -> Path:
    return made_bundle(tree)[0] / "stage2/cat/cat_best.pt"


@pytest.fixture(scope="module")
def content(cat) -> Checkpoint:
    return layouts.read_stage2(cat, "cat")


@pytest.fixture(scope="module")
def dataset(tree):
    return dataset_of(tree)


@pytest.mark.parametrize(
    "architecture",
    [
        Architecture("resnet18", "se", 5, 0.5, bodies=2, pooling="both", batchnorm=True),
        *(
            pytest.param(Architecture(name), marks=pytest.mark.slow)
            for name in ("resnet50", "efficientnet_b0", "mobilenet_v3_small", "mobilenet_v2")
        ),
    ],
    ids=str,
)
def test_a_graph_of_any_architecture_answers_as_torch_does(architecture: Architecture) -> None:
    torch.manual_seed(0)
    model = build_classifier(architecture, 4).eval()
    for parameter in model.parameters():  # untrained, some give the same logits to every image
        parameter.data += 0.05 * torch.randn_like(parameter)
    x = torch.rand(3, 3, 48, 48)
    mean, std = (torch.tensor(three).view(3, 1, 1) for three in (RULE.mean, RULE.std))
    with torch.inference_mode():
        expected = model((x - mean) / std).numpy()
    Network.for_inference(model, RULE, "cpu", "fp32")  # folded and channels last, as in an export
    graph = network_graph(model, RULE, ["species"])
    assert {node.op_type for node in graph.graph.node} <= OPERATORS
    text = graph.SerializeToString()
    assert b"site-packages" not in text and b"/petface/" not in text and b"stack_trace" not in text
    session = onnxruntime.InferenceSession(text)
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("species", ["B", 4])]
    for num in (1, 3):
        (found,) = session.run(None, {"image": x[:num].numpy()})
        np.testing.assert_allclose(found, expected[:num], rtol=1e-3, atol=1e-4)


def test_photos_are_a_sample_of_their_split_the_same_each_time(content, dataset) -> None:
    (few, places), (again, _), (more, _) = (
        read_photos(dataset, "", "cat", content, "train", n) for n in (6, 6, 100)
    )
    assert 0 < len(few) <= 6 and torch.equal(few, again)  # those that can be read
    assert more.shape[1:] == (32, 32, 3) and more.dtype == torch.uint8 and len(more) > 10
    reader = image_source(dataset.catalog, "", content.preprocessing)
    assert torch.equal(reader.read(places).arrays[0], few)
    none, places = read_photos(dataset, "", "cat", content, "train", 0)
    assert none.shape == (0, 32, 32, 3) and len(places) == 0


def test_accuracy_is_counted_by_the_models_own_class_numbers(content, dataset) -> None:
    _, places = read_photos(dataset, "", "cat", content, "train", 100)
    images, columns = dataset.image_labels("cat")
    heads, draw = content.heads, torch.Generator().manual_seed(0)
    logits = tuple(torch.rand(len(places), len(n), generator=draw) for n in heads.values())
    found = accuracies(logits, dataset, "cat", heads, places)
    for (head, names), answers in zip(heads.items(), logits, strict=True):
        vocabulary, marks = dataset.annotations["cat"].vocabularies[head], []
        for place, answer in zip(places.tolist(), answers, strict=True):
            label = columns[head][images.tolist().index(place)]
            if label >= 0 and vocabulary[label] in names:
                marks.append(names[int(answer.argmax())] == vocabulary[label])
        assert found[head] == pytest.approx(sum(marks) / len(marks)) and 0 < sum(marks) < len(marks)
    turned = {head: names[::-1] for head, names in heads.items()}
    assert accuracies(tuple(z.flip(1) for z in logits), dataset, "cat", turned, places) == found
    few = {"breed": heads["breed"][:1], "tail": ["long"]}  # other labels are unknown to it
    zeros = (torch.zeros(len(places), 1),) * 2
    assert accuracies(zeros, dataset, "cat", few, places) == {"breed": 1.0, "tail": None}
    right = torch.eye(len(dataset.catalog.classes))[dataset.catalog.class_index[places]]
    species = {"species": dataset.catalog.classes}
    assert accuracies((right,), dataset, None, species, places) == {"species": 1.0}


def test_what_the_comparison_counts() -> None:
    one, two = (torch.tensor([[1.0, 2.0], [3.0, 0.0]]),), (torch.tensor([[1.0, 2.5], [0.0, 1.0]]),)
    found = model_module.differences(one, two, ["gender"])
    assert found == {"gender": {"max_logit_difference": 3.0, "equal": 0.5}}


def test_an_export_that_answers_otherwise_is_refused(cat, dataset, monkeypatch) -> None:
    def wrong(model: Any, *arguments: Any) -> onnx.ModelProto:
        model.heads["gender"].bias.data += torch.tensor([0.0, 0.01])
        return network_graph(model, *arguments)

    monkeypatch.setattr(model_module, "network_graph", wrong)
    with pytest.raises(UserError, match=r"cat_best\.pt: logits of head gender differ by 0\.01 "):
        export_model(cat, "cat", dataset, ExportOptions())
    loose = ExportOptions(max_logit_difference=0.1)
    figures = export_model(cat, "cat", dataset, loose)[1]["measured"]["parity"]["heads"]
    assert figures["gender"]["max_logit_difference"] == pytest.approx(0.01, rel=0.1)
    assert figures["breed"]["max_logit_difference"] < 1e-4


def test_what_an_export_is_measured_on_is_compared_with_what_was_learnt(
    tree, stage1_run, content, dataset, tmp_path
) -> None:
    own = tree.copy(tmp_path / "PetFace")
    for path in own.root.glob("splits.*"):
        path.unlink()
    other = load_dataset(own.images, own.annotations, seed=5)
    learnt = checkpoints.read_stage1(stage1_run.folder / "best.pt")
    num, total = ((other.record_split > 0) & m for m in (dataset.record_split == 0, True))
    wanted = f"{num.sum()} of {total.sum()} records"
    assert model_module._contaminated(other, None, learnt) == wanted
    assert model_module._contaminated(dataset, None, learnt) == ""
    assert model_module._contaminated(dataset, "cat", content).startswith("not known")


_KEPT: dict[Any, Any] = {}


def _once(function):
    """Call the function at its first call in this file, and give the same from then on."""

    def kept(*arguments: Any) -> Any:
        if function not in _KEPT:
            _KEPT[function] = function(*arguments)
        copy = onnx.ModelProto()
        copy.CopyFrom(_KEPT[function])
        return copy

    return kept


@pytest.mark.parametrize(
    ("equal", "forced", "split", "verdict"),
    [
        (1.0, False, "val", "int8 kept:"),
        (0.9, False, "val", "int8 not kept, fp32 stays:"),
        (0.9, True, "val", "int8 kept by --force-int8, below 99.00%:"),
        (1.0, False, "train", "int8 not kept, fp32 stays:"),  # photos of its own ranges flatter it
    ],
)
def test_int8_is_kept_where_it_predicts_the_same_or_where_it_is_forced(
    cat, dataset, monkeypatch, equal: float, forced: bool, split: str, verdict: str
) -> None:
    """The networks are those of one export; what its photos showed is set here."""
    for name in ("quantise", "network_graph"):
        monkeypatch.setattr(model_module, name, _once(getattr(model_module, name)))
    differences, sample = model_module.differences, model_module.read_photos

    def shown(one, other, heads):
        found = differences(one, other, heads)
        return {head: {**figures, "equal": equal} for head, figures in found.items()}

    def drawn(dataset, pack, species, model, wanted, most):
        return sample(dataset, pack, species, model, wanted, most if wanted == split else 0)

    monkeypatch.setattr(model_module, "differences", shown)
    if split == "train":
        monkeypatch.setattr(model_module, "read_photos", drawn)
    options = ExportOptions(precision="int8", force_int8=forced, num_calibration=24, num_parity=24)
    content, card = export_model(cat, "cat", dataset, options)
    int8, is_small = card["measured"]["int8"], card["precision"] == "int8"
    assert int8["kept"] == is_small == verdict.startswith("int8 kept") and int8["forced"] == forced
    assert int8["agreement"] == {"breed": equal, "gender": equal}
    assert int8["accuracy"].keys() == {"fp32", "int8"}
    assert int8["accuracy"]["fp32"].keys() == {"breed", "gender"}
    assert card["measured"]["parity"]["part"] == split
    assert verdict in describe("cat", card)
    stored = onnx.ModelProto.FromString(content).graph
    assert any(node.op_type == "DequantizeLinear" for node in stored.node) == is_small
    assert len(content) < 13e6 if is_small else len(content) > 40e6


def test_8_bits_answer_nearly_as_floats_do(cat, content, dataset) -> None:
    options = ExportOptions(precision="int8", force_int8=True, num_calibration=24, num_parity=24)
    written, card = export_model(cat, "cat", dataset, options)
    model = onnx.ModelProto.FromString(written)
    made = {name: node.op_type for node in model.graph.node for name in node.output}
    weights = {"Conv": set(), "Gemm": set()}
    for node in model.graph.node:
        if node.op_type in weights:
            weights[node.op_type].add(made.get(node.input[1]))
    assert weights == {"Conv": {"DequantizeLinear"}, "Gemm": {None}}, "heads stay in float"
    photos, _ = read_photos(dataset, "", "cat", content, "val", 24)
    expected = Network.for_inference(content.model, content.preprocessing, "cpu", "fp32")
    x = {"image": photos.permute(0, 3, 1, 2).numpy().astype(np.float32) / 255}
    found = onnxruntime.InferenceSession(written).run(list(content.heads), x)
    for one, other in zip(found, expected.answer_pixels(photos), strict=True):
        error = np.abs(one - other.numpy()).mean()
        assert 0 < error < 0.25 * other.std()
