"""Losses over labels that may be unknown: pure functions, exactly 0 where nothing is known.

Nothing here reads a tensor's value from Python, so no call waits for the device and all of it
compiles.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from petface.taxonomy import UNKNOWN


def masked_focal_loss(
    logits: Tensor,
    targets: Tensor,
    gamma: float,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    total: Tensor | None = None,
) -> Tensor:
    """Average the focal loss -w (1 - p)^gamma log p over the rows whose label is known.

    logits (B, K) of any floating type, targets (B,) int64 with -1 for unknown, class_weights (K,)
    or None; returns a float32 scalar, computed in float32. Source: Lin et al. 2017, arXiv
    1708.02002, equation 5, with the class weight as alpha. At gamma = 0 it equals
    `torch.nn.functional.cross_entropy(weight=, ignore_index=-1, label_smoothing=)`, divided as
    there by the summed weight of the known targets, except that it is 0 with a zero gradient where
    that sum is 0 (nothing known, all weights zero) or K is 0. With label smoothing (Szegedy et al.
    2016, arXiv 1512.00567) the factor (1 - p)^gamma, p that of the target, stands before the
    smoothed cross-entropy. Non-finite logits in a row of unknown label are not looked at; in a
    known row they make the loss NaN.

    Where the rows are part of a larger batch, `total` is the `known_weight` of the whole batch: the
    parts' losses then sum to the loss of the whole.
    """
    assert gamma >= 0.0 and 0.0 <= label_smoothing <= 1.0, (gamma, label_smoothing)
    assert logits.ndim == 2 and targets.shape == logits.shape[:1], (logits.shape, targets.shape)
    if logits.shape[1] == 0:
        return logits.float().sum()
    known = targets != UNKNOWN
    index = torch.where(known, targets, 0)  # a class in every row
    # masked before the softmax: afterwards 0 * NaN in the backward pass would poison the gradient
    log_p = torch.where(known[:, None], logits.float(), 0.0).log_softmax(dim=1)
    weight = _weight_of_target(class_weights, known, index)
    total = weight.sum() if total is None else total
    loss = -weight * log_p.gather(1, index[:, None])[:, 0]
    if label_smoothing > 0.0:
        every = log_p if class_weights is None else log_p * class_weights.float()
        # a batch whose known targets all weigh nothing is 0 as a whole: it is divided by 1 below
        spread = torch.where(known & (total > 0), -every.mean(dim=1), 0.0)
        loss = (1.0 - label_smoothing) * loss + label_smoothing * spread
    if gamma > 0.0:
        # log(1 - p) is summed from the other classes: 1 - exp(log p) loses every digit near p = 1,
        # and the derivative of a bare power there is infinite for gamma < 1. The lowest finite
        # number stands for -inf, so that the gradient is 0, not NaN, where all others are -inf.
        others = log_p.scatter(1, index[:, None], torch.finfo(torch.float32).min)
        loss = torch.exp(gamma * others.logsumexp(dim=1)) * loss
    return loss.sum() / torch.where(total > 0, total, 1.0)


def margin_logits(
    cosines: Tensor, targets: Tensor, kind: str, margin: float, scale: float
) -> Tensor:
    """Make logits of cosines (B, K): the target's is made worse by `margin`, all times `scale`.

    "arcface" adds the margin, in radians, to the target's angle (Deng et al. 2019, arXiv
    1801.07698, equation 3; where the angle would pass pi, the cosine falls on by margin * sin
    margin, so that it stays monotone); "cosface" subtracts it from its cosine (Wang et al. 2018,
    arXiv 1801.09414, equation 4). An unknown target (-1) has none.
    """
    known = targets != UNKNOWN
    index = torch.where(known, targets, 0)[:, None]
    own = cosines.gather(1, index).clamp(-1 + 1e-7, 1 - 1e-7)
    if kind == "arcface":
        angle = torch.acos(own) + margin
        worse = torch.where(angle <= math.pi, angle.cos(), own - margin * math.sin(margin))
    else:
        worse = own - margin
    return scale * cosines.scatter(1, index, torch.where(known[:, None], worse, own))


def logit_adjustment(counts: np.ndarray, tau: float) -> Tensor:
    """Return tau * log(share of each class), float32 (K,), to be added to logits in training alone.

    counts (K,) are how often each class is shown; one that never is counts as half a time, so that
    nothing is infinite. At tau = 1 this is balanced softmax (Ren et al. 2020, arXiv 2007.10740);
    other tau: Menon et al. 2021, arXiv 2007.07314.
    """
    shown = np.maximum(np.asarray(counts, np.float64), 0.5)
    return torch.from_numpy(tau * np.log(shown / shown.sum())).float()


def known_weight(targets: Tensor, class_weights: Tensor | None) -> Tensor:
    """Sum the weight of the known targets (B,): what the losses are divided by, float32."""
    known = targets != UNKNOWN
    return _weight_of_target(class_weights, known, torch.where(known, targets, 0)).sum()


def _weight_of_target(class_weights: Tensor | None, known: Tensor, index: Tensor) -> Tensor:
    """Look up the weight of each row's target, 0 where it is unknown: (B,) float32."""
    return known.float() if class_weights is None else class_weights.float()[index] * known
