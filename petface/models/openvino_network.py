"""Networks computed by OpenVINO on a CPU: bfloat16, float32, or quantised to 8 bits.

Optional: `INSTALL_LINE`. What was converted or quantised is kept in a folder, one subfolder per
model, so that the next start only loads it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from petface import files
from petface.data.images import Preprocessing, normalise, to_float
from petface.devices import cpu_has_bf16
from petface.errors import SettingsError, UserError
from petface.signal_stack import kept_signal_stack

INSTALL_LINE = "python -m pip install -r requirements-openvino.txt"
_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "int8": "bf16"}  # int8: of what stays unquantised
_ROWS_PER_REQUEST = 8  # what passes between layers stays in the cache
_CARD = "card.json"

Outputs = tuple[Tensor, ...]


def choose_precision(wanted: str) -> str:
    """Resolve "auto": bf16 where the CPU computes in it, else fp32. fp16 is refused."""
    if wanted == "auto":
        return "bf16" if cpu_has_bf16() else "fp32"
    if wanted not in _PRECISIONS:
        raise SettingsError(f"ENGINE openvino has no PRECISION {wanted}; take bf16, fp32 or int8")
    return wanted


def versions(precision: str) -> dict[str, str]:
    """Give the versions of the packages that the answers depend on."""
    _import("openvino")
    names = ("openvino", "nncf") if precision == "int8" else ("openvino",)
    return {name: metadata.version(name) for name in names}


class OpenVinoNetwork:
    """A compiled model with the interface of `network.Network`; see `load_or_convert`."""

    def __init__(
        self,
        model: Any,
        preprocessing: Preprocessing,
        precision: str,
        temperatures: tuple[float, ...],
    ) -> None:
        openvino = _import("openvino")
        self.preprocessing, self.precision = preprocessing, precision
        self.temperatures = temperatures
        settings = {
            "PERFORMANCE_HINT": "THROUGHPUT",  # one stream a core or two, as it sees fit
            "INFERENCE_PRECISION_HINT": _PRECISIONS[precision] if cpu_has_bf16() else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "ENABLE_CPU_PINNING": False,  # decoding needs the cores too
        }
        with kept_signal_stack():
            compiled = openvino.Core().compile_model(model, "CPU", settings)
        self._requests = openvino.AsyncInferQueue(compiled)  # as many at once as it has streams
        self._requests.set_callback(_keep_outputs)

    def answer_pixels(self, pixels: Tensor) -> Outputs:
        """(B, size, size, 3) uint8 -> (B, K) float32 logits per head, on the CPU."""
        num_parts = -(-len(pixels) // _ROWS_PER_REQUEST)
        parts: list[list[Tensor]] = [[] for _ in range(num_parts)]
        for part, outputs in zip(pixels.tensor_split(num_parts), parts, strict=True):
            self._requests.start_async({0: part.numpy()}, outputs)
        self._requests.wait_all()
        return tuple(torch.cat(head) for head in zip(*parts, strict=True))


def _keep_outputs(request: Any, outputs: list[Tensor]) -> None:
    outputs += [torch.from_numpy(tensor.data.copy()) for tensor in request.output_tensors]


def load_or_convert(
    model: nn.Module,
    preprocessing: Preprocessing,
    temperatures: tuple[float, ...],
    *,
    precision: str,
    folder: Path,
    identity: Mapping[str, Any],
    sample: Callable[[], Tensor],
) -> tuple[OpenVinoNetwork, dict[str, Any]]:
    """Give the network of a model in evaluation mode, and the card of what is kept of it.

    `identity` (JSON values) says what the model and the sample come from; with the versions and the
    precision it names the subfolder of `folder`. `sample` gives (N, size, size, 3) uint8, training
    photos that int8 sets its scales by; it is called only for that.
    """
    openvino = _import("openvino")
    kind = "int8" if precision == "int8" else "float"
    whole = {**identity, "kind": kind, "versions": versions(precision)}
    key = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:20]
    kept = folder / key
    card = _read_card(kept)
    if card is None:
        converted = _convert(model, preprocessing)
        if kind == "int8":
            converted = _quantise(converted, sample())
        card = _keep(converted, kept, whole)
    loaded = openvino.Core().read_model(kept / "model.xml")
    return OpenVinoNetwork(loaded, preprocessing, precision, temperatures), {**card, "key": key}


def note(folder: Path, key: str, **entries: Any) -> None:
    """Add entries to the card of a kept model."""
    path = folder / key / _CARD
    card = json.loads(path.read_text(encoding="utf-8"))
    files.write_json(path, {**card, **entries})


def _read_card(kept: Path) -> dict[str, Any] | None:
    """Read the card of a kept model; None where there is none or a file of it is damaged."""
    try:
        card = json.loads((kept / _CARD).read_text(encoding="utf-8"))
        sums = {name: files.sha256_of_file(kept / name) for name in card["sha256"]}
    except (OSError, ValueError, KeyError):
        return None
    return card if sums == card["sha256"] else None


def _keep(converted: Any, kept: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """Write a model and its card into a folder that has its name only when it is whole."""
    openvino = _import("openvino")
    partial = kept.with_name(f"{kept.name}.partial-{os.getpid()}")
    try:
        for old in (partial, kept):
            shutil.rmtree(old, ignore_errors=True)
        partial.mkdir(parents=True)
        openvino.save_model(converted, partial / "model.xml", compress_to_fp16=False)
        sums = {path.name: files.sha256_of_file(path) for path in sorted(partial.iterdir())}
        card = {**identity, "sha256": sums}
        files.write_json(partial / _CARD, card)
        partial.rename(kept)
    except OSError as error:
        raise files.write_error(kept, error) from error
    return card


class _FromPixels(nn.Module):
    """A network with its preprocessing inside: (B, size, size, 3) uint8 -> logits per head."""

    def __init__(self, model: nn.Module, rule: Preprocessing) -> None:
        super().__init__()
        self.model, self.rule = model, rule

    def forward(self, pixels: Tensor) -> Outputs:
        x = to_float(pixels.permute(0, 3, 1, 2))
        out = self.model(normalise(x, self.rule.mean, self.rule.std))
        return (out,) if isinstance(out, Tensor) else tuple(out)


def _convert(model: nn.Module, rule: Preprocessing) -> Any:
    openvino = _import("openvino")
    shape = [-1, rule.size_px, rule.size_px, 3]
    example = torch.zeros((2, *shape[1:]), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about the tracing that OpenVINO chooses
        return openvino.convert_model(
            _FromPixels(model, rule).eval(), example_input=example, input=[shape]
        )


def _quantise(model: Any, sample: Tensor) -> Any:
    """Quantise weights and activations after training, by the ranges that `sample` shows."""
    nncf = _import("nncf")
    nncf.set_log_level(40)  # errors alone
    batches = [part.numpy() for part in sample.split(16)]
    return nncf.quantize(
        model,
        nncf.Dataset(batches),
        subset_size=len(batches),
        preset=nncf.QuantizationPreset.MIXED,
    )


def _import(name: str) -> Any:
    # Both packages report their use to a web service where this one can be imported.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        return __import__(name)
    except ImportError as error:
        raise UserError(f"ENGINE openvino needs {name} ({error}): {INSTALL_LINE}") from error
