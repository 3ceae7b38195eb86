"""Tell photos that look like the training photos from strangers, by the means of the maps.

Features are the stage means of `multi_body.forward_with_maps`, (N, D). The score is the negative
squared Mahalanobis distance to the nearest class (Lee et al. 2018, arXiv 1807.03888) over all four
stages, with the shared covariance as its `RANK` largest directions and one variance for the rest
(Moghaddam & Pentland 1997, IEEE PAMI 19(7)): a thirtieth of the numbers, and as good.

It is advice, not a verdict: of what it misses, only a measurement with strangers can tell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

FALSE_ALARM_FRAC = 0.05  # photos of known species that are taken for strangers
RANK = 32  # directions of the shared covariance that are kept, at most
_PHOTOS_PER_DIRECTION = 10  # a direction learnt from fewer is not worth keeping


@dataclass(frozen=True, eq=False)
class Guard:
    """What a fitted guard needs: float32 tensors and two numbers, as a checkpoint stores them.

    Class means and directions are those of (features - mean) / std.
    """

    mean: Tensor  # (D,)
    std: Tensor  # (D,)
    class_means: Tensor  # (C, D), of the classes with a training photo
    directions: Tensor  # (R, D), orthonormal
    variances: Tensor  # (R,)
    rest_variance: float  # of every direction that is not kept
    threshold: float  # scores below it are strangers

    def score(self, features: Tensor) -> Tensor:
        """(N, D) -> (N,) float64, higher = more like the training photos; NaN where not finite."""
        z = (features.double() - self.mean.double()) / self.std.double()
        means, directions = self.class_means.double(), self.directions.double()
        along, means_along = z @ directions.T, means @ directions.T
        # |z - m|^2 from inner products: the (N, C, D) differences of many photos would not fit
        whole = z.square().sum(1, keepdim=True) - 2 * z @ means.T + means.square().sum(1)
        scaled, means_scaled = (
            part / self.variances.double().sqrt() for part in (along, means_along)
        )
        kept, inside = (
            a.square().sum(1, keepdim=True) - 2 * a @ m.T + m.square().sum(1)
            for a, m in ((scaled, means_scaled), (along, means_along))
        )
        distance = kept + (whole - inside) / self.rest_variance
        return -distance.min(dim=1).values

    def knows(self, features: Tensor) -> Tensor:
        """(N, D) -> (N,) bool: False for what does not look like any training photo."""
        return self.score(features) >= self.threshold

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers and tensors for a checkpoint."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_dict(cls, values: Any, num_features: int) -> Guard:
        """Read what `to_dict` gave; `ValueError` says what makes no sense."""
        names = [field.name for field in fields(cls)]
        if not isinstance(values, Mapping) or not set(values) >= set(names):
            raise ValueError(f"is not a table with {', '.join(names)}")
        found = {name: values[name] for name in names}
        num_classes, num_kept = (
            len(t) if isinstance(t, Tensor) and t.ndim else 0
            for t in (found["class_means"], found["variances"])
        )
        shapes = {
            "mean": (num_features,),
            "std": (num_features,),
            "class_means": (max(num_classes, 1), num_features),
            "directions": (num_kept, num_features),
            "variances": (num_kept,),
        }
        for name, shape in shapes.items():
            value = found[name]
            if not isinstance(value, Tensor) or not value.is_floating_point():
                raise ValueError(f"{name} is no tensor of numbers")
            if value.shape != shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, not {shape}")
            if not torch.isfinite(value).all():
                raise ValueError(f"{name} is not finite")
            if name in ("std", "variances") and not (value > 0).all():
                raise ValueError(f"{name} is not above 0")
        for name in ("rest_variance", "threshold"):
            if type(found[name]) not in (int, float) or not math.isfinite(found[name]):
                raise ValueError(f"{name} is {found[name]!r}")
        if found["rest_variance"] <= 0:
            raise ValueError("rest_variance is not above 0")
        return cls(**found)


def fit_guard(
    train_features: Tensor,
    train_labels: Tensor,
    val_features: Tensor,
    false_alarm_frac: float = FALSE_ALARM_FRAC,
) -> Guard | None:
    """Fit the distance on training photos (N, D) of classes (N,), its threshold on other photos.

    A new photo of a known species counts as a stranger with probability `false_alarm_frac` at most.
    None where there are too few photos for that promise, or fewer than two to learn from. Rows that
    are not finite are left out.
    """
    usable = torch.isfinite(train_features).all(dim=1)
    x, labels = train_features[usable].double(), train_labels[usable]
    if len(x) < 2:
        return None
    mean, std = x.mean(dim=0), x.std(dim=0)
    # A channel that never fires in training must not divide by nothing.
    std = std.clamp_min(max(1e-3 * float(std.mean()), 1e-12))
    z = (x - mean) / std
    _, place = torch.unique(labels, return_inverse=True)
    counts = torch.bincount(place)
    sums = torch.zeros(len(counts), z.shape[1], dtype=z.dtype).index_add_(0, place, z)
    class_means = sums / counts[:, None]
    _, sizes, directions = torch.linalg.svd(z - class_means[place], full_matrices=False)
    variances = sizes.square() / len(z)
    num_kept = min(RANK, len(z) // _PHOTOS_PER_DIRECTION, z.shape[1])
    num_left = z.shape[1] - num_kept
    left = variances[num_kept:].sum() / num_left if num_left else variances.min()
    rest = max(float(left), 1e-6)
    guard = Guard(
        mean.float(),
        std.float(),
        class_means.float(),
        directions[:num_kept].float(),
        variances[:num_kept].clamp_min(rest).float(),
        rest,
        0.0,
    )
    threshold = threshold_at(guard.score(val_features), false_alarm_frac)
    if threshold is None:
        return None
    return Guard(**{**guard.to_dict(), "threshold": threshold})


def threshold_at(scores: Tensor, false_alarm_frac: float) -> float | None:
    """Find the score below which a new score of the same kind falls this often, at most.

    The floor((n + 1) * frac)-th smallest of the n finite scores; None where n is too small. Source:
    the finite-sample rank of conformal prediction, Vovk et al. 2005, section 2.2.
    """
    assert 0.0 < false_alarm_frac < 1.0, false_alarm_frac
    known = scores[torch.isfinite(scores)].sort().values
    rank = math.floor((len(known) + 1) * false_alarm_frac + 1e-9)
    return float(known[rank - 1]) if rank else None
