"""A stranger's bundles: exported models that are changed and sealed again with right checksums.

What opens files, never ends or takes all memory is refused before a runtime sees it; what only has
other weights is read, as a stranger's own network would be.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from petface.inference import onnx_models
from petface.models.checkpoints import CheckpointError
from tests.conftest import make_tree
from tests.made_bundle import dataset_of, write_checkpoints
from tests.torture.fuzz import Fuzzer, damaged, fuzz_apart
from tests.torture.outcome import Outcome, begin_peak, peak_bytes

CEILING_BYTES = 900_000_000  # beyond what the process had; a network of 45 MB is read
SECRET = b"what a stranger wants to read"
_HUGE = 2**62


def torture_bundles(num_files: int, seed: int, place: Path) -> Outcome:
    """Read strangers' bundles in processes of their own, and ask those that are read."""
    from petface.export.bundle import write_bundle
    from petface.export.model import ExportOptions

    stage1, stage2 = write_checkpoints(place / "runs")
    cat = {"cat": stage2 / "cat" / "cat_best.pt"}
    dataset = dataset_of(make_tree(place / "tree"))
    with contextlib.redirect_stdout(io.StringIO()):
        write_bundle(place / "whole", stage1, cat, dataset, ExportOptions())
    (place / "secret.bin").write_bytes(SECRET * 1000)
    outcome, fuzzer = Outcome("bundles", "strangers' bundles"), f"{__name__}:bundle_fuzzer"
    done = fuzz_apart(outcome, fuzzer, str(place), num_files, seed, 60.0, 12 * 10**9)
    if (place / "secret.bin").read_bytes() != SECRET * 1000:
        done.failures.append("a file beside the bundle was changed")
    return done


def bundle_fuzzer(folder: str) -> Fuzzer:
    """Change the specialist of a bundle, or its tables, and seal it."""
    import onnx

    place, whole = Path(folder), Path(folder) / "whole"
    model = onnx.ModelProto.FromString((whole / "stage2/cat.onnx").read_bytes())
    card = json.loads((whole / "stage2/cat.json").read_text())
    attacks = model_attacks(onnx, place / "secret.bin")
    pixels = torch.zeros(2, card["preprocessing"]["size_px"], card["preprocessing"]["size_px"], 3)

    def draw_file(number: int, draw: random.Random) -> tuple[str, bytes]:
        kinds = [*attacks, *CARD_ATTACKS, "bytes", "weights"]
        kind, own, table = (
            kinds[number % len(kinds)],
            onnx.ModelProto(),
            json.loads(json.dumps(card)),
        )
        own.CopyFrom(model)
        if kind in attacks:
            attacks[kind](own, draw)
        elif kind in CARD_ATTACKS:
            CARD_ATTACKS[kind](table, draw)
        content = own.SerializeToString()
        if kind == "bytes":
            content = damaged(content, draw)
        elif kind == "weights":
            content = damaged(content, draw, len(content) // 4, len(content) // 2)
        return kind, json.dumps(table).encode() + b"\0" + content

    def judge(data: bytes) -> tuple[str, str]:
        text, _, content = data.partition(b"\0")
        bundle = seal(whole, place / "bundle", text, content)
        before = begin_peak()
        try:
            found = onnx_models.read(bundle / "stage2/cat.onnx", "cat")
            network = onnx_models.OnnxNetwork(found.content, found)
            answers = network.answer_pixels(pixels.byte())
        except CheckpointError as error:
            is_plain = (
                "\n" not in str(error) and str(bundle) in str(error) and len(str(error)) < 900
            )
            return ("refused", "") if is_plain else ("wrong", f"says {str(error)[:300]!r}")
        except BaseException as error:
            return "wrong", f"{type(error).__name__}: {str(error)[:300]}"
        if (taken := peak_bytes() - before) > CEILING_BYTES:
            return "wrong", f"took {taken / 1e6:.0f} MB"
        sizes = [len(names) for names in found.heads.values()]
        return "read", "" if [a.shape[1] for a in answers] == sizes else "other heads"

    def judged(data: bytes) -> tuple[str, str]:
        result, fault = judge(data)
        return (result, fault) if fault or SECRET not in data else ("wrong", "read the secret")

    return Fuzzer(draw_file, judged)


def seal(whole: Path, bundle: Path, card: bytes, content: bytes) -> Path:
    """Write a bundle whose checksums all fit."""
    shutil.rmtree(bundle, ignore_errors=True)
    shutil.copytree(whole, bundle)
    with contextlib.suppress(ValueError):
        table = json.loads(card)
        if isinstance(table, dict):
            card = json.dumps({**table, "sha256": hashlib.sha256(content).hexdigest()}).encode()
    (bundle / "stage2/cat.onnx").write_bytes(content)
    (bundle / "stage2/cat.json").write_bytes(card)
    listed = json.loads((bundle / "bundle.json").read_text())
    for name in listed["files"]:
        listed["files"][name] = hashlib.sha256((bundle / name).read_bytes()).hexdigest()
    (bundle / "bundle.json").write_text(json.dumps(listed))
    return bundle


def model_attacks(onnx: Any, secret: Path) -> dict[str, Callable[[Any, random.Random], None]]:
    """Ways to change a `ModelProto`, by name."""
    helper, proto = onnx.helper, onnx.TensorProto

    def outside(tensor: Any) -> Any:
        tensor.ClearField("raw_data")
        tensor.data_location = proto.EXTERNAL
        for key, value in (("location", f"../../{secret.name}"), ("offset", "0"), ("length", "64")):
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

    def function(model: Any, _: random.Random) -> None:
        model.functions.append(helper.make_function("evil", "F", [], [], [], []))
        node(model, "F", [], ["more"], domain="evil")

    def training(model: Any, _: random.Random) -> None:
        model.training_info.add().algorithm.initializer.append(outside(new()))

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
        versions,
    )
    return {way.__name__: way for way in ways}


def _field(*names: str) -> Callable[[Any, random.Random], None]:
    """Put nonsense into a field of a card."""
    values = (None, -1, 2**70, 1e308, "x" * 10_000, [], {}, [[[]]], True, "../../secret.bin")

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
