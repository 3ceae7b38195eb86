"""Stage 1 and the specialists of stage 2: predictions for single photos and small batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from petface.calibration import conformal_set
from petface.data import images
from petface.data.images import ImageSource, Preprocessing
from petface.inference.loading import ComputeOptions, Stage, load_stage
from petface.models.checkpoints import HeadCalibration
from petface.models.network import NOT_FINITE, NonFiniteError, tempered

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

    def predict(self, image: ImageSource, topk: int = 5) -> Stage1Prediction:
        """Predict the species of a path, bytes, PIL image or array, with at most `topk` classes."""
        probabilities = self.probabilities([Photo(images.decode(image))])
        if bool(torch.isnan(probabilities).any()):
            raise NonFiniteError(NOT_FINITE)
        return self.describe(probabilities[0], topk)

    def probabilities(self, photos: Sequence[Photo]) -> Tensor:
        """Return (B, K) probabilities, NaN where not finite."""
        outputs = self.network.answer_pixels(_stack(photos, self.network.preprocessing))
        return tempered(outputs, self.network.temperatures)[0]

    def describe(self, probabilities: Tensor, topk: int) -> Stage1Prediction:
        """Put (K,) probabilities into words."""
        best = _best(probabilities, self.classes, topk)
        is_sure = _is_sure(self.stage.calibration.get("species"), best)
        return Stage1Prediction(best[0][0], best, is_sure)


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
    ) -> Stage2Model:
        """Load <species>_best.pt from a file, from its run's folder, or from the folder of all
        specialists; or the species' export from a bundle.

        `CheckpointError` where there is none or it cannot be used.
        """
        options = options or ComputeOptions.choose(device, precision)
        return cls(load_stage(checkpoint_or_folder, species, options))

    def predict(self, image: ImageSource, topk_per_head: int = 3) -> dict[str, HeadPrediction]:
        """Predict every head for a path, bytes, PIL image or array."""
        heads = self.probabilities([Photo(images.decode(image))])
        if any(bool(torch.isnan(head).any()) for head in heads):
            raise NonFiniteError(NOT_FINITE)
        return self.describe([head[0] for head in heads], topk_per_head)

    def probabilities(self, photos: Sequence[Photo]) -> tuple[Tensor, ...]:
        """Return (B, K) probabilities per head, NaN where not finite."""
        outputs = self.network.answer_pixels(_stack(photos, self.network.preprocessing))
        return tempered(outputs, self.network.temperatures)

    def describe(self, probabilities: Sequence[Tensor], topk: int) -> dict[str, HeadPrediction]:
        """Put (K,) probabilities per head into words."""
        predictions = {}
        for head, p in zip(self.heads, probabilities, strict=True):
            names, fitted = self.vocabularies[head], self.stage.calibration.get(head)
            best = _best(p, names, topk)
            predictions[head] = HeadPrediction(
                best[0][0],
                best,
                self.vocabulary_sources[head],
                _is_sure(fitted, best),
                _may_be(p, names, fitted) if head == "breed" else None,
            )
        return predictions


def _stack(photos: Sequence[Photo], rule: Preprocessing) -> Tensor:
    return torch.from_numpy(np.stack([photo.at(rule) for photo in photos]))


def _is_sure(fitted: HeadCalibration | None, best: list[tuple[str, float]]) -> bool | None:
    return None if fitted is None else fitted.is_sure(best[0][1])


def _may_be(
    probabilities: Tensor, names: tuple[str, ...], fitted: HeadCalibration | None
) -> list[str] | None:
    if fitted is None or fitted.conformal_quantile is None:
        return None
    chosen = conformal_set(probabilities[None].numpy(), fitted.conformal_quantile)[0]
    return [names[k] for k in probabilities.argsort(descending=True).tolist() if chosen[k]]


def _best(probabilities: Tensor, names: tuple[str, ...], topk: int) -> list[tuple[str, float]]:
    if topk < 1:
        raise ValueError(f"topk must be 1 or more, not {topk}")
    values, places = probabilities.topk(min(topk, len(names)))
    return [(names[k], float(p)) for p, k in zip(values.tolist(), places.tolist(), strict=True)]
