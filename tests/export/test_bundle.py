"""Writing a bundle: what is refused, int8 kept or not, nothing half after a stop."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from petface.data import images
from petface.errors import UserError
from petface.export import bundle as bundle_module
from petface.export import graphs as graphs_module
from petface.export import int8 as int8_module
from petface.export import model as model_module
from petface.export import parity
from petface.export import quantise as quantise_module
from petface.export.bundle import describe, write_bundle
from petface.export.graphs import _RULES, network_graph, preprocessing_graph
from petface.export.model import Wishes, export_model
from petface.export.quantise import quantise
from petface.export.sources import Source, cut_photos, read_photos, read_source
from petface.inference import onnx_models as exported
from petface.inference.onnx_models import session_of
from petface.models.familiarity import FALSE_ALARM_FRAC, threshold_at
from petface.models.network import fold_batchnorm
from tests.made_bundle import RULE, dataset_of, made_bundle

QUICK_INT8 = Wishes(precision="int8", max_float_layers=0, num_calibration=24, num_parity=24)


@pytest.fixture(scope="module")
def runs(tree) -> Path:
    return made_bundle(tree)[0]


@pytest.fixture(scope="module")
def dataset(tree):
    return dataset_of(tree)


def cat(runs: Path) -> Source:
    return read_source(runs / "stage2/cat/cat_best.pt", "cat")


def test_photos_come_with_the_models_own_class_numbers(runs, dataset) -> None:
    source = cat(runs)
    turned = replace(source, heads={head: names[::-1] for head, names in source.heads.items()})
    one, other = (read_photos(dataset, "", s, "train", 100) for s in (source, turned))
    assert torch.equal(one.pixels, other.pixels) and len(one.pixels) == len(one.places) > 10
    for head, names in source.heads.items():
        known = one.labels[head] >= 0
        assert 0 < known.sum() < len(known) or head == "breed"
        assert torch.equal(one.labels[head][known], len(names) - 1 - other.labels[head][known])
        columns = dataset.image_labels("cat")
        row = int(np.flatnonzero(known.numpy())[0])
        number = columns[1][head][np.searchsorted(columns[0], one.places[row])]
        name = dataset.annotations["cat"].vocabularies[head][number]
        assert names[one.labels[head][row]] == name
    few = replace(source, heads={"breed": source.heads["breed"][:1]})
    labels = read_photos(dataset, "", few, "train", 100).labels["breed"]
    assert set(labels.tolist()) == {-1, 0}, "a class that the model does not know is unknown"


def test_what_the_comparison_counts() -> None:
    one = parity.Answered((torch.tensor([[1.0, 2.0], [3.0, 0.0]]),), torch.tensor([-10.0, -20.0]))
    two = parity.Answered((torch.tensor([[1.0, 2.5], [0.0, 1.0]]),), torch.tensor([-10.0, -25.0]))
    found = parity.differences(one, two, ["gender"])
    assert found == {"gender": {"max_logit_difference": 3.0, "equal": 0.5}}
    assert parity.score_difference(one, two) == pytest.approx(5 / 25)
    labels = {"gender": torch.tensor([1, -1])}
    assert parity.accuracies(one, labels, ["gender"]) == {"gender": 1.0}
    assert parity.accuracies(one, {"gender": torch.tensor([-1, -1])}, ["gender"]) == {
        "gender": None
    }


def test_an_export_that_answers_otherwise_is_refused(runs, dataset, monkeypatch, tmp_path) -> None:
    def wrong(model, *arguments, **named):
        model.heads["gender"].bias.data += torch.tensor([0.0, 0.01])
        made = network_graph(model, *arguments, **named)
        model.heads["gender"].bias.data -= torch.tensor([0.0, 0.01])
        return made

    monkeypatch.setattr(graphs_module, "network_graph", wrong)
    with pytest.raises(UserError, match=r"cat_best\.pt: logits of head gender differ by 0\.01 "):
        _write_cat_alone(tmp_path / "out", runs / "stage2/cat/cat_best.pt", dataset)
    assert list(tmp_path.iterdir()) == [], "nothing half is left"
    loose = Wishes(max_logit_difference=0.1)
    figures = export_model(cat(runs), dataset, loose).card["measured"]["parity"]["heads"]
    assert figures["gender"]["max_logit_difference"] == pytest.approx(0.01, rel=0.1)
    assert figures["breed"]["max_logit_difference"] < 1e-4


def _write_cat_alone(out: Path, path: Path, dataset) -> None:
    with bundle_module._partial(out):
        export_model(read_source(path, "cat"), dataset, Wishes())


def test_a_graph_that_resizes_otherwise_is_refused(runs, dataset, monkeypatch) -> None:
    monkeypatch.setattr(graphs_module, "network_graph", _once(network_graph))
    rough = {"linear": "nearest", "antialias = 1, exclude_outside = 1,": ""}
    rules = dict(_RULES)
    for good, bad in rough.items():
        rules = {rule: text.replace(good, bad) for rule, text in rules.items()}
    monkeypatch.setattr(graphs_module, "_RULES", rules)
    with pytest.raises(
        UserError, match=r"cat_best\.pt: the graph's resizing is .* grey levels off"
    ):
        export_model(cat(runs), dataset, Wishes())


@pytest.mark.slow
def test_a_guard_that_scores_otherwise_is_refused(runs, dataset) -> None:
    source = read_source(runs / "stage1/best.pt", None)
    exact = graphs_module.guard_graph
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs_module, "guard_graph", lambda g: exact(replace(g, std=g.std * 1.01)))
        with pytest.raises(UserError, match=r"best\.pt: the guard's scores differ by 0\.0"):
            export_model(source, dataset, Wishes())


def test_photos_are_cut_so_that_they_must_be_resized(dataset) -> None:
    (place,) = np.flatnonzero([dataset.catalog.relative_path(i) == b"cat/000000/00.png" for i in
                               range(len(dataset.catalog))])  # fmt: skip
    whole = images.decode(dataset.catalog.path(int(place)))
    (cut,) = cut_photos(dataset, np.array([place]))
    height, width = whole.shape[:2]
    assert cut.shape == (height - height // 10, -(-width * 6 // 7), 3)
    assert np.array_equal(cut, whole[height // 10 :, : cut.shape[1]])
    session = session_of(preprocessing_graph(RULE).SerializeToString())
    assert parity.grey_levels(session, [cut], RULE)[0] <= 1
    other = replace(RULE, mean=(0.5, 0.4, 0.3 - 3 / 255))  # the blue numbers lie 3 levels lower
    largest, share = parity.grey_levels(session, [cut], other)
    assert 2 <= largest <= 4 and 0.3 < share < 0.4


@pytest.mark.parametrize(("equal", "forced"), [(1.0, False), (0.9, False), (0.9, True)])
def test_int8_is_kept_where_it_answers_the_same_or_where_it_is_forced(
    runs, dataset, monkeypatch, equal: float, forced: bool
) -> None:
    """The networks are those of one export; what its photos showed is set here."""
    monkeypatch.setattr(int8_module, "quantise", _once(quantise))
    monkeypatch.setattr(graphs_module, "network_graph", _once(network_graph))
    differences = parity.differences

    def shown(one, other, heads):
        found = differences(one, other, heads)
        return {head: {**figures, "equal": equal} for head, figures in found.items()}

    monkeypatch.setattr(parity, "differences", shown)
    written = export_model(cat(runs), dataset, replace(QUICK_INT8, force_int8=forced))
    int8 = written.card["measured"]["int8"]
    assert int8["kept"] == (equal == 1.0 or forced) and int8["forced"] == forced
    assert int8["agreement"] == {"breed": equal, "gender": equal}
    assert written.card["precision"] == ("int8" if int8["kept"] else "fp32")
    stored = {node.op_type for node in onnx.ModelProto.FromString(written.content).graph.node}
    assert ("DequantizeLinear" in stored) == int8["kept"]
    assert len(written.content) < 13e6 if int8["kept"] else len(written.content) > 40e6
    verdict = {(1.0, False): "int8 kept:", (0.9, False): "not kept, fp32 stays:"}
    wanted = verdict.get((equal, forced), "kept by --force-int8, below 99.00%")
    assert wanted in describe("cat", written.card)


_KEPT: dict = {}


def _once(function):
    """Call the function at its first call in this file, and give the same from then on."""

    def kept(*arguments, **named):
        if function not in _KEPT:
            _KEPT[function] = function(*arguments, **named)
        return _KEPT[function]

    return kept


@pytest.mark.slow
def test_int8_guards_a_stage_1_at_its_own_threshold(runs, dataset) -> None:
    source = read_source(runs / "stage1/best.pt", None)
    wishes = replace(QUICK_INT8, force_int8=True)
    written = export_model(source, dataset, wishes)
    assert written.card["precision"] == "int8"
    session = session_of(written.content)
    photos = read_photos(dataset, "", source, "val", wishes.num_parity).pixels
    (scores,) = session.run(["guard_score"], {"pixels": photos.numpy()})
    fitted = threshold_at(torch.from_numpy(scores), FALSE_ALARM_FRAC)
    expected = source.guard.threshold if fitted is None else fitted
    assert written.card["guard_threshold"] == pytest.approx(expected, rel=1e-9)
    assert set(written.card["measured"]["int8"]["guard"]) >= {"fp32_false_alarms"}


@pytest.mark.slow
def test_layers_are_left_in_float_until_the_judge_is_content(runs, dataset) -> None:
    source = cat(runs)
    fold_batchnorm(source.model)
    network = network_graph(source.model, 32, list(source.heads), with_means=False)
    pixels = read_photos(dataset, "", source, "train", 24).pixels
    shares = iter([0.5, 0.9, 0.7])
    judged = []

    def judge(candidate: onnx.ModelProto) -> float:
        judged.append(candidate)
        return next(shares)

    found = quantise(network, RULE, pixels, judge, wanted=0.99, max_float_layers=2)
    assert len(judged) == 3 and found.share == 0.7 and len(found.float_layers) == 2
    num_whole = [_num_quantised(model) for model in judged]
    assert num_whole == [20, 19, 18], "none, the first, the first two"
    assert found.network is judged[2]
    again = quantise(network, RULE, pixels, lambda _: 0.995, wanted=0.99, max_float_layers=2)
    assert again.float_layers == () and again.share == 0.995
    relus = [sum(node.op_type == "Relu" for node in model.graph.node) for model in judged]
    assert relus[0] < relus[2], "a Relu beside a layer in float stays"


def test_a_convolution_whose_bias_was_dropped_as_zero_gets_one_to_correct(runs) -> None:
    source = cat(runs)
    fold_batchnorm(source.model)
    with torch.no_grad():
        source.model.body.layer4[1].conv2.bias.zero_()
    network = network_graph(source.model, 32, list(source.heads), with_means=False)
    convolutions = [node for node in network.graph.node if node.op_type == "Conv"]
    assert sorted({len(node.input) for node in convolutions}) == [2, 3], "the exporter drops zeros"
    x = {graphs_module.IMAGE: np.random.default_rng(0).random((2, 3, 32, 32), np.float32)}
    before = session_of(network.SerializeToString()).run(None, x)
    quantise_module._with_biases(network)
    assert {len(node.input) for node in convolutions} == {3}
    after = session_of(network.SerializeToString()).run(None, x)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(
    ("groups", "kernel", "stride", "padding"),
    [(1, 3, 1, 1), (1, 7, 2, 3), (1, 1, 2, 0), (6, 3, 2, 1)],
)
def test_what_the_weights_meet_gives_the_mean_of_a_convolution(
    groups: int, kernel: int, stride: int, padding: int
) -> None:
    draw = torch.Generator().manual_seed(5)
    x = torch.rand(3, 6, 9, 8, generator=draw, dtype=torch.float64)
    weight = torch.randn(12, 6 // groups, kernel, kernel, generator=draw, dtype=torch.float64)
    node = onnx.helper.make_node(
        "Conv", ["x", "w"], ["y"], kernel_shape=[kernel] * 2, strides=[stride] * 2,
        pads=[padding] * 4, dilations=[1, 1], group=groups,
    )  # fmt: skip
    met = torch.tensor(quantise_module._met(node, x.numpy()))
    seen = met.reshape(groups, 6 // groups, kernel, kernel).repeat_interleave(12 // groups, dim=0)
    y = torch.nn.functional.conv2d(x, weight, None, stride, padding, groups=groups)
    torch.testing.assert_close((weight * seen).sum(dim=(1, 2, 3)), y.mean(dim=(2, 3)).sum(dim=0))


def _num_quantised(model: onnx.ModelProto) -> int:
    """Count the convolutions whose weights are stored in 8 bits."""
    made = {name: node.op_type for node in model.graph.node for name in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 20
    return sum(made.get(node.input[1]) == "DequantizeLinear" for node in convolutions)


def test_a_finished_bundle_is_replaced_only_by_force(tree, dataset, tmp_path, monkeypatch) -> None:
    runs, whole = made_bundle(tree)
    with pytest.raises(UserError, match="a finished bundle; --force replaces it"):
        write_bundle(whole, runs / "stage1/best.pt", {}, dataset, Wishes())
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="is no bundle"):
        write_bundle(other, runs / "stage1/best.pt", {}, dataset, Wishes(), force=True)
    assert (other / "precious.txt").read_text() == "mine"
    (other / "bundle.json").write_text("{}")
    written = _as_written(whole / "stage1")
    monkeypatch.setattr(bundle_module, "export_model", lambda *_: written)
    write_bundle(other, runs / "stage1/best.pt", {}, dataset, Wishes(), force=True)
    assert exported.read(other / "stage1.onnx").heads["species"] and list(tmp_path.iterdir()) == [
        other
    ]
    assert not (other / "precious.txt").exists() and exported.specialists_in(other) == []


def test_a_stopped_export_leaves_what_was_there(tree, dataset, tmp_path, monkeypatch) -> None:
    runs, whole = made_bundle(tree)
    written = _as_written(whole / "stage1")
    monkeypatch.setattr(bundle_module, "export_model", lambda *_: written)
    out = tmp_path / "bundle"
    write_bundle(out, runs / "stage1/best.pt", {}, dataset, Wishes())
    before = (out / "bundle.json").read_bytes()
    turns = iter([written])

    def stopped(*_):
        try:
            return next(turns)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(bundle_module, "export_model", stopped)
    cats = {"cat": runs / "stage2/cat/cat_best.pt"}
    with pytest.raises(KeyboardInterrupt):
        write_bundle(out, runs / "stage1/best.pt", cats, dataset, Wishes(), force=True)
    assert (out / "bundle.json").read_bytes() == before
    left = tmp_path / "bundle.unfinished"
    assert (left / "stage1.onnx").is_file() and not exported.is_bundle(left)
    monkeypatch.setattr(bundle_module, "export_model", lambda *_: written)
    write_bundle(out, runs / "stage1/best.pt", {}, dataset, Wishes(), force=True)
    assert not left.exists(), "the next start removes it"


def test_two_do_not_write_one_bundle_at_once(tree, dataset, tmp_path, monkeypatch) -> None:
    runs, whole = made_bundle(tree)
    written = _as_written(whole / "stage1")
    out, refused = tmp_path / "bundle", []

    def another_starts(*_):
        with pytest.raises(UserError, match=f"unfinished is in use by process {os.getpid()}"):
            write_bundle(out, runs / "stage1/best.pt", {}, dataset, Wishes())
        refused.append(True)
        return written

    monkeypatch.setattr(bundle_module, "export_model", another_starts)
    write_bundle(out, runs / "stage1/best.pt", {}, dataset, Wishes())
    assert refused and exported.is_bundle(out)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def _as_written(stem: Path) -> model_module.Written:
    card = json.loads(stem.with_suffix(".json").read_text())
    return model_module.Written(stem.with_suffix(".onnx").read_bytes(), card)
