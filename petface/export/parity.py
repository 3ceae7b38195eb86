"""How equal an exported model is to its checkpoint: logits, answers, the guard, accuracy, speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from petface.data import images
from petface.data.images import Preprocessing
from petface.models.familiarity import Guard
from petface.models.network import Answerer, Network, Outputs

_AT_ONCE = 32  # photos


class Answered(NamedTuple):
    """(N, K) logits per head, and (N,) scores of the guard; None without one."""

    logits: Outputs
    scores: Tensor | None


Answer = Callable[[Tensor], tuple[Outputs, Tensor | None]]


class TorchAnswers:
    """A checkpoint's own answers in float32, with the guard's scores from the same pass."""

    def __init__(self, network: Network, guard: Guard | None) -> None:
        self.network, self.guard = network, guard

    def __call__(self, pixels: Tensor) -> tuple[Outputs, Tensor | None]:
        """(B, S, S, 3) uint8 -> logits per head, and scores."""
        if self.guard is None:
            return self.network.answer_pixels(pixels), None
        logits, means = self.network.logits_and_means(pixels)
        return logits, self.guard.score(means)


def answer(ask: Answer, pixels: Tensor) -> Answered:
    """Answer (N, S, S, 3) uint8, few at a time."""
    return _joined([ask(part) for part in pixels.split(_AT_ONCE)])


def answer_each(ask: Answer, photos: Sequence[np.ndarray], rule: Preprocessing | None) -> Answered:
    """Answer photos of any size one by one; `rule` None: the model resizes them itself."""
    prepared = (p if rule is None else images.resize(p, rule.size_px, rule.resize) for p in photos)
    return _joined([ask(torch.from_numpy(pixels.copy())[None]) for pixels in prepared])


def grey_levels(
    preprocessing: Any, photos: Sequence[np.ndarray], rule: Preprocessing
) -> tuple[float, float]:
    """Compare a preprocessing graph's session with `images.resize`: the largest difference in grey
    levels, and the share of numbers that differ.
    """
    spread = np.array(rule.std or (1.0, 1.0, 1.0), np.float32).reshape(3, 1, 1)
    mean = np.array(rule.mean or (0.0, 0.0, 0.0), np.float32).reshape(3, 1, 1)
    largest, num_off, num = 0.0, 0, 0
    for photo in photos:
        (found,) = preprocessing.run(None, {"pixels": photo[None]})
        grey = np.rint((found[0] * spread + mean) * 255).transpose(1, 2, 0)
        off = np.abs(grey - images.resize(photo, rule.size_px, rule.resize))
        largest, num_off, num = (
            max(largest, float(off.max())),
            num_off + (off > 0).sum(),
            num + off.size,
        )
    return largest, float(num_off) / max(num, 1)


def _joined(parts: Sequence[tuple[Outputs, Tensor | None]]) -> Answered:
    logits = tuple(torch.cat(head) for head in zip(*(part[0] for part in parts), strict=True))
    scores = [part[1] for part in parts if part[1] is not None]
    return Answered(logits, torch.cat(scores) if scores else None)


def differences(one: Answered, other: Answered, heads: Sequence[str]) -> dict[str, Any]:
    """Compare two sets of answers: per head the largest difference and the share of equal ones."""
    return {
        head: {
            "max_logit_difference": float((a - b).abs().max()),
            "equal": float((a.argmax(dim=1) == b.argmax(dim=1)).double().mean()),
        }
        for head, a, b in zip(heads, one.logits, other.logits, strict=True)
    }


def score_difference(one: Answered, other: Answered) -> float | None:
    """Give the largest difference of the guard's scores, relative to the score."""
    if one.scores is None or other.scores is None:
        return None
    return float(((one.scores - other.scores).abs() / other.scores.abs().clamp_min(1)).max())


def accuracies(
    answered: Answered, labels: Mapping[str, Tensor], heads: Sequence[str]
) -> dict[str, float | None]:
    """Give the share of known labels that were answered rightly, per head; None where none is."""
    found: dict[str, float | None] = {}
    for head, logits in zip(heads, answered.logits, strict=True):
        known = labels[head] >= 0
        right = logits.argmax(dim=1)[known] == labels[head][known]
        found[head] = float(right.double().mean()) if len(right) else None
    return found


def rates(networks: Mapping[str, Answerer], pixels: Tensor, rounds: int = 5) -> dict[str, float]:
    """Measure photos a second of each, in turn, medians; the first turn warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for turn in range(rounds + 1):
        for name, network in networks.items():
            start = time.perf_counter()
            network.answer_pixels(pixels)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: len(pixels) / statistics.median(took) for name, took in seconds.items()}
