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
from pathlib import Path
from typing import Any

import torch

from petface.inference import onnx_models
from tests.conftest import make_tree
from tests.made_bundle import dataset_of, write_checkpoints
from tests.torture.fuzz import FOLDER, ODD_FILES, Content, Files, Fuzzer, damaged, judge_reading

SECRET = "../../secret.bin"  # beside the bundle; from where its specialist lies
_HUGE = 2**62
Attack = Callable[[Any, random.Random], None]


def bundle_fuzzer(place: Path) -> Fuzzer:
    """Change the specialist of a bundle, or its tables, and seal it; what is read is asked."""
    import onnx

    whole = place / "whole"
    if not whole.exists():
        _make(place)
    content = (whole / "stage2/cat.onnx").read_bytes()
    card = json.loads((whole / "stage2/cat.json").read_text())
    side_px = card["preprocessing"]["size_px"]
    attacks = _model_attacks(onnx)
    attacks |= {f"outside {n}": _outside for n in range(20)}
    attacks |= {f"structure {n}": _change_structure for n in range(40)}

    def draw_file(number: int, draw: random.Random) -> tuple[str, Files]:
        kinds = [*attacks, *CARD_ATTACKS, *FILE_ATTACKS, "bytes", "weights"]
        kind, table = kinds[number % len(kinds)], json.loads(json.dumps(card))
        own = onnx.ModelProto.FromString(content)
        if kind in attacks:
            attacks[kind](own, draw)
        elif kind in CARD_ATTACKS:  # the model says the same
            *path, last = CARD_ATTACKS[kind]
            changed = table
            for name in path:
                changed = changed[name]
            odd = (None, -1, 2**70, 1e308, "x" * 10_000, [], {}, [[[]]], True, SECRET)
            changed[last] = draw.choice(odd)
            for entry in own.metadata_props:
                entry.value = json.dumps(table.get(entry.key))
        made = own.SerializeToString()
        if kind == "bytes":
            made = damaged(made, draw)
        elif kind == "weights":
            made = damaged(made, draw, len(made) // 4, len(made) // 2)
        files = _sealed(whole, table, made)
        if kind in FILE_ATTACKS:
            name, contents = FILE_ATTACKS[kind]
            before, new = files.pop(name, None), draw.choice(contents)
            if new != "":
                files[name] = new(before) if callable(new) else new
        return kind, files

    def read(folder: Path) -> None:
        for species in (None, "cat"):
            if path := onnx_models.find(folder, species):
                found = onnx_models.read(path, species)
                network = onnx_models.OnnxNetwork(found.content, found, "cpu", str(path))
                answers = network.answer_pixels(torch.zeros(2, side_px, side_px, 3).byte())
                sizes = [len(names) for names in found.heads.values()]
                assert [head.shape[1] for head in answers] == sizes, "other heads"

    # beyond what the process had; a network of 45 MB is read
    return Fuzzer(draw_file, lambda made: judge_reading(place / "bundle", made, read), 900_000_000)


def _make(place: Path) -> None:
    """Export a bundle, and lay a pipe beside it: who opens that waits for ever."""
    from petface.export.bundle import write_bundle
    from petface.export.model import ExportOptions

    stage1, stage2 = write_checkpoints(place / "runs")
    dataset, cat = dataset_of(make_tree(place / "tree")), {"cat": stage2 / "cat" / "cat_best.pt"}
    os.mkfifo(place / "secret.bin")
    with contextlib.redirect_stdout(io.StringIO()):
        write_bundle(place / "whole", stage1, cat, dataset, ExportOptions())


def _sealed(whole: Path, card: Any, content: bytes) -> dict[str, Content]:
    """Return the files of a bundle whose checksums all fit."""
    card = json.dumps({**card, "sha256": hashlib.sha256(content).hexdigest()}).encode()
    listed = json.loads((whole / "bundle.json").read_text())
    files: dict[str, Content] = {name: whole / name for name in listed["files"]}
    for name, made in (("stage2/cat.onnx", content), ("stage2/cat.json", card)):
        files[name], listed["files"][name] = made, hashlib.sha256(made).hexdigest()
    return {**files, "bundle.json": json.dumps(listed).encode()}


def _change_structure(model: Any, draw: random.Random) -> None:
    """Give a field of any message of a model another value, or make one that is not there."""
    for _ in range(draw.randrange(1, 4)):
        messages = [model]
        for message in messages:  # which grows
            for field, value in message.ListFields():
                if field.type == field.TYPE_MESSAGE:
                    messages += [value] if hasattr(value, "DESCRIPTOR") else list(value)[:40]
        kind = draw.choice(sorted({type(m).__name__ for m in messages}))
        message = draw.choice([m for m in messages if type(m).__name__ == kind])
        for _ in range(3):  # into what is made now
            field = draw.choice(message.DESCRIPTOR.fields)
            value = getattr(message, field.name)
            if field.type != field.TYPE_MESSAGE:
                break
            message = value.add() if hasattr(value, "add") else value
            message.SetInParent()
        else:
            continue
        new = draw.choice((0, -1, 1, 7, 8, 16, 99, 2**31 - 1, 2**40, _HUGE, 1e300))
        if field.type in (field.TYPE_STRING, field.TYPE_BYTES):
            new = draw.choice(("", SECRET, "Loop", "ReadFile", "a\nb", "9" * 5000, "EXTERNAL"))
        with contextlib.suppress(TypeError, ValueError):
            new = new.encode() if field.type == field.TYPE_BYTES else new
            value.append(new) if hasattr(value, "append") else setattr(message, field.name, new)


def _outside(model: Any, draw: random.Random) -> None:
    """Put a tensor whose data lies in another file into any place that the format has for one."""
    ways = {"ModelProto", "GraphProto", "NodeProto", "AttributeProto", "SparseTensorProto",
            "FunctionProto", "TrainingInfoProto", "TensorProto"}  # fmt: skip
    message = model
    while type(message).__name__ != "TensorProto":
        fields = [f for f in message.DESCRIPTOR.fields if f.message_type]
        field = draw.choice([f for f in fields if f.message_type.name in ways])
        value = getattr(message, field.name)
        if not hasattr(value, "add"):
            message = value
        else:
            message = draw.choice(value) if value and draw.random() < 0.5 else value.add()
        message.SetInParent()
    message.ClearField("raw_data")
    message.data_location = message.EXTERNAL
    for key, value in (("location", SECRET), ("offset", "0"), ("length", "64")):
        message.external_data.add(key=key, value=value)


def _model_attacks(onnx: Any) -> dict[str, Attack]:
    """Ways to change a `ModelProto`, by name, beside those of any field and any tensor."""
    helper, int64 = onnx.helper, onnx.TensorProto.INT64

    def weight(model: Any, draw: random.Random) -> Any:
        return draw.choice([t for t in model.graph.initializer if t.data_type == 1])

    def node(model: Any, kind: str, inputs: list[str], output: str, **more: Any) -> None:
        model.graph.node.append(helper.make_node(kind, inputs, [output], **more))

    def deep(model: Any, draw: random.Random) -> None:
        graph = model.graph
        for _level in range(60):
            graph = graph.node.add(op_type="If").attribute.add(name="then_branch", type=5).g
        _outside(model, draw)

    def product(model: Any, draw: random.Random) -> None:
        for name, dims in (("one", [2**16, 1]), ("other", [1, 2**16])):
            made = helper.make_tensor(name, 1, dims, bytes(4 * 2**16), raw=True)
            model.graph.initializer.append(made)
        node(model, draw.choice(["Mul", "MatMul", "Add"]), ["one", "other"], "x")

    def expanded(model: Any, draw: random.Random) -> None:
        shape = helper.make_tensor("shape", int64, [2], [draw.choice([2**20, 2**40]), 2**20])
        model.graph.initializer.append(shape)
        kind = draw.choice(["Expand", "ConstantOfShape", "Reshape"])
        node(model, kind, ["image", "shape"], "x")

    def pads(model: Any, draw: random.Random) -> None:
        conv = draw.choice([n for n in model.graph.node if n.op_type == "Conv"])
        found = next((a for a in conv.attribute if a.name == "pads"), None)
        found = found or conv.attribute.add(name="pads", type=7)
        found.ints[:] = [draw.choice([2**20, 2**40, -5])] * 4

    def operator(model: Any, draw: random.Random) -> None:
        names = ("ReadFile", "Loop", "Optional", "SequenceAt", "StringSplit", "RandomNormal")
        draw.choice(model.graph.node).op_type = draw.choice(names)

    def domain(model: Any, draw: random.Random) -> None:
        draw.choice(model.graph.node).domain = draw.choice(["com.microsoft", "evil", "ai.onnx.ml"])

    def dims(model: Any, draw: random.Random) -> None:
        weight(model, draw).dims[0] = draw.choice([_HUGE, -1, 0, 2**40])

    def output(model: Any, draw: random.Random) -> None:
        entry = helper.make_tensor_value_info(weight(model, draw).name, 1, None)
        model.graph.output.append(entry)

    def many(model: Any, _: random.Random) -> None:
        for number in range(25_000):
            node(model, "Relu", ["image" if not number else f"r{number - 1}"], f"r{number}")

    def doubled(model: Any, _: random.Random) -> None:
        for number in range(60):
            before = "image" if not number else f"d{number - 1}"
            node(model, "Concat", [before, before], f"d{number}", axis=1)

    def circle(model: Any, draw: random.Random) -> None:
        last, first = model.graph.node[-1], model.graph.node[0]
        first.input[0] = draw.choice([last.output[0], "nowhere"])

    def metadata(model: Any, draw: random.Random) -> None:
        entry = draw.choice(model.metadata_props)
        entry.value = draw.choice(["", "[" * 100_000, "NaN", "1" * 5000, '{"a": 1}'])

    ways = (deep, product, expanded, pads, operator, domain, dims, output, many, doubled, circle)
    return {way.__name__: way for way in (*ways, metadata)}


CARD_ATTACKS = {  # fields that get nonsense
    words: words.split()
    for words in (
        *("heads", "heads breed", "sources", "preprocessing", "calibration", "species", "data"),
        *("preprocessing size_px", "preprocessing mean", "calibration breed", "precision"),
        *("format", "inputs", "outputs"),
    )
}
_TEXTS = (
    *(b"", b"{", b"[]", b"null", b"\xff\xfe{", b"[" * 200_000, b'{"format": ' + b"9" * 5000 + b"}"),
    *(b'{"format": 1180591620717411303424}', b'{"format": 2, "files": [1]}', b'{"format": NaN}'),
    *(b'{"format": 2, "files": {"../secret.bin": "0"}}', b'{"format": 2}', b'{"format": "2"}'),
    *(lambda made: b"\xef\xbb\xbf" + made, lambda made: made.decode().encode("utf-16")),
    *(lambda made: made + b"\0", lambda made: made[:-9], lambda made: made + b" " * 17_000_000),
    lambda made: made.replace(b'"stage2/cat', b'"stage2/../stage2/cat'),
)
_ODD: tuple[Any, ...] = ("", SECRET, *ODD_FILES)  # "": nothing
FILE_ATTACKS: dict[str, tuple[str, tuple[Any, ...]]] = {  # what stands in the place of a file
    **{f"bundle.json {n}": ("bundle.json", _TEXTS) for n in range(3)},
    "no bundle.json": ("bundle.json", _ODD),
    "a card": ("stage2/cat.json", _TEXTS),
    "no card": ("stage2/cat.json", _ODD),
    "no model": ("stage2/cat.onnx", _ODD),
    "no stage 1": ("stage1.onnx", _ODD),
    "an added model": ("stage2/dog.onnx", (b"x", *_ODD)),
    "an added folder": ("stage2/cat", (FOLDER, SECRET, "")),
}
