"""8-bit networks by ONNX Runtime's static quantisation, and what keeps their answers.

Weights are whole numbers of 7 bits per output channel, activations of 8 bits per tensor, with the
range that training photos show. Weights of 8 bits are twice as exact, but processors without VNNI
add two products in 16 bits, which overflow: 7 bits are safe everywhere. The linear heads stay in
float, they cost nothing. What rounding the weights adds to a layer's output on average is taken
out of its bias again (Nagel et al. 2019, arXiv 1906.04721, section 4.2). Measured on specialists of
the made-up data: that takes a third off the error of the logits, float heads another tenth;
percentile ranges, and equal ranges across layers (section 4.1), gave nothing; nor did layers in
float, save the first ones of a MobileNet.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, numpy_helper
from torch import Tensor

from petface.data.images import Preprocessing, normalise, to_float
from petface.export.graphs import IMAGE
from petface.inference.onnx_models import session_of

_KINDS = ("Conv", "Add", "MaxPool", "Relu", "Clip")  # else floats would lie between convolutions
_ROWS = 16  # photos at once

Judge = Callable[[ModelProto], float]  # least share, over the heads, of the answers of float


@dataclass(frozen=True, eq=False)
class Quantised:
    """A quantised network, the convolutions of it that stayed in float, and the judge's share."""

    network: ModelProto
    float_layers: tuple[str, ...]
    share: float


def quantise(
    network: ModelProto,
    rule: Preprocessing,
    pixels: Tensor,
    judge: Judge,
    *,
    wanted: float,
    max_float_layers: int,
    reduce_range: bool = True,
) -> Quantised:
    """Quantise a network by training photos (N, S, S, 3) uint8; leave layers in float where needed.

    While `judge`, on training photos, gives less than `wanted`, the first 1, 2, 4 ... convolutions
    are left in float, `max_float_layers` at most: they move the logits most. Not chosen by the best
    share, which is chance among so few photos: the more stay in float, the smaller the error is.
    """
    with tempfile.TemporaryDirectory() as folder, _quiet():
        work = _Work(network, rule, pixels, reduce_range, Path(folder))
        number = 0
        while True:
            left = tuple(node.name for node in work.convolutions[:number])
            made = work.corrected(left)
            found = Quantised(made, left, judge(made))
            number = max(1, 2 * number)
            if found.share >= wanted or number > max_float_layers:
                return found


class _Work:
    """One network that is quantised several times; the ranges of its tensors are measured once."""

    def __init__(
        self,
        network: ModelProto,
        rule: Preprocessing,
        pixels: Tensor,
        reduce_range: bool,
        folder: Path,
    ) -> None:
        tools = import_module("onnxruntime.quantization.shape_inference")

        self.rule, self.pixels, self.reduce_range, self.folder = rule, pixels, reduce_range, folder
        onnx.save(network, folder / "whole.onnx")
        tools.quant_pre_process(folder / "whole.onnx", folder / "ready.onnx")
        self.ready = _with_biases(onnx.load(folder / "ready.onnx"))
        self.convolutions = [node for node in self.ready.graph.node if node.op_type == "Conv"]
        self.means = self._means()

    def corrected(self, float_layers: Sequence[str]) -> ModelProto:
        """Quantise all but some convolutions, with biases that make up for rounded weights."""
        rounded = self._quantised(self.ready, float_layers)
        moved = ModelProto()
        moved.CopyFrom(self.ready)
        weights, stored = _initializers(moved), _initializers(rounded)
        for node in self.convolutions:
            _, weight, bias = node.input
            if node.name in float_layers or f"{weight}_quantized" not in stored:
                continue
            exact, whole, scale = (
                numpy_helper.to_array(tensor)
                for tensor in (
                    weights[weight], stored[f"{weight}_quantized"], stored[f"{weight}_scale"],
                )
            )  # fmt: skip
            lost = exact - whole * scale.reshape(-1, 1, 1, 1)  # (O, I / groups, h, w)
            seen = self.means[node.name].reshape(-1, *lost.shape[1:])  # (groups, I / groups, h, w)
            seen = seen.repeat(len(lost) // len(seen), axis=0)
            new = numpy_helper.to_array(weights[bias]) + (lost * seen).sum(axis=(1, 2, 3))
            weights[bias].CopyFrom(numpy_helper.from_array(new.astype(np.float32), bias))
        return self._quantised(moved, float_layers)

    def _quantised(self, network: ModelProto, float_layers: Sequence[str]) -> ModelProto:
        tools = import_module("onnxruntime.quantization")
        # The quantiser drops a Relu where rounding clips; beside a layer in float nothing does.
        edges = {
            edge
            for node in self.convolutions
            if node.name in float_layers
            for edge in (node.input[0], node.output[0])
        }
        beside = [
            node.name
            for node in network.graph.node
            if node.op_type in ("Relu", "Clip") and edges & {node.input[0], node.output[0]}
        ]
        onnx.save(network, self.folder / "in.onnx")
        tools.quantize_static(
            self.folder / "in.onnx",
            self.folder / "out.onnx",
            _Reader(self._batches(self.pixels)),
            calibration_cache_path=self.folder / "ranges.json",
            quant_format=tools.QuantFormat.QDQ,
            op_types_to_quantize=list(_KINDS),
            nodes_to_exclude=[*float_layers, *beside],
            per_channel=True,
            reduce_range=self.reduce_range,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
        )
        return onnx.load(self.folder / "out.onnx")

    def _means(self) -> dict[str, np.ndarray]:
        """Average what each weight of a convolution meets, padding included: (I, h, w) by name."""
        names = sorted({node.input[0] for node in self.convolutions} - {IMAGE})
        model = ModelProto()
        model.CopyFrom(self.ready)
        model.graph.output.extend(map(onnx.helper.make_empty_tensor_value_info, names))
        session = session_of(model.SerializeToString())
        sums: dict[str, Any] = dict.fromkeys((node.name for node in self.convolutions), 0.0)
        for batch in self._batches(self.pixels):
            found = dict(zip(names, session.run(names, batch), strict=True)) | batch
            for node in self.convolutions:
                sums[node.name] += _met(node, found[node.input[0]])
        return {name: total / len(self.pixels) for name, total in sums.items()}

    def _batches(self, pixels: Tensor) -> Iterator[dict[str, np.ndarray]]:
        for part in pixels.split(_ROWS):
            x = to_float(part.permute(0, 3, 1, 2).contiguous())
            yield {IMAGE: normalise(x, self.rule.mean, self.rule.std).numpy()}


def _met(convolution: Any, x: np.ndarray) -> np.ndarray:
    """Average what each weight meets of (B, I, H, W) over places; sum over photos: (I, h, w)."""
    how = {a.name: onnx.helper.get_attribute_value(a) for a in convolution.attribute}
    (height, width), (down, across) = how["kernel_shape"], how["strides"]
    top, left, bottom, right = how["pads"]
    assert set(how["dilations"]) == {1}, "no network here has holes between its weights"
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    last_row, last_column = x.shape[2] - height + 1, x.shape[3] - width + 1
    met = [
        x[:, :, i : i + last_row : down, j : j + last_column : across].mean(axis=(2, 3)).sum(axis=0)
        for i in range(height)
        for j in range(width)
    ]
    return np.stack(met, axis=1).reshape(-1, height, width).astype(np.float64)


class _Reader:
    """Batches as ONNX Runtime asks for them; its own base class would need it at import."""

    def __init__(self, batches: Iterator[dict[str, np.ndarray]]) -> None:
        self._batches = batches

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def _with_biases(model: ModelProto) -> ModelProto:
    """Give each convolution a bias to correct: the exporter drops those that are all zero."""
    weights = _initializers(model)
    for number, node in enumerate(model.graph.node):
        if node.op_type == "Conv" and len(node.input) == 2:
            zeros = np.zeros(weights[node.input[1]].dims[0], np.float32)
            node.input.append(f"zero_bias_{number}")
            model.graph.initializer.append(numpy_helper.from_array(zeros, node.input[2]))
    return model


def _initializers(model: ModelProto) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what the quantiser logs, about steps that are taken here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with torch.inference_mode():
            yield
    finally:
        logging.disable(before)
