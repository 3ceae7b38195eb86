"""The two kinds of models that answer photos, from a checkpoint or from a bundle of exports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor

from petface.calibration import conformal_set
from petface.data import images
from petface.data.images import ImageSource, Preprocessing
from petface.errors import UserError
from petface.inference import onnx_models as exported
from petface.inference.answers import HeadPrediction, Stage1Prediction
from petface.inference.loading import temperatures_of
from petface.models import checkpoints
from petface.models.checkpoints import CheckpointError, HeadCalibration
from petface.models.guard import Guard
from petface.models.network import (
    NOT_FINITE,
    Answerer,
    ExactWhereClose,
    Network,
    NonFiniteError,
    tempered,
)
from petface.training import runs

Asked = tuple[Tensor, "list[bool] | None"]  # (B, K) probabilities, who looks familiar to a guard


@dataclass(eq=False)
class Photo:
    """A decoded photo, and what has been made of it for networks: (size, size, 3) uint8 each."""

    source: np.ndarray | None  # (H, W, 3) uint8; None where all sizes that are needed are made
    _made: dict[tuple[int, str], np.ndarray] = field(default_factory=dict)

    def at(self, rule: Preprocessing) -> np.ndarray:
        """Give the photo as a network with this preprocessing takes it."""
        key = (rule.size_px, rule.resize)
        if key not in self._made:
            assert self.source is not None, f"not prepared for {key}"
            self._made[key] = images.resize(self.source, *key)
        return self._made[key]


class Stage1Model:
    """The species classifier of a checkpoint or a bundle; on the GPU where there is one.

    `network` takes the place of the one that `device` and `precision` describe.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        device: str | None = None,
        precision: str = "fp32",
        network: Answerer | None = None,
    ) -> None:
        self.path = exported.find(checkpoint, None) or Path(checkpoint)
        self.guard: Guard | None = None
        self.guard_threshold: float | None = None
        self.network: Answerer
        if self.path.suffix == exported.SUFFIX:
            card = exported.read(self.path)
            self.classes, self.calibration = card.heads["species"], card.calibration
            self.guard_threshold = card.guard_threshold
            self.network = network or exported.load(card, device or "auto")
            return
        content = checkpoints.read_stage1(self.path)
        self.classes, self.calibration = content.classes, content.calibration
        self.guard = content.guard
        self.network = network or _network(content, ("species",), device, precision)

    def predict(self, image: ImageSource, topk: int = 5) -> Stage1Prediction:
        """Name the species of a path, bytes, PIL image or array; gives at most `topk` classes."""
        probabilities, is_known = self.ask([Photo(images.decode(image))])
        if bool(torch.isnan(probabilities).any()):
            raise NonFiniteError(NOT_FINITE)
        return self.describe(probabilities[0], is_known[0] if is_known else None, topk)

    def ask(self, photos: Sequence[Photo]) -> Asked:
        """Give (B, K) probabilities, NaN where not finite; and, of a guard, who looks familiar."""
        pixels, known = _stack(photos, self.network.preprocessing), None
        if isinstance(self.network, exported.OnnxNetwork):
            outputs, scores = self.network.logits_and_scores(pixels)
            if scores is not None and self.guard_threshold is not None:
                known = scores >= self.guard_threshold
        elif self.guard is not None and _gives_means(self.network):
            outputs, means = self.network.logits_and_means(pixels)
            known = self.guard.knows(means)
        else:
            outputs = self.network.answer_pixels(pixels)
        (probabilities,) = tempered(outputs, self.network.temperatures)
        return probabilities, None if known is None else known.tolist()

    def describe(self, probabilities: Tensor, is_known: bool | None, topk: int) -> Stage1Prediction:
        """Put (K,) probabilities into words."""
        best = _best(probabilities, self.classes, topk)
        is_sure = _is_sure(self.calibration.get("species"), best)
        return Stage1Prediction(best[0][0], best, is_sure, is_known)


class Stage2Model:
    """The specialist of one species; make it with `load_for_species`."""

    def __init__(
        self,
        content: checkpoints.Stage2Checkpoint | exported.Exported,
        device: str | None = None,
        precision: str = "fp32",
        path: str | Path = "",
        network: Answerer | None = None,
    ) -> None:
        self.path = Path(path)
        self.species = content.species
        self.vocabulary_sources = content.sources
        self.calibration = content.calibration
        self.network: Answerer
        if isinstance(content, exported.Exported):
            self.vocabularies, self.heads = content.heads, tuple(content.heads)
            self.network = network or exported.load(content, device or "auto")
            return
        self.vocabularies, self.heads = content.vocabularies, content.model.head_names
        self.network = network or _network(content, self.heads, device, precision)

    @classmethod
    def load_for_species(
        cls,
        species: str,
        checkpoint_or_folder: str | Path,
        device: str | None = None,
        precision: str = "fp32",
        network: Answerer | None = None,
    ) -> Stage2Model:
        """Load <species>_best.pt from a file, from its run's folder, or from the folder of all
        specialists; or the species' export from a bundle.

        `CheckpointError` where there is none or it cannot be used.
        """
        path = find_specialist(species, checkpoint_or_folder)
        if path is None:
            raise CheckpointError(
                checkpoint_or_folder, f"holds no {species}_best.pt", "train the specialist"
            )
        if path.suffix == exported.SUFFIX:
            return cls(exported.read(path, species), device, precision, path, network)
        return cls(checkpoints.read_stage2(path, species), device, precision, path, network)

    def predict(self, image: ImageSource, topk_per_head: int = 3) -> dict[str, HeadPrediction]:
        """Answer every head for a path, bytes, PIL image or array."""
        heads = self.ask([Photo(images.decode(image))])
        if any(bool(torch.isnan(head).any()) for head in heads):
            raise NonFiniteError(NOT_FINITE)
        return self.describe([head[0] for head in heads], topk_per_head)

    def ask(self, photos: Sequence[Photo]) -> tuple[Tensor, ...]:
        """Give (B, K) probabilities per head, NaN where not finite."""
        outputs = self.network.answer_pixels(_stack(photos, self.network.preprocessing))
        return tempered(outputs, self.network.temperatures)

    def describe(self, probabilities: Sequence[Tensor], topk: int) -> dict[str, HeadPrediction]:
        """Put (K,) probabilities per head into words."""
        answers = {}
        for head, p in zip(self.heads, probabilities, strict=True):
            names, fitted = self.vocabularies[head], self.calibration.get(head)
            best = _best(p, names, topk)
            answers[head] = HeadPrediction(
                best[0][0],
                best,
                self.vocabulary_sources[head],
                _is_sure(fitted, best),
                _may_be(p, names, fitted) if head == "breed" else None,
            )
        return answers


def find_specialist(species: str, checkpoint_or_folder: str | Path) -> Path | None:
    """Find a specialist's checkpoint or export; None where a folder holds none. Names that leave
    the folder are refused.
    """
    path = Path(checkpoint_or_folder)
    if runs.run_path(str(path), species).name != species:
        raise UserError(f"species {species!r} must be a plain name")
    if path.is_file():
        return path
    for candidate in (path / species / f"{species}_best.pt", path / f"{species}_best.pt"):
        if candidate.is_file():
            return candidate
    return exported.find(path, species)


def _gives_means(network: Answerer) -> TypeGuard[Network | ExactWhereClose]:
    """Tell whether a network of the guard's backbone gives its stage means."""
    return isinstance(getattr(network, "fast", network), Network)


def _stack(photos: Sequence[Photo], rule: Preprocessing) -> Tensor:
    return torch.from_numpy(np.stack([photo.at(rule) for photo in photos]))


def _network(
    content: checkpoints.Stage1Checkpoint | checkpoints.Stage2Checkpoint,
    heads: Sequence[str],
    device: str | None,
    precision: str,
) -> Network:
    rule, temperatures = content.preprocessing, temperatures_of(content, heads)
    return Network.for_inference(content.model, rule, device or "auto", precision, temperatures)


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
