"""Two evaluations joined by image, and tests of two models with animals as the unit.

The photos of one animal are right or wrong together, so whole records are flipped. `gain` (R,) is
whole: photos of a record that B has right minus those that A has right. Intervals of a difference
come from `metrics.gain_interval`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from petface.errors import UserError
from petface.evaluation.details import PER_IMAGE, Evaluation, read_evaluation

_EXACT_STEPS = 20_000_000  # of the sums of all flips; beyond it they are sampled
_FLIPS_AT_ONCE = 20_000
_OTHER_DATA = "A and B were evaluated on different data (images, labels or split)"


@dataclass(frozen=True, eq=False)
class Pair:
    """The M common images of evaluations A and B."""

    a: Evaluation
    b: Evaluation
    # The columns of both tables with the suffixes _a and _b; image; part, "" where the splits
    # disagree; record_number; answered, whether both named a species.
    rows: pd.DataFrame
    notes: list[str]  # lines that the user should read


def read_pair(folder_a: str | Path, folder_b: str | Path) -> Pair:
    """Read two evaluations and join them by image; `UserError` where that cannot be."""
    a, b = _read(folder_a), _read(folder_b)
    rows = _with_images(a).merge(_with_images(b), on="image", suffixes=("_a", "_b"))
    if rows.empty:
        raise UserError(
            f"{a.folder} and {b.folder} have no image in common; evaluate both models on one "
            "dataset, with --images-root, then compare"
        )
    only_a, only_b = len(a.rows) - len(rows), len(b.rows) - len(rows)
    notes = []
    if only_a or only_b:
        notes.append(
            f"{_OTHER_DATA}; compared are the {len(rows):,} common images "
            f"({only_a:,} only in A, {only_b:,} only in B)"
        )
    elif a.models.get("dataset") != b.models.get("dataset"):
        notes.append(f"{_OTHER_DATA}; the images are the same")
    split_a, split_b = rows["split_a"].astype(str), rows["split_b"].astype(str)
    rows["part"] = split_a.where(split_a == split_b, "")
    if moved := int((split_a != split_b).sum()):
        notes.append(
            f"{moved:,} images stand in different parts of the split in A and in B; they count in "
            "no part: what one model trained on cannot test both"
        )
    rows["record_number"] = rows.groupby(["species_a", "record_a"], observed=True).ngroup()
    rows["answered"] = rows[["species_correct_a", "species_correct_b"]].notna().all(axis=1)
    return Pair(a, b, rows, notes)


def _read(folder: str | Path) -> Evaluation:
    try:
        found = read_evaluation(folder)
        assert isinstance(found.models["stage1"], dict)
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AssertionError, EOFError, OSError) as error:
        raise UserError(
            f"{folder}: the evaluation is damaged ({type(error).__name__}: {error}); run: "
            f"python inference_engine.py evaluate --out-dir {folder} --force"
        ) from error
    return found


def _with_images(side: Evaluation) -> pd.DataFrame:
    """Return the rows of an evaluation with the image names as the table spells them."""
    path = side.folder / PER_IMAGE
    names = pd.read_csv(path, usecols=["image"], dtype="object", keep_default_na=False)["image"]
    if not names.is_unique:
        raise UserError(f"{path} names an image twice; evaluate again")
    return side.rows.assign(image=names)


def sign_flip_p_value(
    gain: npt.ArrayLike, *, flips: int = 100_000, seed: int = 0
) -> tuple[float, bool]:
    """Return the two-sided p-value of "A and B may be swapped in any record", and whether exact.

    Swapping the answers of a record turns the sign of its gain. The p-value is the share of all
    2^R flips whose summed gain is at least as far from 0. They are counted exactly, sum by sum,
    while that is quick; else `flips` of them are drawn and the one seen is added. With one photo a
    record this is the exact McNemar test. Sources: Yeh 2000, COLING, arXiv cs/0008005 (the test);
    Phipson & Smyth 2010, arXiv 1603.05766 (the added one).
    """
    d = np.asarray(gain, np.int64)
    assert d.ndim == 1 and flips > 0, (d.shape, flips)
    sizes = np.abs(d[d != 0])
    if not len(sizes):
        return 1.0, True
    seen, total = abs(int(d.sum())), int(sizes.sum())
    if len(sizes) * total <= _EXACT_STEPS:
        chance = np.zeros(total + 1)  # of each sum of the gains whose sign is +
        chance[0] = 1.0
        for size in sizes.tolist():
            moved = 0.5 * chance
            chance = moved.copy()
            chance[size:] += moved[:-size]
        sums = 2 * np.arange(total + 1) - total
        return min(1.0, float(chance[np.abs(sums) >= seen].sum())), True
    kinds, frequency = np.unique(sizes, return_counts=True)
    generator, as_far = np.random.default_rng(seed), 0
    for start in range(0, flips, _FLIPS_AT_ONCE):
        shape = (min(_FLIPS_AT_ONCE, flips - start), len(kinds))
        plus = generator.binomial(frequency, 0.5, size=shape) @ kinds
        as_far += int((np.abs(2 * plus - total) >= seen).sum())
    return (1 + as_far) / (1 + flips), False


def holm(p_values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Adjust p-values (n,) so that the chance of one false finding among them stays as named.

    Source: Holm 1979, Scandinavian Journal of Statistics 6(2).
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    steps = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted
