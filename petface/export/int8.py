"""int8 of an assembled model: quantised by training photos, judged on validation photos."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from onnx import ModelProto

from petface.errors import UserError
from petface.export import parity
from petface.export.assembly import Assembly
from petface.export.quantise import quantise
from petface.export.sources import Photos, Source
from petface.inference.onnx_models import OnnxNetwork
from petface.models import familiarity as guard

_NUM_RATE, _ROUNDS = 32, 3  # photos a turn, turns


@dataclass(frozen=True, eq=False)
class Small:
    """A quantised network, and its source: with the guard's threshold for it."""

    network: ModelProto
    source: Source


def make_int8(
    made: Assembly,
    whole: OnnxNetwork,
    train: Photos,
    photos: Photos,
    *,
    agreement: float,
    force: bool,
    judged: bool,
    max_float_layers: int,
    reduce_range: bool,
) -> tuple[Small, dict[str, Any]]:
    """Quantise a model and measure it beside `whole`, the one in fp32; for the card: is it "kept"?

    It is where every head gives `agreement` of the answers on `photos`, if they may judge it, or by
    `force`. The guard keeps its distances, from maps that are 8 bits now; its threshold is fitted
    again, by the same rule, on the scores that `photos` get from them.
    """
    source, heads, ask = made.source, made.heads, made.ask
    if not len(train.pixels):
        raise UserError(f"{source.path}: there is no training photo of {source} to quantise by")
    expected = parity.answer(ask, train.pixels)

    def judge(candidate: ModelProto) -> float:
        answered = parity.answer(made.opened(candidate).logits_and_scores, train.pixels)
        figures = parity.differences(answered, expected, heads)
        return min(figures[head]["equal"] for head in heads)

    start = time.perf_counter()
    small = quantise(
        made.network,
        source.preprocessing,
        train.pixels,
        judge,
        wanted=(1 + agreement) / 2,  # training photos are easier than others
        max_float_layers=max_float_layers,
        reduce_range=reduce_range,
    )
    seconds = time.perf_counter() - start
    fast = made.opened(small.network)
    exact = parity.answer(ask, photos.pixels)
    found = parity.answer(fast.logits_and_scores, photos.pixels)
    figures = parity.differences(found, exact, heads)
    equal = {head: figures[head]["equal"] for head in heads}
    agrees = judged and min(equal.values()) >= agreement
    threshold = None
    if found.scores is not None:
        threshold = guard.threshold_at(found.scores, guard.FALSE_ALARM_FRAC)
    if source.guard is not None and threshold is not None:
        source = replace(source, guard=replace(source.guard, threshold=threshold))
    rates = parity.rates({"fp32": whole, "int8": fast}, photos.pixels[:_NUM_RATE], _ROUNDS)
    return Small(small.network, source), {
        "kept": agrees or force,
        "forced": force and not agrees,
        "wanted_agreement": agreement,
        "agreement": equal,
        "max_logit_difference": {head: figures[head]["max_logit_difference"] for head in heads},
        "num_photos": len(photos.pixels),
        "train_agreement": small.share,
        "num_calibration": len(train.pixels),
        "float_layers": list(small.float_layers),
        "reduce_range": reduce_range,
        "accuracy": {
            "fp32": parity.accuracies(exact, photos.labels, heads),
            "int8": parity.accuracies(found, photos.labels, heads),
        },
        "img_per_s": rates,
        "guard": _guard_figures(made.source, exact, found, threshold),
        "seconds": round(seconds, 1),
    }


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
