"""Export one checkpoint: its graph, int8 where that keeps the answers, and what was measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from onnx import ModelProto

from petface.data.dataset import Dataset
from petface.errors import UserError
from petface.export import graphs, parity
from petface.export.assembly import Assembly
from petface.export.int8 import make_int8
from petface.export.sources import Photos, Source, cut_photos, read_photos
from petface.inference import onnx_models as exported
from petface.inference.onnx_models import OnnxNetwork, session_of

_NUM_RESIZED = 32  # photos that the graph must resize
_MAX_GREY_LEVELS = 2  # to Pillow: one of rounding, one more where enlarging meets ties
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
    made = Assembly(source)
    network, whole = made.network, made.opened(made.network)
    what: dict[str, Any] = {
        "parity": _parity(made, whole, dataset, photos, wishes) | {"part": part}
    }
    plain = None
    if wishes.float_variant:
        plain = _written(made.plain(network), source, "fp32", what, graphs.IMAGE)
    if wishes.precision == "int8":
        train = read_photos(dataset, wishes.pack, source, "train", wishes.num_calibration)
        small, what["int8"] = make_int8(
            made,
            whole,
            train,
            photos,
            agreement=wishes.int8_agreement,
            force=wishes.force_int8,
            judged=part == "val",
            max_float_layers=wishes.max_float_layers,
            reduce_range=wishes.reduce_range,
        )
        if what["int8"]["kept"]:
            return _written(made.whole(small.network), small.source, "int8", what, plain=plain)
    return _written(made.whole(network), source, "fp32", what, plain=plain)


def _parity(
    made: Assembly, whole: OnnxNetwork, dataset: Dataset, photos: Photos, wishes: Wishes
) -> dict[str, Any]:
    source, heads = made.source, made.heads
    one = parity.answer(whole.logits_and_scores, photos.pixels)
    other = parity.answer(made.ask, photos.pixels)
    found = parity.differences(one, other, heads)
    for head, figures in found.items():
        largest = figures["max_logit_difference"]
        if not largest <= wishes.max_logit_difference:  # NaN is refused, too
            raise UserError(
                f"{source.path}: logits of head {head} differ by {largest:.3g} from torch's, more "
                f"than MAX_LOGIT_DIFFERENCE = {wishes.max_logit_difference:g}; nothing was exported"
            )
    score = parity.score_difference(one, other)
    if score is not None and not score <= wishes.max_logit_difference:
        raise UserError(f"{source.path}: the guard's scores differ by {score:.3g} of the score")
    rule = source.preprocessing
    step = max(1, len(photos.places) // _NUM_RESIZED)
    cut = cut_photos(dataset, photos.places[::step])
    resizing = session_of(graphs.preprocessing_graph(rule).SerializeToString())
    largest_grey, share_off = parity.grey_levels(resizing, cut, rule)
    if largest_grey > _MAX_GREY_LEVELS:
        raise UserError(
            f"{source.path}: the graph's resizing is {largest_grey:.0f} grey levels off; take the "
            f"onnxruntime that pyproject.toml names"
        )
    resized = parity.differences(
        parity.answer_each(whole.logits_and_scores, cut, None),
        parity.answer_each(made.ask, cut, rule),
        heads,
    )
    return {
        "num_photos": len(photos.pixels),
        "heads": found,
        "num_resized": len(cut),
        "resized": resized,
        "max_grey_levels": largest_grey,
        "share_off_by_a_grey_level": share_off,
        "max_relative_score_difference": score,
    }


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
