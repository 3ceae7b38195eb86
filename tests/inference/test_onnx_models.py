"""Reading exported models: what the card says, the answers, and everything that is refused."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from petface.errors import UserError
from petface.files import sha256_of_file
from petface.identity.embed import load_embedder
from petface.inference import onnx_models
from petface.inference.loading import ComputeOptions, load_stage
from petface.models import checkpoints, layouts
from petface.models.checkpoints import CheckpointError
from petface.models.embedding import read_matching
from petface.models.network import Network
from tests.made_bundle import BREEDS, CALIBRATION, RULE, SPECIES, made_bundle


@pytest.fixture(scope="module")
def made(tree) -> tuple[Path, Path]:
    return made_bundle(tree)


@pytest.fixture(scope="module")
def bundle(made) -> Path:
    return made[1]


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bundle, tmp_path / "bundle")


@pytest.fixture
def alone(bundle: Path, tmp_path: Path) -> Path:
    """The cats' specialist with its card, outside of a bundle."""
    for suffix in (".onnx", ".json"):
        shutil.copy(bundle / f"stage2/cat{suffix}", tmp_path)
    return tmp_path / "cat.onnx"


def pixels(num: int, height: int = 32, width: int = 32) -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (num, height, width, 3), generator=draw, dtype=torch.uint8)


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


def refused(path: Path, *words: str, species: str | None = "cat") -> None:
    with pytest.raises(CheckpointError) as caught:
        onnx_models.read(path, species)
    message = str(caught.value)
    assert str(path.parent.parent) in message and "\n" not in message
    for word in words:
        assert word in message, message


def test_a_bundle_is_found_and_says_what_the_checkpoints_say(made) -> None:
    runs, bundle = made
    assert onnx_models.is_bundle(bundle) and not onnx_models.is_bundle(bundle / "stage2")
    stage1 = onnx_models.find(bundle, None)
    cat = onnx_models.find(bundle, "cat")
    assert stage1 == bundle / "stage1.onnx" and cat == bundle / "stage2/cat.onnx"
    assert onnx_models.find(bundle, "dog") is None and onnx_models.find(runs, None) is None
    assert onnx_models.find(cat, "cat") == cat
    assert onnx_models.find(bundle / "no.onnx", None) is None
    one, two = onnx_models.read(stage1), onnx_models.read(cat, "cat")
    content = checkpoints.read_stage1(runs / "stage1/best.pt")
    assert one.heads == {"species": SPECIES} and one.sources == {"species": "checkpoint"}
    assert one.calibration == content.calibration and one.temperatures == (1.5,)
    assert one.preprocessing == RULE and one.content == stage1.read_bytes()
    assert list(two.heads.items()) == [("breed", tuple(BREEDS)), ("gender", ("female", "male"))]
    assert two.temperatures == (CALIBRATION["temperature"], 1.0) and two.precision == "fp32"


@pytest.mark.parametrize("name", ["stage1", "stage2/cat", "identity"])
def test_the_card_and_the_model_say_the_same(bundle: Path, name: str) -> None:
    path = bundle / f"{name}.onnx"
    model = onnx.load(path, load_external_data=False)
    own = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    card = json.loads(path.with_suffix(".json").read_text())
    assert own == {name: card[name] for name in own} and own.keys() >= {*onnx_models.METADATA}
    assert card["bytes"] == path.stat().st_size and card["opset"] == 18
    outputs = [output.name for output in model.graph.output]
    assert outputs == list(card["outputs"]) == list(card["heads"])
    assert [entry.name for entry in model.graph.input] == list(card["inputs"]) == ["image"]


def test_it_answers_as_the_checkpoint_does(made) -> None:
    runs, bundle = made
    content = layouts.read_stage2(runs / "stage2/cat/cat_best.pt", "cat")
    reference = Network.build(content.model, content.preprocessing, "cpu", "fp32")
    network = load_stage(bundle, "cat", ComputeOptions.choose("cpu", "auto", stage1=bundle)).network
    assert network.preprocessing == RULE and network.temperatures == (1.5, 1.0)
    most = 8 * 224 * 224 // 32**2
    for num in (1, most + 3):  # one alone, and more than are computed at once
        found, expected = network.answer_pixels(pixels(num)), reference.answer_pixels(pixels(num))
        assert [head.shape for head in found] == [(num, 3), (num, 2)]
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_an_identity_network_embeds_as_its_checkpoint_does(made, copy: Path) -> None:
    runs, bundle = made
    own = load_embedder(runs / "identity/best.pt", ComputeOptions("cpu", "fp32"))
    expected = own.network.answer_pixels(pixels(3))[0]
    torch.testing.assert_close(expected.norm(dim=1), torch.ones(3))
    for path in (bundle, bundle / "identity.onnx"):
        found = load_embedder(path, ComputeOptions.choose("cpu", "auto", stage1=path))
        assert (found.threshold, found.false_match_rate) == (0.5, 0.01) == (own.threshold, 0.01)
        (embedding,) = found.network.answer_pixels(pixels(3))
        torch.testing.assert_close(embedding, expected, rtol=0, atol=1e-5)
    (copy / "bundle.json").unlink()
    path = copy / "identity.onnx"
    change_json(path.with_suffix(".json"), lambda card: card["matching"].update(threshold=0.1))
    for message in ("say different things", "no such file"):
        with pytest.raises(CheckpointError, match=message):
            load_embedder(path, ComputeOptions("cpu", "exported"))
        path.unlink(missing_ok=True)
    for matching in ({"threshold": "0.5"}, {"threshold": 2.0}, [0.5]):
        with pytest.raises(CheckpointError, match='"matching" makes no sense'):
            read_matching(path, {"matching": matching})


def test_any_flipped_byte_is_noticed(alone: Path) -> None:
    whole, draw = alone.read_bytes(), random.Random(0)
    for place in [0, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(10))]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        alone.write_bytes(damaged)
        refused(alone, "checksum is not the one in its card", "copy the whole bundle again")
    for share in (0, 0.5, 0.999):
        alone.write_bytes(whole[: int(len(whole) * share)])
        refused(alone, "checksum")


def test_a_missing_file_or_card_is_named(alone: Path) -> None:
    refused(alone.with_name("dog.onnx"), "dog.onnx: cannot be read: No such file")
    alone.with_suffix(".json").unlink()
    refused(alone, "cat.json: cannot be read: No such file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card["heads"]["gender"].reverse(), "say different things"),
        (lambda card: card["calibration"]["breed"].update(temperature=1.0), "different things"),
        (lambda card: card.pop("preprocessing"), "say different things"),
        (lambda card: card.update(sha256="0" * 64), "checksum is not the one in its card"),
        (lambda card: card.update(format=3), "is of format 3, not 2; update PetFace"),
        (lambda card: card.update(format=1), "is of format 1, not 2; update PetFace, or export"),
        (lambda card: card.pop("format"), "is of format None"),
        *((text, "cat.json: ") for text in (b"", b"{", b"[]", b"\xff\xfe", b"null")),
        *((text, "not valid JSON") for text in (b"[" * 200_000, b'{"a": NaN}')),
        (b'{"format": 1' + b"0" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_an_edited_card_is_refused(alone: Path, change, message: str) -> None:
    card = alone.with_suffix(".json")
    if isinstance(change, bytes):
        card.write_bytes(change)
    else:
        change_json(card, change)
    refused(alone, message)


def forge(path: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    """Change a model and make its card's checksum right again, as somebody else's program would."""
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    change_json(path.with_suffix(".json"), lambda card: card.update(sha256=sha256_of_file(path)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: setattr(m.graph.node[0], "domain", "com.evil"), "export writes: com.evil"),
        (lambda m: setattr(m.graph.node[0], "op_type", "Loop"), "no export writes: Loop"),
        (
            lambda m: m.graph.node[0].attribute.append(onnx.helper.make_attribute("body", m.graph)),
            "export writes: GraphProto",
        ),
        (lambda m: m.graph.sparse_initializer.add(), "export writes: SparseTensorProto"),
        (lambda model: model.functions.add(), "export writes: FunctionProto"),
        (lambda model: model.metadata_props.pop(), "say different things"),
        (lambda m: keep_outside(m), "keeps weights in a second file"),
        (lambda m: hide_in_a_constant(m), "export writes: SparseTensorProto"),
        (lambda m: outer_product(m, 60_000), "unknown or huge size"),
        (lambda m: declare(m, [2**40, 2**30]), "declare"),
        (lambda m: declare(m, [-1]), "declare"),
        (lambda m: m.graph.output.append(m.graph.input[0]), "heads of its card alone"),
        (lambda m: m.graph.input.append(m.graph.output[0]), "heads of its card alone"),
        (lambda m: m.opset_import.add(domain="com.microsoft", version=1), "other makers"),
        (lambda m: m.training_info.add(), "export writes: TrainingInfoProto"),
        (lambda m: m.graph.quantization_annotation.add(), "export writes: TensorAnnotation"),
        (lambda m: m.graph.node[2].attribute[0].ints.append(2**40), "is 1099511627776"),
    ],
)
def test_what_no_export_writes_is_refused(alone: Path, change, message: str) -> None:
    forge(alone, change)
    refused(alone, message)


def keep_outside(model: onnx.ModelProto) -> None:
    """Take the values of the largest weights from a second file."""
    tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    onnx.external_data_helper.set_external_data(tensor, "secret")
    tensor.ClearField("raw_data")


def hide_in_a_constant(model: onnx.ModelProto) -> None:
    """Name a file in the sparse value of a constant, and answer with what lies in it."""
    node = model.graph.node.add(op_type="Constant", output=["zz"])
    attribute = node.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR)
    values = attribute.sparse_tensor.values
    values.data_type, values.data_location = 1, onnx.TensorProto.EXTERNAL
    values.external_data.add(key="location", value="secret")


def outer_product(model: onnx.ModelProto, side: int) -> None:
    """Compute side * side numbers from two rows of weights, by an operator of ours."""
    for name, dims in (("one", [side, 1]), ("other", [1, side])):
        tensor = onnx.helper.make_tensor(name, 1, dims, bytes(4 * side), raw=True)
        model.graph.initializer.append(tensor)
    model.graph.node.add(op_type="Add", input=["one", "other"], output=["boom"])


def declare(model: onnx.ModelProto, dims: list[int]) -> None:
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(dims)


@pytest.mark.parametrize("name", ["stage2/cat.onnx", "stage2/cat.json", "bundle.json", "stage2"])
def test_a_link_out_of_a_bundle_is_not_followed(copy: Path, tmp_path: Path, name: str) -> None:
    path, elsewhere = copy / name, tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    refused(copy / "stage2/cat.onnx", "is a link out of its bundle")


@pytest.mark.parametrize(
    "change",
    [
        lambda card: card["preprocessing"].update(size_px=10**9),
        lambda card: card.update(heads=None),
        lambda card: card["heads"].update(gender="abc"),
        lambda card: card["heads"].update(gender=[]),
        lambda card: card.update(sources=[1]),
        lambda card: card.update(precision={"a": 1}),
        lambda card: card["heads"].update(gender=["x"] * 9),
    ],
)
def test_nonsense_that_card_and_model_agree_on_is_refused(alone: Path, change) -> None:
    change_json(alone.with_suffix(".json"), change)
    card = json.loads(alone.with_suffix(".json").read_text())

    def agree(model: onnx.ModelProto) -> None:
        for entry in model.metadata_props:
            entry.value = json.dumps(card[entry.key])

    forge(alone, agree)
    refused(alone)


def test_what_a_bundle_does_not_list_as_it_is_is_refused(copy: Path) -> None:
    cat = copy / "stage2/cat.onnx"
    onnx_models.read(cat, "cat")
    shutil.copy(cat, copy / "stage2/dog.onnx")
    shutil.copy(cat.with_suffix(".json"), copy / "stage2/dog.json")
    refused(copy / "stage2/dog.onnx", "dog.onnx: checksum is not the one in", "bundle.json")
    assert onnx_models.find(copy, "dog") is None
    change_json(cat.with_suffix(".json"), lambda card: card["measured"].clear())
    refused(cat, "cat.json: checksum is not the one in", "bundle.json")


def test_an_edited_bundle_is_refused(copy: Path) -> None:
    table, cat = copy / "bundle.json", copy / "stage2/cat.onnx"
    change_json(table, lambda t: t["files"].update({"stage2/cat.onnx": "0" * 64}))
    refused(cat, "checksum is not the one in", "bundle.json")
    change_json(table, lambda t: t.update(files=[]))
    refused(cat, "does not list the files of a bundle")
    table.write_text("{}")
    refused(cat, "bundle.json: is of format None, not 2")
    table.write_text("}")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        onnx_models.find(copy, "cat")


def test_another_models_place_is_refused(bundle: Path) -> None:
    cat = bundle / "stage2/cat.onnx"
    refused(cat, "is a specialist for cat, not a stage 1", species=None)
    refused(cat, "a specialist for cat, not a specialist for dog", species="dog")
    refused(bundle / "stage1.onnx", "is a stage 1, not a specialist for cat")
    refused(bundle / "identity.onnx", "is an identity network, not a stage 1", species=None)
    with pytest.raises(CheckpointError, match="is a stage 1, not an identity network"):
        onnx_models.read(bundle / "stage1.onnx", is_identity=True)


def test_bytes_that_are_no_model_are_refused_by_name(bundle: Path) -> None:
    with pytest.raises(CheckpointError, match=r"some\.onnx: ONNX Runtime cannot load it"):
        described = onnx_models.read(bundle / "stage1.onnx")
        onnx_models.OnnxNetwork(b"no model", described, name="some.onnx")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named_with_its_install_line(bundle, monkeypatch, package) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"need {package} .*\.\[export\]"):
        load_stage(bundle, None, ComputeOptions("cpu", "exported"))
