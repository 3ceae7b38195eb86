"""How well embeddings tell animals apart: verification, re-identification, open set; pure numpy.

The intervals are those of `metrics.cluster_interval`: photos of one animal count together.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch

from petface import metrics

FALSE_MATCH_RATES: Final = (0.01, 0.001)
_BLOCK: Final = 20_000_000  # similarities in memory at once: 80 MB
Figures = dict[str, Any]


def similarities(embeddings: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the cosines of pairs (P,) of unit embeddings (n, D), in pieces: (P,) float32."""
    step = max(1, _BLOCK // max(embeddings.shape[1], 1))
    parts = [
        np.einsum("pd,pd->p", embeddings[left[k : k + step]], embeddings[right[k : k + step]])
        for k in range(0, len(left), step)
    ]
    return np.concatenate([np.empty(0, np.float32), *parts])


def verification(
    similarity: np.ndarray, is_same: np.ndarray, left: np.ndarray, right: np.ndarray
) -> Figures:
    """Measure pairs (P,): the area under the ROC curve, and true matches at rates of false ones.

    `left` and `right` (P,) are the animals of a pair. A pair of two animals counts for both, half
    for each, in the interval of the area; its influence is that of DeLong, DeLong &
    Clarke-Pearson 1988, Biometrics 44(3). The other intervals take the threshold as given.
    """
    num_same, num_other = int(is_same.sum()), int((~is_same).sum())
    found: Figures = {"num_pairs": len(is_same), "num_same": num_same}
    found["num_animals"] = len(np.unique(np.concatenate([left, right])))
    if not num_same or not num_other:
        return {**found, "auc": None}
    same, other = np.sort(similarity[is_same]), np.sort(similarity[~is_same])

    def share_below(sorted_values: np.ndarray, value: np.ndarray) -> np.ndarray:
        low, high = (np.searchsorted(sorted_values, value, side=s) for s in ("left", "right"))
        return (low + high) / (2 * len(sorted_values))  # ties count half

    placed = np.where(is_same, share_below(other, similarity), 1 - share_below(same, similarity))
    auc = float(placed[is_same].mean())
    weight = np.where(is_same, 1 / num_same, 1 / num_other) / 2
    influence = (placed - auc) * weight * 2
    twice = np.concatenate([np.arange(len(is_same)), np.flatnonzero(~is_same)])
    animal = np.concatenate([left, right[~is_same]])
    share = np.where(is_same, weight, weight / 2)[twice]
    bounds = metrics.cluster_interval(auc, influence[twice], share, animal)
    found |= {"auc": auc, "auc_interval_95": bounds}
    for rate in FALSE_MATCH_RATES:
        if num_other * rate < 1:  # too few pairs of two animals: not one of them might match
            continue
        name, matched = f"tpr_at_fpr_{rate:g}", similarity[is_same] >= threshold_at(other, rate)
        found[name] = float(matched.mean())
        found[f"{name}_interval_95"] = metrics.accuracy_interval(matched, left[is_same])
    return found


def threshold_at(others: np.ndarray, rate: float) -> float:
    """Return the lowest similarity that at most this share of the pairs of two animals reaches."""
    ordered = np.sort(others)[::-1]
    missed = ordered[min(int(rate * len(ordered)), len(ordered) - 1)]
    return float(np.nextafter(np.float32(missed), np.float32(np.inf)))


def ranks(
    queries: np.ndarray,
    gallery: np.ndarray,
    query_animal: np.ndarray,
    gallery_animal: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Look (Q, D) up in a gallery (G, D) of one species; animals are numbers, -1 = not in it.

    Returns for each query the rank of its animal's best photo (0 = none is in the gallery), its
    average precision (NaN), its best match's place in the gallery and similarity, each (Q,). A tie
    counts against the query.
    """
    num = len(queries)
    rank, precision = np.zeros(num, np.int64), np.full(num, np.nan)
    place, similarity = np.zeros(num, np.int64), np.full(num, np.nan, np.float32)
    order = np.argsort(gallery_animal, kind="stable")
    begin, end = (
        np.searchsorted(gallery_animal, query_animal, side, order) for side in ("left", "right")
    )
    table = torch.from_numpy(gallery)
    step = max(1, _BLOCK // len(gallery))
    for start in range(0, num, step):
        part = slice(start, min(start + step, num))
        values = (torch.from_numpy(queries[part]) @ table.T).numpy()
        place[part], similarity[part] = values.argmax(axis=1), values.max(axis=1)
        num_own = (end - begin)[part, None]
        nth = np.arange(max(1, num_own.max()))  # each animal's own photos, filled up with others
        own = order[np.minimum(begin[part, None] + nth, len(order) - 1)]
        own = np.where(nth < num_own, np.take_along_axis(values, own, axis=1), -np.inf)
        own = np.sort(own)[:, ::-1]
        # equal ones of other animals stand before it; so does what is NaN
        after = [np.count_nonzero(values < one[:, None], axis=1) for one in own.T]
        before, is_known = len(gallery) - np.stack(after, axis=1), num_own[:, 0] > 0
        rank[part][is_known] = before[is_known, 0]
        shares = np.where(nth < num_own, (nth + 1) / before, 0).sum(axis=1)
        precision[part][is_known] = shares[is_known] / num_own[is_known, 0]
    return rank, precision, place, similarity


def identification(rank: np.ndarray, precision: np.ndarray, animal: np.ndarray) -> Figures:
    """Measure queries (Q,) whose animal is in the gallery: top-1, top-5, mean average precision."""
    found: Figures = {"num_queries": len(rank), "num_animals": len(np.unique(animal))}
    if not len(rank):
        return found
    for most in (1, 5):
        found[f"top{most}"] = float((rank <= most).mean())
        found[f"top{most}_interval_95"] = metrics.accuracy_interval(rank <= most, animal)
    mean, weight = float(precision.mean()), np.full(len(rank), 1 / len(rank))
    found["mean_average_precision"] = mean
    found["mean_average_precision_interval_95"] = metrics.cluster_interval(
        mean, (precision - mean) * weight, weight, animal
    )
    return found


def open_set(
    similarity: np.ndarray, is_right: np.ndarray, is_known: np.ndarray, threshold: float
) -> Figures:
    """Measure queries (Q,) of animals in the gallery and of others, at a threshold found before.

    `is_right` tells whether the best match is the animal. A query below it is "unknown".
    """
    taken = similarity >= threshold
    known, strangers = is_known.sum(), (~is_known).sum()
    return {
        "threshold": threshold,
        "num_known": int(known),
        "num_strangers": int(strangers),
        "found": float((taken & is_right)[is_known].mean()) if known else None,
        "mistaken_for_another": float((taken & ~is_right)[is_known].mean()) if known else None,
        "strangers_accepted": float(taken[~is_known].mean()) if strangers else None,
    }
