"""Stage 1 and the specialists of stage 2: predictions for single photos and small batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from petface.calibration import conformal_set
from petface.data import images
from petface.data.images import ImageSource, Preprocessing
from petface.devices import to_device
from petface.inference.loading import ComputeOptions, Stage, load_stage
from petface.models.network import NOT_FINITE, Answerer, NonFiniteError, begin_copy, tempered

UNSURE = "unsure"


@dataclass(frozen=True)
class Stage1Prediction:
    """The most probable species, and the `topk` best as (species, probability) in falling order.

    `sure` tells whether answers of this confidence are right as often as was wanted in training;
    None where the checkpoint was not calibrated.
    """

    label: str
    topk: list[tuple[str, float]]
    sure: bool | None = None


@dataclass(frozen=True)
class HeadPrediction:
    """The most probable label of one head; `vocabulary` says where the label names came from.

    `sure` as for the species. `may_be`, of a calibrated breed, holds the true one in 9 of 10
    photos, most probable first.
    """

    label: str
    topk: list[tuple[str, float]]
    vocabulary: str = "checkpoint"
    sure: bool | None = None
    may_be: list[str] | None = None


Heads = dict[str, HeadPrediction]


def lay_out(prediction: Stage1Prediction | HeadPrediction) -> dict[str, Any]:
    """Return a prediction as a dictionary ready for JSON.

    `answer` is the label, or "unsure" where the network says that it is; `may_be` is left out
    where it is None.
    """
    entry = {name: v for name, v in asdict(prediction).items() if name != "may_be" or v is not None}
    return {**entry, "answer": UNSURE if prediction.sure is False else prediction.label}


@dataclass(eq=False)
class Photo:
    """A decoded photo, and what has been made of it for networks: (size, size, 3) uint8 each."""

    source: np.ndarray | None  # (H, W, 3) uint8; None where all sizes that are needed are made
    _made: dict[tuple[int, str], np.ndarray] = field(default_factory=dict)

    def at(self, rule: Preprocessing) -> np.ndarray:
        """Return the photo as a network with this preprocessing takes it."""
        key = (rule.size_px, rule.resize)
        if key not in self._made:
            assert self.source is not None, f"not prepared for {key}"
            self._made[key] = images.resize(self.source, *key)
        return self._made[key]


class Pixels:
    """A batch of photos whose pixels go to the device once for each size that networks take.

    `made`: (B, size, size, 3) uint8 by size and rule; what is missing there is made from `photos`.
    """

    def __init__(
        self, photos: Sequence[Photo], made: Mapping[tuple[int, str], Tensor] | None = None
    ) -> None:
        self._photos, self._made = photos, dict(made or {})
        self.of_stage1: tuple[Tensor, ...] = ()  # its probabilities, once they are known

    def __len__(self) -> int:
        return next(map(len, self._made.values()), len(self._photos))

    def probabilities(
        self, network: Answerer, rows: Sequence[int] | None = None
    ) -> tuple[Tensor, ...]:
        """Return (B, K) per head, on the network's device, NaN where not finite."""
        rule = network.preprocessing
        key = rule.size_px, rule.resize
        if key not in self._made:
            stacked = torch.from_numpy(np.stack([photo.at(rule) for photo in self._photos]))
            self._made[key] = to_device(stacked, network.device)
        pixels = self._made[key]
        if rows is not None and len(rows) < len(pixels):
            pixels = pixels[to_device(torch.tensor(rows), pixels.device)]
        return tempered(network.answer_pixels(pixels), network.temperatures)


class Stage1Model:
    """The species classifier of a checkpoint or a bundle; on the GPU where there is one.

    `options` takes the place of `device` and `precision`.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        device: str | None = None,
        precision: str = "fp32",
        options: ComputeOptions | None = None,
    ) -> None:
        options = options or ComputeOptions.choose(device, precision)
        self.stage = load_stage(checkpoint, None, options)
        self.path, self.network = self.stage.path, self.stage.network
        self.classes = self.stage.names["species"]

    @overload
    def predict(self, image: ImageSource, topk: int = 5) -> Stage1Prediction: ...
    @overload
    def predict(self, image: list[ImageSource], topk: int = 5) -> list[Stage1Prediction]: ...
    def predict(self, image: Any, topk: int = 5) -> Any:
        """Predict the species of a path, bytes, PIL image or array, with at most `topk` classes;
        of a list of them as one batch.
        """
        return _predict(self.network, image, lambda heads: self.describe(heads[0], topk))

    def describe(self, probabilities: Tensor, topk: int) -> Stage1Prediction:
        """Format (K,) probabilities as a prediction."""
        best = _best(probabilities, self.classes, topk)
        fitted = self.stage.calibration.get("species")
        return Stage1Prediction(best[0][0], best, fitted.is_sure(best[0][1]) if fitted else None)


class Stage2Model:
    """The specialist of one species; make it with `load_for_species`."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.path, self.species, self.network = stage.path, stage.species, stage.network
        self.vocabularies, self.vocabulary_sources = stage.names, stage.sources
        self.heads = tuple(stage.names)

    @classmethod
    def load_for_species(
        cls,
        species: str,
        checkpoint_or_folder: str | Path,
        device: str | None = None,
        precision: str = "fp32",
        options: ComputeOptions | None = None,
        annotations_root: str | Path = "",
    ) -> Stage2Model:
        """Load <species>_best.pt from a file, from its run's folder, or from the folder of all
        specialists; or the species' export from a bundle.

        `CheckpointError` where there is none or it cannot be used.
        """
        options = options or ComputeOptions.choose(device, precision)
        return cls(load_stage(checkpoint_or_folder, species, options, annotations_root))

    @overload
    def predict(self, image: ImageSource, topk_per_head: int = 3) -> Heads: ...
    @overload
    def predict(self, image: list[ImageSource], topk_per_head: int = 3) -> list[Heads]: ...
    def predict(self, image: Any, topk_per_head: int = 3) -> Any:
        """Predict every head for a path, bytes, PIL image or array, or for a list of them."""
        return _predict(self.network, image, lambda heads: self.describe(heads, topk_per_head))

    def describe(self, probabilities: Sequence[Tensor], topk: int) -> dict[str, HeadPrediction]:
        """Format (K,) probabilities per head as predictions."""
        predictions = {}
        for head, p in zip(self.heads, probabilities, strict=True):
            names, fitted = self.vocabularies[head], self.stage.calibration.get(head)
            best = _best(p, names, topk)
            may_be = None
            if head == "breed" and fitted and fitted.conformal_quantile is not None:
                (chosen,) = conformal_set(p[None].numpy(), fitted.conformal_quantile)
                may_be = [names[k] for k in p.argsort(descending=True).tolist() if chosen[k]]
            sure = fitted.is_sure(best[0][1]) if fitted else None
            source = self.vocabulary_sources[head]
            predictions[head] = HeadPrediction(best[0][0], best, source, sure, may_be)
        return predictions


def _predict(network: Answerer, image: Any, describe: Callable[[Sequence[Tensor]], Any]) -> Any:
    """Describe (K,) per head of one image or of each in a list; `NonFiniteError` for NaN."""
    asked = image if isinstance(image, list) else [image]
    key = network.preprocessing.size_px, network.preprocessing.resize
    photos = [Photo(None, {key: images.resize(images.decode(one), *key)}) for one in asked]
    heads = begin_copy(Pixels(photos).probabilities(network))() if photos else ()
    if any(bool(torch.isnan(head).any()) for head in heads):
        raise NonFiniteError(NOT_FINITE)
    found = [describe(rows) for rows in zip(*heads, strict=True)]
    return found if asked is image else found[0]


def _best(probabilities: Tensor, names: tuple[str, ...], topk: int) -> list[tuple[str, float]]:
    if topk < 1:
        raise ValueError(f"topk must be 1 or more, not {topk}")
    values, places = probabilities.topk(min(topk, len(names)))
    return [(names[k], float(p)) for p, k in zip(values.tolist(), places.tolist(), strict=True)]
