"""The graph of a model: its network by torch's exporter, preprocessing in front, guard behind.

Three ONNX models that `joined` makes one: pixels (B, H, W, 3) uint8 -> `IMAGE` (B, 3, S, S)
float32 -> logits per head and, for a guard, `MEANS` (B, D) float32 -> `GUARD_SCORE` (B,) float64.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto
from torch import Tensor, nn

from petface.data.images import Preprocessing
from petface.inference.onnx_models import GUARD_SCORE
from petface.models import architecture, backbones
from petface.models.familiarity import Guard

OPSET = 18  # the first with antialiased Resize
PIXELS, IMAGE, MEANS = "pixels", "image", "stage_means"
_IR_VERSION = 10
_MAX_ASPECT = 32  # a longer strip is cut before it is resized, else it would take gigabytes

# Pillow's weights: outside of the image nothing counts, instead of the border again and again.
_RESIZE = """
    three = Constant <value_ints = [3]> ()
    batch = Shape <start = 0, end = 1> (pixels)
    wanted = Concat <axis = 0> (batch, inner, three)
    resized = Resize <mode = "linear", antialias = 1, exclude_outside = 1,
                      coordinate_transformation_mode = "half_pixel"> (source, , , wanted)
"""
# The same arithmetic as in `images.resize`, in float64 and whole numbers.
_RULES = {
    "stretch": f"""
    source = Identity (pixels)
    inner = Concat <axis = 0> (size, size)
    {_RESIZE}
    square = Identity (resized)
""",
    "center_crop": f"""
    sides = Shape <start = 1, end = 3> (pixels)
    short = ReduceMin <keepdims = 1> (sides)
    longest = Mul (short, max_aspect)
    kept = Min (sides, longest)
    cut = Sub (sides, kept)
    first = Div (cut, two)
    last = Add (first, kept)
    source = Slice (pixels, first, last, axes)
    long = Mul (size, kept)
    inner = Div (long, short)
    {_RESIZE}
    room = Sub (inner, size)
    exact_room = Cast <to = 11> (room)
    half_room = Div (exact_room, exact_two)
    rounded = Round (half_room)
    begin = Cast <to = 7> (rounded)
    end = Add (begin, size)
    square = Slice (resized, begin, end, axes)
""",
    "letterbox": f"""
    source = Identity (pixels)
    sides = Shape <start = 1, end = 3> (pixels)
    exact_sides = Cast <to = 11> (sides)
    long = ReduceMax <keepdims = 1> (exact_sides)
    exact_size = Cast <to = 11> (size)
    scale = Div (exact_size, long)
    scaled = Mul (exact_sides, scale)
    rounded = Round (scaled)
    whole = Cast <to = 7> (rounded)
    inner = Max (whole, one)
    {_RESIZE}
    room = Sub (size, inner)
    before = Div (room, two)
    after = Sub (room, before)
    pads = Concat <axis = 0> (none, before, none, none, after, none)
    square = Pad (resized, pads)
""",
}
# On whole rows of 3 S numbers: by channels, the innermost three, it takes ten times as long.
_ROWS = """
    row = Constant <value_ints = [0, 0, -1]> ()
    rows = Reshape (square, row)
    grey = Cast <to = 1> (rows)
    unit = Div (grey, white)
"""
_NORMALISE = """
    centred = Sub (unit, mean)
    normal = Div (centred, spread)
"""
_PLANES = """
    pixel = Constant <value_ints = [0, 0, -1, 3]> ()
    colours = Reshape (normal, pixel)
    image = Transpose <perm = [0, 3, 1, 2]> (colours)
"""


def preprocessing_graph(rule: Preprocessing) -> ModelProto:
    """Give (B, H, W, 3) uint8 -> (B, 3, S, S) float32 as the network wants it, in one graph.

    An image of the right size passes bit for bit; others differ from `images.resize` by one grey
    level at most, by two where upscaling meets a tie.
    """
    values: dict[str, np.ndarray] = {
        "size": np.array([rule.size_px]),
        **{name: np.array([k]) for k, name in enumerate(("none", "one", "two"))},
        "axes": np.array([1, 2]),
        "max_aspect": np.array([_MAX_ASPECT]),
        "exact_two": np.array([2.0]),
        "white": np.array(255, np.float32),
    }
    normalise = "normal = Identity (unit)"
    if rule.mean is not None and rule.std is not None:
        normalise = _NORMALISE
        for name, three in (("mean", rule.mean), ("spread", rule.std)):
            values[name] = np.tile(np.array(three, np.float32), rule.size_px)
    side = rule.size_px
    body = _RULES[rule.resize] + _ROWS + normalise + _PLANES
    model = onnx.parser.parse_model(
        f"""
<ir_version: {_IR_VERSION}, opset_import: ["": {OPSET}]>
preprocessing (uint8[B, H, W, 3] pixels) => (float[B, 3, {side}, {side}] image)
{{{body}}}"""
    )
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in values.items() if name in used
    )
    return model


class _Network(nn.Module):
    """A model that gives its logits and, for a guard, its stage means."""

    def __init__(self, model: nn.Module, with_means: bool) -> None:
        super().__init__()
        self.model, self.with_means = model, with_means

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        if self.with_means:
            logits, maps = architecture.forward_with_maps(self.model, image)
            return logits, backbones.stage_means(maps)
        out = self.model(image)
        return (out,) if isinstance(out, Tensor) else tuple(out)


class _Score(nn.Module):
    """A guard as a module."""

    def __init__(self, guard: Guard) -> None:
        super().__init__()
        self.guard = guard

    def forward(self, means: Tensor) -> Tensor:
        return self.guard.score(means)


def network_graph(
    model: nn.Module, size_px: int, heads: Sequence[str], *, with_means: bool
) -> ModelProto:
    """Export a model with folded BatchNorm: `IMAGE` -> one output per head, and `MEANS`."""
    names = [*heads, *([MEANS] if with_means else [])]
    image = torch.zeros(2, 3, size_px, size_px)
    return _export(_Network(model, with_means).eval(), image, IMAGE, names)


def guard_graph(guard: Guard) -> ModelProto:
    """Export a guard: `MEANS` (B, D) float32 -> `GUARD_SCORE` (B,) float64."""
    return _export(_Score(guard).eval(), torch.zeros(2, len(guard.mean)), MEANS, [GUARD_SCORE])


def joined(first: ModelProto, second: ModelProto) -> ModelProto:
    """Connect the outputs of `first` with the inputs of `second` that have their names.

    What stays unconnected is an input or an output of the whole; a connected output is none.
    """
    parts = [_prefixed(part) for part in (first, second)]
    wanted = {entry.name for entry in second.graph.input}
    graph = onnx.helper.make_graph(
        [node for part in parts for node in part.graph.node],
        second.graph.name,
        list(first.graph.input),
        [e for e in first.graph.output if e.name not in wanted] + list(second.graph.output),
        [tensor for part in parts for tensor in part.graph.initializer],
    )
    model = onnx.helper.make_model(graph, opset_imports=first.opset_import, producer_name="petface")
    model.ir_version = _IR_VERSION
    return model


def _prefixed(model: ModelProto) -> ModelProto:
    """Give a copy whose inner names begin with the graph's, so that two graphs can be one."""
    copy = ModelProto()
    copy.CopyFrom(model)
    kept = {"", *(entry.name for entry in [*model.graph.input, *model.graph.output])}

    def renamed(name: str) -> str:
        return name if name in kept else f"{model.graph.name}/{name}"

    for number, node in enumerate(copy.graph.node):
        node.name = f"{model.graph.name}/{node.name or f'{node.op_type}_{number}'}"
        node.input[:] = [*map(renamed, node.input)]
        node.output[:] = [*map(renamed, node.output)]
    for tensor in copy.graph.initializer:
        tensor.name = renamed(tensor.name)
    return copy


def with_metadata(model: ModelProto, entries: Mapping[str, str]) -> bytes:
    """Give the bytes of a whole model with its metadata; checked by ONNX's own checker."""
    onnx.helper.set_model_props(model, dict(entries))
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def _export(module: nn.Module, example: Tensor, name: str, outputs: list[str]) -> ModelProto:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about versions of its own parts
        program: Any = torch.onnx.export(
            module,
            (example,),
            input_names=[name],
            output_names=outputs,
            dynamic_shapes=({0: torch.export.Dim("B")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    model = program.model_proto
    model.graph.name = name
    for node in model.graph.node:
        del node.metadata_props[:]  # the paths of this machine are among them
    del model.graph.value_info[:], model.graph.metadata_props[:], model.metadata_props[:]
    return model
