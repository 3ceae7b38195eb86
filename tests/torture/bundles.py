"""A stranger's bundles: exported models that are changed and sealed again with right checksums.

What opens files, never ends or takes all memory is refused before a runtime sees it; what only has
other weights is read, as a stranger's own network would be.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from petface.inference import onnx_models
from tests.conftest import make_tree
from tests.made_bundle import dataset_of, write_checkpoints
from tests.torture.fuzz import (
    Content,
    Files,
    Fuzzer,
    damaged,
    fuzz_apart,
    judge_reading,
    one_line,
)
from tests.torture.outcome import Outcome

CEILING_BYTES = 900_000_000  # beyond what the process had; a network of 45 MB is read
SECRET = "secret.bin"  # beside the bundle
_HUGE = 2**62
_RANDOM = [f"structure {number}" for number in range(40)]


def torture_bundles(num_files: int, seed: int, place: Path) -> Outcome:
    """Read strangers' bundles in processes of their own, and ask those that are read."""
    from petface.export.bundle import write_bundle
    from petface.export.model import ExportOptions

    stage1, stage2 = write_checkpoints(place / "runs")
    cat = {"cat": stage2 / "cat" / "cat_best.pt"}
    dataset = dataset_of(make_tree(place / "tree"))
    with contextlib.redirect_stdout(io.StringIO()):
        write_bundle(place / "whole", stage1, cat, dataset, ExportOptions())
    os.mkfifo(place / SECRET)  # who opens it waits for ever
    outcome, fuzzer = Outcome("bundles", "strangers' bundles"), f"{__name__}:bundle_fuzzer"
    return fuzz_apart(outcome, fuzzer, str(place), num_files, seed, 60.0, 12 * 10**9, CEILING_BYTES)


def bundle_fuzzer(folder: str) -> Fuzzer:
    """Change the specialist of a bundle, or its tables, and seal it."""
    import onnx

    place, whole = Path(folder), Path(folder) / "whole"
    content = (whole / "stage2/cat.onnx").read_bytes()
    card = json.loads((whole / "stage2/cat.json").read_text())
    attacks = model_attacks(onnx)
    pixels = torch.zeros(2, card["preprocessing"]["size_px"], card["preprocessing"]["size_px"], 3)

    def draw_file(number: int, draw: random.Random) -> tuple[str, Files]:
        kinds = [*attacks, *CARD_ATTACKS, *FOLDER_ATTACKS, "bytes", "weights", *_RANDOM]
        kind, table = kinds[number % len(kinds)], json.loads(json.dumps(card))
        own = onnx.ModelProto.FromString(content)
        if kind in attacks:
            attacks[kind](own, draw)
        elif kind in CARD_ATTACKS:  # the model says the same
            CARD_ATTACKS[kind](table, draw)
            for entry in own.metadata_props:
                entry.value = json.dumps(table.get(entry.key))
        for _ in range(draw.randrange(1, 4) if kind in _RANDOM else 0):
            _change_structure(own, draw)
        made = own.SerializeToString()
        if kind == "bytes":
            made = damaged(made, draw)
        elif kind == "weights":
            made = damaged(made, draw, len(made) // 4, len(made) // 2)
        files = seal(whole, table, made)
        if kind in FOLDER_ATTACKS:
            FOLDER_ATTACKS[kind](files, draw)
        return kind, files

    def read(folder: Path) -> None:
        for species in (None, "cat"):
            if path := onnx_models.find(folder, species):
                found = onnx_models.read(path, species)
                network = onnx_models.OnnxNetwork(found.content, found, "cpu", str(path))
                sizes = [len(names) for names in found.heads.values()]
                shapes = [head.shape[1] for head in network.answer_pixels(pixels.byte())]
                assert shapes == sizes, "other heads"

    bundle = place / "bundle"
    told = partial(one_line, name=bundle)
    return Fuzzer(draw_file, lambda files: judge_reading(bundle, files, read, told))


def seal(whole: Path, card: Any, content: bytes) -> dict[str, Content]:
    """Return the files of a bundle whose checksums all fit."""
    card = json.dumps({**card, "sha256": hashlib.sha256(content).hexdigest()}).encode()
    listed = json.loads((whole / "bundle.json").read_text())
    files: dict[str, Content] = {name: whole / name for name in listed["files"]}
    for name, made in (("stage2/cat.onnx", content), ("stage2/cat.json", card)):
        files[name], listed["files"][name] = made, hashlib.sha256(made).hexdigest()
    return {**files, "bundle.json": json.dumps(listed).encode()}


def _change_structure(model: Any, draw: random.Random) -> None:
    """Give a field of any message of a model another value, or make one that is not there."""
    messages = [model]
    for message in messages:  # which grows
        for field, value in message.ListFields():
            if field.type == field.TYPE_MESSAGE:
                messages += [value] if hasattr(value, "DESCRIPTOR") else list(value)[:40]
    for kind in draw.sample(sorted({type(m).__name__ for m in messages}), 1):
        message = draw.choice([m for m in messages if type(m).__name__ == kind])
    for _ in range(3):  # into what is made now
        field = draw.choice(message.DESCRIPTOR.fields)
        value, numbers = getattr(message, field.name), (0, -1, 1, 7, 16, 2**31 - 1, _HUGE, 1e300)
        if field.type == field.TYPE_MESSAGE:
            message = value.add() if hasattr(value, "add") else value
            message.SetInParent()
            continue
        is_text = field.type in (field.TYPE_STRING, field.TYPE_BYTES)
        texts = ("", f"../../{SECRET}", "Loop", "a\nb", "9" * 5000, "EXTERNAL")
        new = draw.choice(texts if is_text else numbers)
        with contextlib.suppress(TypeError, ValueError):
            new = new.encode() if field.type == field.TYPE_BYTES else new
            value.append(new) if hasattr(value, "append") else setattr(message, field.name, new)
        return


def model_attacks(onnx: Any) -> dict[str, Callable[[Any, random.Random], None]]:
    """Ways to change a `ModelProto`, by name."""
    helper, proto = onnx.helper, onnx.TensorProto

    def outside(tensor: Any) -> Any:
        tensor.ClearField("raw_data")
        tensor.data_location = proto.EXTERNAL
        for key, value in (("location", f"../../{SECRET}"), ("offset", "0"), ("length", "64")):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
        return tensor

    def weight(model: Any, draw: random.Random) -> Any:
        return draw.choice([t for t in model.graph.initializer if t.data_type == 1])

    def new(name: str = "stolen") -> Any:
        return helper.make_tensor(name, proto.FLOAT, [4], [0.0] * 4)

    def node(model: Any, kind: str, inputs: list[str], outputs: list[str], **more: Any) -> None:
        model.graph.node.append(helper.make_node(kind, inputs, outputs, **more))

    def external(model: Any, draw: random.Random) -> None:
        outside(weight(model, draw))

    def sparse(model: Any, _: random.Random) -> None:
        entry = model.graph.sparse_initializer.add()
        entry.values.CopyFrom(outside(new()))
        entry.dims.append(4)

    def constant(model: Any, _: random.Random) -> None:
        node(model, "Constant", [], ["stolen"], value=outside(new()))

    def constant_sparse(model: Any, _: random.Random) -> None:
        node(model, "Constant", [], ["stolen"])
        found = model.graph.node[-1].attribute.add(name="sparse_value", type=11)
        found.sparse_tensor.values.CopyFrom(outside(new()))

    def subgraph(model: Any, draw: random.Random) -> None:
        body = helper.make_graph([], "body", [], [], [outside(new())])
        node(model, draw.choice(["If", "Loop", "Scan", "Relu"]), ["image"], ["more"], body=body)

    def lists(model: Any, draw: random.Random) -> None:
        """Put a tensor into one of the lists that an attribute may have."""
        entry = draw.choice(model.graph.node).attribute.add(name="more")
        kind = draw.choice(["tensors", "sparse_tensors", "graphs", "type_protos"])
        made = getattr(entry, kind).add()
        if kind == "sparse_tensors":
            outside(draw.choice([made.values, made.indices]))
        elif kind == "graphs":
            outside(made.initializer.add())
        elif kind == "tensors":
            outside(made)

    def value_info(model: Any, draw: random.Random) -> None:
        sizes = draw.choice([[_HUGE], [2**40, 2**40], [-1], [0]])
        kept = draw.choice(model.graph.node).output[0]
        model.graph.value_info.append(helper.make_tensor_value_info(kept, proto.FLOAT, sizes))

    def deep(model: Any, _: random.Random) -> None:
        graph = model.graph
        for _level in range(60):
            graph = graph.node.add(op_type="If").attribute.add(name="then_branch", type=5).g
        outside(graph.initializer.add())

    def product(model: Any, draw: random.Random) -> None:
        for name, dims in (("one", [2**16, 1]), ("other", [1, 2**16])):
            made = helper.make_tensor(name, 1, dims, bytes(4 * 2**16), raw=True)
            model.graph.initializer.append(made)
        node(model, draw.choice(["Mul", "MatMul", "Add"]), ["one", "other"], ["x"])

    def function(model: Any, _: random.Random) -> None:
        inner = helper.make_node("Constant", [], ["x"], value=outside(new()))
        model.functions.append(helper.make_function("evil", "F", [], [], [inner], []))
        node(model, "F", [], ["more"], domain="evil")

    def training(model: Any, _: random.Random) -> None:
        info = model.training_info.add()
        info.algorithm.initializer.append(outside(new()))
        info.initialization.sparse_initializer.add().indices.CopyFrom(outside(new()))

    def operator(model: Any, draw: random.Random) -> None:
        names = ("ReadFile", "Loop", "Optional", "SequenceAt", "StringSplit", "RandomNormal")
        draw.choice(model.graph.node).op_type = draw.choice(names)

    def domain(model: Any, draw: random.Random) -> None:
        draw.choice(model.graph.node).domain = draw.choice(["com.microsoft", "evil", "ai.onnx.ml"])

    def dims(model: Any, draw: random.Random) -> None:
        weight(model, draw).dims[0] = draw.choice([_HUGE, -1, 0, 2**40])

    def expanded(model: Any, draw: random.Random) -> None:
        shape = helper.make_tensor("shape", proto.INT64, [2], [draw.choice([2**20, 2**40]), 2**20])
        model.graph.initializer.append(shape)
        node(
            model, draw.choice(["Expand", "ConstantOfShape", "Reshape"]), ["image", "shape"], ["x"]
        )

    def pads(model: Any, draw: random.Random) -> None:
        conv = draw.choice([n for n in model.graph.node if n.op_type == "Conv"])
        found = next((a for a in conv.attribute if a.name == "pads"), None) or conv.attribute.add(
            name="pads", type=7
        )
        found.ints[:] = [draw.choice([2**20, 2**40, -5])] * 4

    def output(model: Any, draw: random.Random) -> None:
        entry = helper.make_tensor_value_info(weight(model, draw).name, proto.FLOAT, None)
        model.graph.output.append(entry)

    def asked(model: Any, draw: random.Random) -> None:
        entry = draw.choice([*model.graph.input, *model.graph.output])
        entry.type.tensor_type.shape.dim[-1].dim_value = draw.choice([_HUGE, 0, 7])

    def many(model: Any, _: random.Random) -> None:
        for number in range(25_000):
            node(model, "Relu", ["image" if not number else f"r{number - 1}"], [f"r{number}"])

    def doubled(model: Any, _: random.Random) -> None:
        for number in range(60):
            before = "image" if not number else f"d{number - 1}"
            node(model, "Concat", [before, before], [f"d{number}"], axis=1)

    def circle(model: Any, draw: random.Random) -> None:
        last, first = model.graph.node[-1], model.graph.node[0]
        first.input[0] = draw.choice([last.output[0], "nowhere"])

    def kinds(model: Any, draw: random.Random) -> None:
        weight(model, draw).data_type = draw.choice([0, 8, 16, 20, 99])

    def metadata(model: Any, draw: random.Random) -> None:
        entry = draw.choice(model.metadata_props)
        entry.value = draw.choice(["", "[" * 100_000, "NaN", "1" * 5000, '{"a": 1}'])

    def versions(model: Any, draw: random.Random) -> None:
        model.opset_import[0].version = draw.choice([0, 1, 999, _HUGE])
        model.ir_version = draw.choice([1, 99, _HUGE])

    ways = (
        *(external, sparse, constant, constant_sparse, subgraph, function, training, operator),
        *(domain, dims, expanded, pads, output, asked, many, doubled, circle, kinds, metadata),
        *(versions, lists, value_info, deep, product),
    )
    return {way.__name__: way for way in ways}


def _field(*names: str) -> Callable[[Any, random.Random], None]:
    """Put nonsense into a field of a card."""
    values = (None, -1, 2**70, 1e308, "x" * 10_000, [], {}, [[[]]], True, f"../../{SECRET}")

    def change(card: Any, draw: random.Random) -> None:
        for name in names[:-1]:
            card = card[name]
        card[names[-1]] = draw.choice(values)

    return change


CARD_ATTACKS: dict[str, Callable[[Any, random.Random], None]] = {
    " ".join(names): _field(*names)
    for names in (
        *(("heads",), ("heads", "breed"), ("sources",), ("preprocessing",), ("calibration",)),
        *(("preprocessing", "size_px"), ("preprocessing", "mean"), ("calibration", "breed")),
        *(("species",), ("precision",), ("data",), ("format",), ("inputs",), ("outputs",)),
    )
}


def _file(name: str, *contents: Any) -> Callable[[dict[str, Content], random.Random], None]:
    """Put something else in the place of a file of a bundle; "" leaves it out."""

    def change(files: dict[str, Content], draw: random.Random) -> None:
        made = files.pop(name, None)
        content = draw.choice(contents)
        if content == "/":
            files[f"{name}/"] = b""
        elif callable(content):
            files[name] = content(made)
        elif content != "":
            files[name] = content

    return change


_TEXTS = (
    *(b"", b"{", b"[]", b"null", b"\xff\xfe{", b"[" * 200_000, b'{"format": ' + b"9" * 5000 + b"}"),
    *(b'{"format": 1180591620717411303424}', b'{"format": 2, "files": [1]}', b'{"format": NaN}'),
    *(b'{"format": 2, "files": {"../secret.bin": "0"}}', b'{"format": 2}', b'{"format": "2"}'),
    *(lambda made: b"\xef\xbb\xbf" + made, lambda made: made.decode().encode("utf-16")),
    *(lambda made: made + b"\0", lambda made: made[:-9], lambda made: made + b" " * 17_000_000),
    lambda made: made.replace(b'"stage2/cat', b'"stage2/../stage2/cat'),
)
_ODD_FILES = (
    None,
    "/",
    "",
    f"../{SECRET}",
    f"../../{SECRET}",
    "/dev/zero",
    "/proc/self/mem",
    "cat.onnx",
)
FOLDER_ATTACKS = {
    "bundle.json": _file("bundle.json", *_TEXTS),
    "bundle.json again": _file("bundle.json", *_TEXTS),
    "bundle.json and again": _file("bundle.json", *_TEXTS),
    "no bundle.json": _file("bundle.json", *_ODD_FILES),
    "a card": _file("stage2/cat.json", *_TEXTS),
    "no card": _file("stage2/cat.json", *_ODD_FILES),
    "no model": _file("stage2/cat.onnx", *_ODD_FILES),
    "no stage 1": _file("stage1.onnx", *_ODD_FILES),
    "an added model": _file("stage2/dog.onnx", b"x", *_ODD_FILES),
    "an added folder": _file("stage2/cat", *_ODD_FILES[:-1]),
}
