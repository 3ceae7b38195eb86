"""Whether an ONNX file is one that an export writes; looked at whole before any runtime opens it.

A runtime opens other files that a model names, in a dozen places of the format, and computes
whatever sizes it declares. So nothing is searched for: each message, operator, type and size must
be one of the few that an export makes use of.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

# All operators that an export writes, in float32 or int8; a file with others is not loaded.
OPERATORS: Final = frozenset(
    (
        *("Add", "Clip", "Concat", "Constant", "Conv", "Div", "Flatten", "Gemm", "HardSigmoid"),
        *("GlobalAveragePool", "HardSwish", "Identity", "MatMul", "MaxPool", "Mul", "ReduceMean"),
        *("Relu", "Reshape", "Sigmoid", "Sub", "QuantizeLinear", "DequantizeLinear"),
        *("ReduceMax", "ReduceL2", "BatchNormalization"),
    )
)
PIXELS: Final = 8 * 224 * 224  # at once on a CPU: what passes between layers stays in the cache
MAX_NODES: Final = 20_000
MAX_VALUES_PER_PIXEL: Final = 48  # of what one operator gives; the widest of ours give 24
_FEW_VALUES = 2**20  # may be had whatever the pixels are, as classes
_MAX_STEP = 16  # of kernels, strides, edges; the largest of ours is 7
_MESSAGES = {
    *("ModelProto", "GraphProto", "NodeProto", "AttributeProto", "TensorProto", "TypeProto"),
    *("Tensor", "ValueInfoProto", "TensorShapeProto", "Dimension"),
    *("StringStringEntryProto", "OperatorSetIdProto"),
}
_BYTES = {1: 4, 2: 1, 3: 1, 6: 4, 7: 8}  # float32, uint8, int8, int32, int64: of one value


def foreign_part(
    onnx: Any, model: Any, image: str, size_px: int, heads: Mapping[str, Sequence[str]]
) -> str:
    """Return what a `ModelProto` holds that no export writes; "" where there is nothing.

    `image` is its one input, (B, 3, size_px, size_px); `heads` are its outputs, with their classes.
    """
    graph = model.graph
    if len(graph.node) > MAX_NODES:
        return f"has {len(graph.node):,} operators"
    names = {node.op_type if node.domain in ("", "ai.onnx") else node.domain for node in graph.node}
    if others := sorted(names - OPERATORS):
        return f"has operators that no export writes: {', '.join(others)}"
    if [entry.domain for entry in model.opset_import] not in ([""], ["ai.onnx"]):
        return "needs operators of other makers"
    for message in _all_messages(model):
        kind = message.DESCRIPTOR.name
        if kind not in _MESSAGES or (kind == "GraphProto" and message is not graph):
            return f"has what no export writes: {kind}"
        if kind == "TensorProto" and (what := _odd_tensor(message)):
            return f"{what} ({message.name:.60})"
        if kind == "AttributeProto":
            steps = [abs(number) for number in (*message.ints, message.i)]
            if max(steps) > (2**14 if message.name == "group" else _MAX_STEP):
                return f"has an operator whose {message.name:.60} is {max(steps)}"
    size = model.ByteSize()
    model.DiscardUnknownFields()
    if model.ByteSize() != size:
        return "has fields that no export writes"
    return _odd_sizes(onnx, model, image, size_px, heads)


def _all_messages(message: Any) -> Iterator[Any]:
    """Yield a message and all within it, but do not look into those that are refused anyway."""
    yield message
    if message.DESCRIPTOR.name in _MESSAGES:
        for field, value in message.ListFields():
            if field.type == field.TYPE_MESSAGE:
                one = hasattr(value, "DESCRIPTOR")
                for part in [value] if one else value:
                    yield from _all_messages(part)


def _odd_tensor(tensor: Any) -> str:
    """Return why a tensor is not plain values that lie in it."""
    if tensor.external_data or tensor.data_location:
        return "keeps weights in a second file"
    if tensor.data_type not in _BYTES or tensor.HasField("segment"):
        return f"has weights of type {tensor.data_type}"
    typed = (tensor.float_data, tensor.int32_data, tensor.int64_data)
    num = len(tensor.raw_data) / _BYTES[tensor.data_type] or max(map(len, typed))
    if min(tensor.dims, default=0) < 0 or math.prod(tensor.dims) != num:
        return f"has weights that declare {list(tensor.dims)}, not what is there"
    return ""


def _odd_sizes(
    onnx: Any, model: Any, image: str, size_px: int, heads: Mapping[str, Sequence[str]]
) -> str:
    """Work out the shape of everything it computes, for a batch; return which is not as it must."""
    make, rows = onnx.helper.make_tensor_value_info, rows_at_once(size_px)
    empty, graph = onnx.ModelProto(), model.graph
    empty.ir_version, _ = model.ir_version, empty.opset_import.extend(model.opset_import)
    inputs = [entry.name for entry in graph.input]
    if inputs != [image] or [entry.name for entry in graph.output] != list(heads):
        return f"takes {', '.join(inputs):.60} and does not answer the heads of its card alone"
    empty.graph.name, _ = "sizes", empty.graph.node.extend(graph.node)
    empty.graph.input.append(make(image, 1, [rows, 3, size_px, size_px]))
    for tensor in graph.initializer:  # of shapes the values matter, of weights their shapes alone
        if tensor.data_type == 7:
            empty.graph.initializer.append(tensor)
        else:
            empty.graph.input.append(make(tensor.name, tensor.data_type, list(tensor.dims)))
    try:
        known = onnx.shape_inference.infer_shapes(empty, strict_mode=True, data_prop=True)
    except Exception as error:  # of onnx' own types
        return f"makes no sense: {error}"
    shapes = {
        entry.name: [d.dim_value if d.HasField("dim_value") else -1 for d in _dims(entry)]
        for entry in known.graph.value_info
    }
    limit = max(_FEW_VALUES, MAX_VALUES_PER_PIXEL * size_px**2 * rows)
    for name in (name for node in graph.node for name in node.output if name):
        shape = shapes.get(name, [-1])
        if min(shape, default=0) < 0 or math.prod(shape) > limit:
            return f"computes something of unknown or huge size ({name:.60}: {shape})"
    for entry in graph.output:
        wanted = [rows, len(heads[entry.name])]
        if shapes[entry.name] != wanted or entry.type.tensor_type.elem_type != 1:
            return f"answers {entry.name} with {shapes[entry.name]}, not {wanted}"
    own = [(d.dim_value, d.dim_param) for d in _dims(graph.input[0])][1:]
    if own != [(3, ""), (size_px, ""), (size_px, "")]:
        return f"takes another image than (3, {size_px}, {size_px})"
    return ""


def rows_at_once(size_px: int) -> int:
    """Return how many images are computed together on a CPU."""
    return max(1, PIXELS // size_px**2)


def _dims(entry: Any) -> Any:
    return entry.type.tensor_type.shape.dim
