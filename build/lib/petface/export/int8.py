"""8-bit networks by ONNX Runtime's static quantisation, as it comes."""

from __future__ import annotations

import logging
import tempfile
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import onnx
from onnx import ModelProto
from torch import Tensor

from petface.inference.onnx_models import INPUT, as_image

# The linear heads stay in float: they cost nothing, and close classes tie less.
_QUANTISED = ("Conv", "Add", "MaxPool", "Relu", "Clip")
_ROWS = 16  # photos at once


def quantise(network: ModelProto, pixels: Tensor) -> ModelProto:
    """Quantise a network; training photos (N, S, S, 3) uint8 show the range of each tensor.

    Input and outputs stay float32. The graph says by QuantizeLinear and DequantizeLinear where it
    rounds, which other runtimes understand too.
    """
    tools = import_module("onnxruntime.quantization")
    shapes = import_module("onnxruntime.quantization.shape_inference")
    batches = ({INPUT: as_image(part)} for part in pixels.split(_ROWS))
    log_level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the quantiser logs about steps that are taken here
    try:
        with tempfile.TemporaryDirectory() as folder:
            whole, ready, small = (Path(folder, f"{n}.onnx") for n in ("whole", "ready", "small"))
            onnx.save(network, whole)
            shapes.quant_pre_process(whole, ready)
            tools.quantize_static(
                ready,
                small,
                SimpleNamespace(get_next=lambda: next(batches, None)),
                op_types_to_quantize=list(_QUANTISED),
                per_channel=True,
                # 7 bits for weights: processors without VNNI add two products in 16 bits, which
                # would overflow with 8.
                reduce_range=True,
                activation_type=tools.QuantType.QUInt8,
                weight_type=tools.QuantType.QInt8,
            )
            return onnx.load(small)
    finally:
        logging.disable(log_level)
