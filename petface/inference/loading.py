"""How an evaluation computes: by torch or by OpenVINO, in which precision, and how exactly."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from petface.data.images import Preprocessing
from petface.data.sample import Photos
from petface.devices import choose_device, choose_precision
from petface.errors import SettingsError, UserError
from petface.files import sha256_of_file
from petface.inference import onnx_models as exported
from petface.inference.views import AveragedViews, Views
from petface.models import checkpoints, openvino_network
from petface.models.checkpoints import Stage1Checkpoint, Stage2Checkpoint
from petface.models.network import Answerer, ExactWhereClose, Network, Stage

ONNX = "onnxruntime"  # the engine of exported models
NUM_QUANTISE, NUM_COMPARE = 256, 512  # photos at most: of the training, of the validation part
NUM_MARGIN = 64  # photos at most, of the validation part
MARGIN_SAFETY = 1.5  # times the largest error that they show
_AT_ONCE = 32  # photos


@dataclass(frozen=True)
class Arithmetic:
    """Settings of an evaluation's arithmetic; make it with `choose`, which resolves "auto"."""

    device: str
    precision: str
    engine: str
    compiled: bool
    exact_margin: float
    int8_agreement: float
    views: Views = "none"  # of each photo, whose logits are averaged

    @classmethod
    def choose(
        cls,
        device: str | None,
        precision: str,
        engine: str = "torch",
        compiled: bool = False,
        exact_margin: float = 0.0,
        int8_agreement: float = 0.99,
        views: Views = "none",
    ) -> Arithmetic:
        """Resolve device and precision; `SettingsError` for what does not go together."""
        on = choose_device(device or "auto")
        if engine == "openvino":
            if on.type != "cpu":
                raise SettingsError('ENGINE openvino computes on the CPU: set DEVICE = "cpu"')
            if compiled:
                raise SettingsError("COMPILE is torch's: leave it off with ENGINE openvino")
            precision = openvino_network.choose_precision(precision)
            openvino_network.versions(precision)  # missing packages are named before the work
        elif precision == "int8":
            raise SettingsError('PRECISION int8 needs ENGINE = "openvino"')
        else:
            precision = str(choose_precision(precision, on))
        return cls(str(on), precision, engine, compiled, exact_margin, int8_agreement, views)

    @classmethod
    def of_exports(
        cls, device: str | None, precision: str, engine: str, views: Views = "none"
    ) -> Arithmetic:
        """Give that of exported models, which bring their precision along."""
        if precision != "auto" or engine != "torch":
            raise SettingsError(
                "exported models compute as they were exported: leave PRECISION and ENGINE alone"
            )
        on = choose_device(device or "auto")
        return cls(str(on), "exported", ONNX, False, 0.0, 0.0, views)

    def identity(self) -> dict[str, Any]:
        """Give JSON values that differ wherever the answers might."""
        packages = {"torch": str(torch.__version__)}
        if self.engine == "openvino":
            packages = openvino_network.versions(self.precision)
        elif self.engine == ONNX:
            packages = exported.versions()
        return {
            "engine": self.engine,
            "packages": packages,
            "precision": self.precision,
            "device": torch.device(self.device).type,
            "compiled": self.compiled,
            "exact_margin": self.exact_margin,
            "views": self.views,
        }


def load_stage(
    path: str | Path,
    species: str | None,
    how: Arithmetic,
    *,
    checksum: str,
    identity: Mapping[str, Any],
    folder: Path,
    photos_for: Callable[[Preprocessing], Photos],
) -> Stage:
    """Read stage 1 (`species` None) or a specialist, from a checkpoint or an export, ready to
    answer.

    OpenVINO's models are kept in `folder` under `identity`, JSON values that name the dataset, and
    `checksum`, the SHA-256 of the file.
    """
    if Path(path).suffix == exported.SUFFIX:
        card = exported.read(path, species)
        return Stage(_in_views(exported.load(card, how.device), how), card.heads)
    content, names = _read(path, species)
    network = _build(
        content.model,
        content.preprocessing,
        temperatures_of(content, list(names)),
        how,
        name=str(path),
        head_names=list(names),
        identity={**identity, "checkpoint": checksum},
        folder=folder,
        photos=photos_for(content.preprocessing),
    )
    return Stage(_in_views(network, how), names)


def _in_views(network: Answerer, how: Arithmetic) -> Answerer:
    return network if how.views == "none" else AveragedViews(network, how.views)


def temperatures_of(
    content: Stage1Checkpoint | Stage2Checkpoint, heads: Sequence[str]
) -> tuple[float, ...]:
    """Give the fitted temperature of each head, 1.0 where nothing was fitted."""
    fitted = [content.calibration.get(head) for head in heads]
    return tuple(entry.temperature if entry else 1.0 for entry in fitted)


def describe_model(path: str | Path, species: str | None) -> dict[str, Any]:
    """Say which checkpoint or export is asked, its class names and what was fitted."""
    if Path(path).suffix == exported.SUFFIX:
        content: Stage1Checkpoint | Stage2Checkpoint | exported.Exported
        content = exported.read(path, species)
        names = content.heads
    else:
        content, names = _read(path, species)
    return {
        "path": str(path),
        "sha256": sha256_of_file(path),
        "preprocessing": asdict(content.preprocessing),
        "heads": names,
        "calibration": {head: asdict(fitted) for head, fitted in content.calibration.items()},
    }


def _read(
    path: str | Path, species: str | None
) -> tuple[Stage1Checkpoint | Stage2Checkpoint, dict[str, tuple[str, ...]]]:
    """Read stage 1 (`species` None) or a specialist, and the class names of each of its heads."""
    if species is None:
        stage1 = checkpoints.read_stage1(path)
        return stage1, {"species": stage1.classes}
    content = checkpoints.read_stage2(path, species)
    return content, {head: content.vocabularies[head] for head in content.model.head_names}


def _build(
    model: nn.Module,
    preprocessing: Preprocessing,
    temperatures: tuple[float, ...],
    how: Arithmetic,
    *,
    name: str,
    head_names: Sequence[str],
    identity: dict[str, Any],
    folder: Path,
    photos: Photos,
) -> Answerer:
    """Make a network in evaluation mode ready to answer; `model` is used up.

    int8 is refused (`UserError`) where it gives too few of the answers that float32 gives, on
    validation photos.
    """
    exact = None
    if how.exact_margin or how.engine == "openvino":
        whole = model if how.engine == "openvino" else copy.deepcopy(model)
        exact = Network.for_inference(whole, preprocessing, how.device, "fp32", temperatures)
    if how.engine == "torch":
        fast: Answerer = Network.for_inference(
            model, preprocessing, how.device, how.precision, temperatures, how.compiled
        )
        return _careful(fast, exact, how, photos, name)
    if how.precision != "int8":  # int8's scales come from photos of the dataset, too
        identity = {key: identity[key] for key in ("checkpoint",)}
    fast, card = openvino_network.load_or_convert(
        model,
        preprocessing,
        temperatures,
        precision=how.precision,
        folder=folder,
        identity=identity,
        sample=lambda: photos("train", NUM_QUANTISE),
    )
    network = _careful(fast, exact, how, photos, name)
    if how.precision == "int8":
        assert exact is not None
        kept = card.get("agreement", {})
        if kept.get("exact_margin") != how.exact_margin:
            pixels = photos("val", NUM_COMPARE)
            equal = agreement(network, exact, pixels) if len(pixels) else [1.0] * len(head_names)
            kept = {
                "exact_margin": how.exact_margin,
                "num": len(pixels),
                "equal": dict(zip(head_names, equal, strict=True)),
            }
            openvino_network.note(folder, card["key"], agreement=kept)
        _refuse_below(how.int8_agreement, kept, name)
    return network


def _careful(
    fast: Answerer, exact: Network | None, how: Arithmetic, photos: Photos, name: str
) -> Answerer:
    """Decide close calls by float32 where that is wanted."""
    if not how.exact_margin or how.precision == "fp32":
        return fast
    assert exact is not None
    if how.exact_margin > 0:
        return ExactWhereClose(fast, exact, how.exact_margin)
    pixels = photos("val", NUM_MARGIN)
    pixels = pixels if len(pixels) else photos("train", NUM_MARGIN)
    margin = MARGIN_SAFETY * largest_error(fast, exact, pixels)
    print(
        f"{how.precision} {name}: logits closer than {margin:.3f} are decided in fp32", flush=True
    )
    return ExactWhereClose(fast, exact, margin)


def largest_error(fast: Answerer, exact: Answerer, pixels: Tensor) -> float:
    """Give how far, over all heads, the gap between `fast`'s two best logits is from `exact`'s.

    An answer differs only where that error is larger than the gap. Infinity for no photo.
    """
    found = [0.0 if len(pixels) else math.inf]
    for part in pixels.split(_AT_ONCE) if len(pixels) else ():
        pairs = zip(fast.answer_pixels(part), exact.answer_pixels(part), strict=True)
        for one, other in pairs:
            two = one.topk(min(2, one.shape[1]), dim=1).indices
            error = (one - other).gather(1, two)
            found.append(float((error[:, 0] - error[:, -1]).abs().max()))
    return max(found)


def _refuse_below(least: float, found: dict[str, Any], name: str) -> None:
    shares = ", ".join(f"{head} {share:.4f}" for head, share in found["equal"].items())
    shares = shares if found["num"] else "not measured"
    print(f"int8 {name}: equal to fp32 on {found['num']} validation photos: {shares}", flush=True)
    if found["num"] == 0 and least > 0:
        why = "there is no validation photo to compare int8 with fp32"
    elif found["num"] and min(found["equal"].values()) < least:
        why = f"int8 gives fewer than {least:.2%} of fp32's answers ({shares})"
    else:
        return
    raise UserError(
        f"{name}: {why}; take PRECISION bf16, raise EXACT_MARGIN, or lower INT8_AGREEMENT"
    )


def agreement(network: Answerer, exact: Answerer, pixels: Tensor) -> list[float]:
    """Give the share of equal answers per head on (N, size, size, 3) uint8."""
    equal = []
    for part in pixels.split(_AT_ONCE):
        pairs = zip(network.answer_pixels(part), exact.answer_pixels(part), strict=True)
        equal.append(torch.stack([one.argmax(1) == other.argmax(1) for one, other in pairs]))
    return [float(share) for share in torch.cat(equal, dim=1).double().mean(dim=1)]
