"""Export one checkpoint: its graph, int8 where that keeps the answers, and what was measured."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

from onnx import ModelProto

from petface import exported, guard
from petface.dataset import Dataset
from petface.errors import UserError
from petface.export import graphs, parity
from petface.export.quantise import quantise
from petface.export.sources import Photos, Source, original_photos, read_photos
from petface.exported import Exported, OnnxNetwork, session_of
from petface.network import Network

_NUM_ORIGINALS = 32  # photos in their own size
_NUM_RATE, _ROUNDS = 32, 3  # photos a turn, turns
_PACKAGES = ("torch", "onnx", "onnxruntime", "onnxscript")


@dataclass(frozen=True)
class Wishes:
    """What is wanted of an export; the settings of tools/export.py say what each means."""

    precision: str = "fp32"
    float_variant: bool = False
    max_logit_difference: float = 1e-3
    num_parity: int = 512
    int8_agreement: float = 0.99
    force_int8: bool = False
    num_calibration: int = 256
    max_float_layers: int = 2
    reduce_range: bool = True
    pack: str = ""


@dataclass(frozen=True, eq=False)
class Written:
    """A finished model: its ONNX bytes and its card; `plain` is the variant for prepared floats."""

    content: bytes
    card: dict[str, Any]
    plain: Written | None = None


def export_model(source: Source, dataset: Dataset, wishes: Wishes) -> Written:
    """Export a checkpoint and measure it on validation photos, on training photos without any.

    `UserError` where the logits differ by more than `max_logit_difference` from torch's.
    """
    part = "val"
    photos = read_photos(dataset, wishes.pack, source, part, wishes.num_parity)
    if not len(photos.pixels):
        part = "train"
        photos = read_photos(dataset, wishes.pack, source, part, wishes.num_parity)
    if not len(photos.pixels):
        raise UserError(f"{source.path}: the dataset has no photo of {source} to measure it on")
    torch_network = Network.for_inference(source.model, source.preprocessing, "cpu", "fp32")
    ask = parity.TorchAnswers(torch_network, source.backbone, source.guard)
    network = graphs.network_graph(
        source.model,
        source.backbone,
        source.preprocessing.size_px,
        list(source.heads),
        with_means=source.guard is not None,
    )
    whole = _answering(network, source)
    measured = _parity(source, dataset, whole, ask, photos, wishes) | {"part": part}
    plain = None
    if wishes.float_variant:
        plain = _written(
            _guarded(network, source), source, "fp32", {"parity": measured}, graphs.IMAGE
        )
    what: dict[str, Any] = {"parity": measured}
    if wishes.precision == "fp32":
        return _written(_with_pixels(network, source), source, "fp32", what, plain=plain)
    small, threshold, what["int8"] = _int8(
        network, source, dataset, whole, ask, photos, wishes, part
    )
    if not what["int8"]["kept"]:
        return _written(_with_pixels(network, source), source, "fp32", what, plain=plain)
    if source.guard is not None and threshold is not None:
        source = replace(source, guard=replace(source.guard, threshold=threshold))
    return _written(_with_pixels(small, source), source, "int8", what, plain=plain)


def _guarded(network: ModelProto, source: Source) -> ModelProto:
    if source.guard is None:
        return network
    return graphs.joined(network, graphs.guard_graph(source.guard))


def _with_pixels(network: ModelProto, source: Source) -> ModelProto:
    return graphs.joined(
        graphs.preprocessing_graph(source.preprocessing), _guarded(network, source)
    )


def _answering(network: ModelProto, source: Source) -> OnnxNetwork:
    """Open a network that is not written yet, as it will be opened from its file."""
    content = _with_pixels(network, source).SerializeToString()
    about = Exported(
        source.path,
        "",
        source.species,
        source.heads,
        {},
        {},
        source.preprocessing,
        source.backbone,
        source.guard_threshold,
        "",
        "",
    )
    return OnnxNetwork(about, session_of(content, name=f"the export of {source.path}"))


def _parity(
    source: Source,
    dataset: Dataset,
    whole: OnnxNetwork,
    ask: parity.TorchAnswers,
    photos: Photos,
    wishes: Wishes,
) -> dict[str, Any]:
    heads = list(source.heads)
    one, other = (
        parity.answer(whole.logits_and_scores, photos.pixels),
        parity.answer(ask, photos.pixels),
    )
    found = parity.differences(one, other, heads)
    for head, figures in found.items():
        largest = figures["max_logit_difference"]
        if not largest <= wishes.max_logit_difference:  # NaN is refused, too
            raise UserError(
                f"{source.path}: logits of head {head} differ by {largest:.3g} from torch's, more "
                f"than MAX_LOGIT_DIFFERENCE = {wishes.max_logit_difference:g}; nothing was exported"
            )
    originals = original_photos(
        dataset, photos.places[:: max(1, len(photos.places) // _NUM_ORIGINALS)]
    )
    resized = parity.differences(
        parity.answer_originals(whole.logits_and_scores, originals, None),
        parity.answer_originals(ask, originals, source.preprocessing),
        heads,
    )
    return {
        "num_photos": len(photos.pixels),
        "heads": found,
        "num_originals": len(originals),
        "originals": resized,
        "max_relative_score_difference": parity.score_difference(one, other),
    }


def _int8(
    network: ModelProto,
    source: Source,
    dataset: Dataset,
    whole: OnnxNetwork,
    ask: parity.TorchAnswers,
    photos: Photos,
    wishes: Wishes,
    part: str,
) -> tuple[ModelProto, float | None, dict[str, Any]]:
    """Quantise by training photos, judge by the others: the network, its guard's threshold, why."""
    heads = list(source.heads)
    train = read_photos(dataset, wishes.pack, source, "train", wishes.num_calibration)
    expected = parity.answer(ask, train.pixels)

    def judge(candidate: ModelProto) -> float:
        answered = parity.answer(_answering(candidate, source).logits_and_scores, train.pixels)
        figures = parity.differences(answered, expected, heads)
        return min(figures[head]["equal"] for head in heads)

    start = time.perf_counter()
    small = quantise(
        network,
        source.preprocessing,
        train.pixels,
        judge,
        wanted=(1 + wishes.int8_agreement) / 2,  # training photos are easier than others
        max_float_layers=wishes.max_float_layers,
        reduce_range=wishes.reduce_range,
    )
    seconds = time.perf_counter() - start
    fast = _answering(small.network, source)
    exact, found = (
        parity.answer(ask, photos.pixels),
        parity.answer(fast.logits_and_scores, photos.pixels),
    )
    figures = parity.differences(found, exact, heads)
    equal = {head: figures[head]["equal"] for head in heads}
    agrees = part == "val" and min(equal.values()) >= wishes.int8_agreement
    threshold = None
    if found.scores is not None:
        threshold = guard.threshold_at(found.scores, guard.FALSE_ALARM_FRAC)
    rates = parity.rates({"fp32": whole, "int8": fast}, photos.pixels[:_NUM_RATE], _ROUNDS)
    return small.network, threshold, {
        "kept": agrees or wishes.force_int8,
        "forced": wishes.force_int8 and not agrees,
        "wanted_agreement": wishes.int8_agreement,
        "agreement": equal,
        "max_logit_difference": {head: figures[head]["max_logit_difference"] for head in heads},
        "num_photos": len(photos.pixels),
        "train_agreement": small.share,
        "num_calibration": len(train.pixels),
        "float_layers": list(small.float_layers),
        "reduce_range": wishes.reduce_range,
        "accuracy": {
            "fp32": parity.accuracies(exact, photos.labels, heads),
            "int8": parity.accuracies(found, photos.labels, heads),
        },
        "img_per_s": rates,
        "guard": _guard_figures(source, exact, found, threshold),
        "seconds": round(seconds, 1),
    }  # fmt: skip


def _guard_figures(
    source: Source, exact: parity.Answered, found: parity.Answered, threshold: float | None
) -> dict[str, float] | None:
    """Compare the shares of photos that are taken for strangers, of int8 at both thresholds."""
    if source.guard is None or exact.scores is None or found.scores is None:
        return None
    old, new = source.guard.threshold, threshold
    figures = {
        "fp32_false_alarms": float((exact.scores < old).double().mean()),
        "int8_false_alarms_at_old_threshold": float((found.scores < old).double().mean()),
    }
    if new is not None:
        equal = (found.scores >= new) == (exact.scores >= old)
        figures["int8_false_alarms"] = float((found.scores < new).double().mean())
        figures["equal"] = float(equal.double().mean())
    return figures


def _written(
    model: ModelProto,
    source: Source,
    precision: str,
    measured: Mapping[str, Any],
    takes: str = graphs.PIXELS,
    plain: Written | None = None,
) -> Written:
    side = source.preprocessing.size_px
    inputs = {
        graphs.PIXELS: "uint8 (B, H, W, 3), RGB, any height and width, one size a batch",
        graphs.IMAGE: f"float32 (B, 3, {side}, {side}), RGB, prepared as preprocessing says",
    }
    outputs = {head: f"float32 (B, {len(names)}), logits" for head, names in source.heads.items()}
    if source.guard is not None:
        outputs[exported.GUARD_SCORE] = "float64 (B,), below guard_threshold: no known animal"
    about = {
        "format": exported.FORMAT,
        **source.metadata(),
        "precision": precision,
        "inputs": {takes: inputs[takes]},
        "outputs": outputs,
        "opset": graphs.OPSET,
        "packages": {name: metadata.version(name) for name in _PACKAGES},
    }
    assert set(about) == set(exported.METADATA), set(about) ^ set(exported.METADATA)
    content = graphs.with_metadata(model, {name: json.dumps(about[name]) for name in about})
    digest = hashlib.sha256(content).hexdigest()
    card = {**about, "sha256": digest, "bytes": len(content), "measured": dict(measured)}
    return Written(content, card, plain)
