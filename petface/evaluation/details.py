"""The files of an evaluation, row by row, and each head's answers: what every metric counts from.

`petface_eval_per_image.csv` holds one row per image. `petface_eval_details.npy` holds one element
of `DETAILS` per row, in the same order: what does not fit a readable table. The names behind its
class numbers, and what was fitted for each head, are in `petface_eval_models.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from petface.calibration import Floats, shifted
from petface.data.splits import SPLITS
from petface.errors import UserError
from petface.files import plain_cell, read_json
from petface.sureness import Truths
from petface.taxonomy import FEATURES, UNKNOWN

Whole = npt.NDArray[np.int64]
HEADS = ("species", *FEATURES)
TOP = 5  # best answers kept per head
NOT_A_CLASS = -2  # a label that the network has no class for
PER_IMAGE, DETAILS_FILE = "petface_eval_per_image.csv", "petface_eval_details.npy"
MODELS, SUMMARY = "petface_eval_models.json", "petface_eval_summary.json"
PER_IMAGE_COLUMNS = (
    "image", "species", "record", "split", "status",
    "species_pred", "species_prob", "species_correct",
    *(f"{feature}_{what}" for feature in FEATURES for what in ("true", "pred", "prob", "correct")),
    "contaminated",  # 1: see `rows.mark_contaminated`; "" where networks do not say it
    "unknown_class",  # the heads whose label is no class of the network
    "message",  # why there is no answer
)  # fmt: skip
# Of one head's answer; 0, -1 and NaN where it predicted nothing. "raw" is at temperature 1.
HEAD_DETAILS = np.dtype(
    [
        ("top", "<i2", (TOP,)),  # class numbers, the best first; -1 where there are fewer classes
        ("top_prob", "<f4", (TOP,)),
        ("rank", "<i2"),  # of the true class, 1 = best; classes + 1 if it is none; 0 if unknown
        ("nll", "<f4"),  # -log p(true class), nats; NaN if unknown or none of the classes
        ("brier", "<f4"),  # squared distance to the one-hot truth; NaN likewise
        ("raw_prob", "<f4"),
        ("raw_nll", "<f4"),
        ("raw_brier", "<f4"),
    ]
)
DETAILS = np.dtype([(head, HEAD_DETAILS) for head in HEADS])


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A finished evaluation of N images, read back.

    `rows` has `PER_IMAGE_COLUMNS` but images and messages, texts as categories, "" where there is
    nothing, numbers as float32. `details` (N,) of `DETAILS` is read as it is needed.
    `models["stage1"]` and `models["specialists"][species]` each have `heads`, the class names per
    head, and `calibration`, per head `temperature`, `threshold` and `conformal_quantile`.
    """

    folder: Path
    rows: pd.DataFrame
    details: np.ndarray
    models: dict[str, Any]

    def class_names(self, head: str, species: str) -> list[str]:
        """Return the classes of a head; none where there is no such specialist or head."""
        if head == "species":
            return list(self.models["stage1"]["heads"]["species"])
        return list(self.models["specialists"].get(species, {}).get("heads", {}).get(head, []))

    def fitted(self, head: str, species: str) -> dict[str, float | None]:
        """Return what was fitted for a head on the validation split; empty where nothing was."""
        model = self.models["specialists"].get(species, {})
        model = self.models["stage1"] if head == "species" else model
        return dict(model.get("calibration", {}).get(head, {}))

    def image_names(self, places: np.ndarray) -> list[str]:
        """Return the names, `<species>/<record>/<file>`, of the rows at `places` (M,)."""
        path = self.folder / PER_IMAGE
        names = pd.read_csv(path, usecols=["image"], dtype=str, keep_default_na=False)["image"]
        return [plain_cell(name) for name in names.iloc[places]]


def read_evaluation(folder: str | Path, per_image: Path | None = None) -> Evaluation:
    """Read the files of a finished evaluation; `UserError` where one is missing or another's.

    `per_image` is the table while it has not its final name yet.
    """
    paths = {name: Path(folder) / name for name in (PER_IMAGE, DETAILS_FILE, MODELS)}
    paths[PER_IMAGE] = per_image or paths[PER_IMAGE]
    for name, path in paths.items():
        if not path.is_file():
            raise UserError(
                f"{folder} holds no {name}; run: python inference_engine.py evaluate "
                f"--out-dir {folder} (--force where an earlier version made the evaluation)"
            )
    try:
        rows = read_rows(paths[PER_IMAGE])
    except ValueError as error:
        what = f"{paths[PER_IMAGE]} is no table of an evaluation of this version ({error})"
        raise UserError(f"{what}; evaluate again with --force") from error
    details = np.load(paths[DETAILS_FILE], mmap_mode="r", allow_pickle=False)
    if details.dtype != DETAILS or len(details) != len(rows):
        raise UserError(f"{paths[DETAILS_FILE]} does not belong to the table beside it")
    models = read_json(paths[MODELS])
    stage1, own = models.get("stage1"), models.get("specialists")
    if not isinstance(own, dict) or not all(isinstance(t, dict) for t in (stage1, *own.values())):
        raise UserError(f"{paths[MODELS]} does not describe the networks of an evaluation")
    return Evaluation(Path(folder), rows, details, models)


def describe_answers(logits: np.ndarray, true: np.ndarray, temperature: float) -> np.ndarray:
    """Describe a head's answers: logits (B, K) and true classes (B,) -> (B,) of `HEAD_DETAILS`.

    `true` may be `UNKNOWN` or `NOT_A_CLASS`; rows of logits that are not finite stay empty.
    """
    found = empty_details(len(logits))["species"]
    rows = np.flatnonzero(np.isfinite(logits).all(axis=1))
    z, y = np.asarray(logits)[rows], np.asarray(true)[rows]
    order = np.argsort(-z, axis=1, kind="stable")  # of equals the first is the better
    best = order[:, :TOP]
    raw = _softmax_parts(z, 1.0)
    tempered = raw if temperature == 1.0 else _softmax_parts(z, temperature)
    found["top"][rows, : best.shape[1]] = best
    found["top_prob"][rows, : best.shape[1]] = np.exp(
        np.take_along_axis(tempered[0], best, axis=1) - tempered[1][:, None]
    )
    found["raw_prob"][rows] = np.exp(-raw[1])  # of the best class, whose shifted logit is 0
    found["rank"][rows[y == NOT_A_CLASS]] = z.shape[1] + 1
    known = np.flatnonzero(y >= 0)
    y, rows = y[known], rows[known]
    found["rank"][rows] = 1 + (order[known] == y[:, None]).argmax(axis=1)
    for prefix, (scaled, log_sum, squares) in (("", tempered), ("raw_", raw)):
        log_p = scaled[known, y] - log_sum[known]
        found[f"{prefix}nll"][rows] = -log_p
        found[f"{prefix}brier"][rows] = squares[known] - 2.0 * np.exp(log_p) + 1.0
    return found


def _softmax_parts(z: np.ndarray, temperature: float) -> tuple[Floats, Floats, Floats]:
    """Return scaled logits (B, K), their log sum exp (B,) and the sum of squared probabilities."""
    scaled = shifted(np.asarray(z, np.float64)) / temperature
    e = np.exp(scaled)
    total = e.sum(axis=1)
    return scaled, np.log(total), np.einsum("bk,bk->b", e, e) / total**2


def empty_details(num: int) -> np.ndarray:
    """Return (num,) of `DETAILS` where no head predicted anything."""
    found = np.zeros((num, len(HEADS)), HEAD_DETAILS)
    found["top"] = UNKNOWN
    for name in ("top_prob", "nll", "brier", "raw_prob", "raw_nll", "raw_brier"):
        found[name] = np.nan
    return found.view(DETAILS)[:, 0]


def class_numbers(labels: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Number labels by their place in `names`: (n,) int64, `UNKNOWN` for "", else `NOT_A_CLASS`."""
    number = {name: place for place, name in enumerate(names)} | {"": UNKNOWN}
    return np.array([number.get(label, NOT_A_CLASS) for label in labels], np.int64)


def read_rows(path: Path) -> pd.DataFrame:
    """Read the rows with texts as categories; `*_correct` becomes 1, 0, NaN.

    As text first: `dtype="category"` would turn the record 000007 into the number 7.
    """
    columns = [c for c in PER_IMAGE_COLUMNS if c not in ("image", "message")]
    numbers = [c for c in columns if c.endswith(("_correct", "_prob"))]
    texts = [c for c in columns if c not in numbers]
    rows = pd.read_csv(
        path,
        usecols=columns,
        dtype={**dict.fromkeys(texts, "str"), **dict.fromkeys(numbers, "float32")},
        keep_default_na=False,
        na_values={**{c: [] for c in texts}, **{c: [""] for c in numbers}},
    )
    rows = rows.astype(dict.fromkeys(texts, "category"))
    for column in texts:
        rows[column] = rows[column].cat.rename_categories(plain_cell)
    return rows


# ---- One head's answers over all species ----

_PER_PHOTO = (
    *("species", "split", "record", "true", "is_predicted", "is_right", "is_species_right"),
    "details",
)


@dataclass(frozen=True, eq=False)
class HeadAnswers:
    """M photos with a known label that stage 1 answered, of species whose specialist has the head.

    The classes of all species are numbered together, since (cat, black) is not (dog, black):
    `classes[k]` is (species, label), for the head "species" twice the species. Those of a group's
    network stand first, then the labels that it has no class for. A group is a species; the head
    "species" has one group of all.
    """

    head: str
    species_names: tuple[str, ...]
    classes: tuple[tuple[str, str], ...]
    first_class: Whole  # (G,) the number of each group's first class
    num_classes: Whole  # (G,) classes of each group's network
    commonest: Whole  # (G,) the class most frequent among the training labels; -1 = none known
    species: Whole  # (M,) true species, places in `species_names`
    split: Whole  # (M,) places in `SPLITS`; -1 elsewhere
    record: Whole  # (M,) number of the animal
    true: Whole  # (M,) class numbers
    is_predicted: Truths  # (M,) not where the species was wrong
    is_right: Truths  # (M,) false where nothing was predicted
    is_species_right: Truths  # (M,)
    details: np.ndarray  # (M,) of `HEAD_DETAILS`

    def __len__(self) -> int:
        return len(self.true)

    @property
    def group(self) -> Whole:
        """Return each photo's group (M,)."""
        return np.zeros_like(self.species) if self.head == "species" else self.species

    @property
    def top(self) -> Whole:
        """Return the class numbers of the best answers (M, TOP), -1 where there are fewer."""
        own = self.details["top"].astype(np.int64)
        return np.where(own < 0, UNKNOWN, own + self.first_class[self.group][:, None])

    def where(self, chosen: Truths) -> HeadAnswers:
        """Keep the photos marked in (M,) bool."""
        kept: dict[str, Any] = {name: getattr(self, name)[chosen] for name in _PER_PHOTO}
        return replace(self, **kept)

    def predicted(self) -> HeadAnswers:
        """Keep the photos that the head predicted."""
        return self if self.is_predicted.all() else self.where(self.is_predicted)

    def of_split(self, split: str) -> HeadAnswers:
        """Keep the photos of a split; "all" keeps everything."""
        return self if split == "all" else self.where(self.split == SPLITS.index(split))

    def per_species(self) -> dict[str, HeadAnswers]:
        """Cut by true species; species without a photo are left out."""
        present = np.unique(self.species).tolist()
        return {self.species_names[k]: self.where(self.species == k) for k in present}


def read_heads(evaluation: Evaluation) -> dict[str, HeadAnswers]:
    """Gather every head's answers; heads without any label or specialist have no photo."""
    rows = evaluation.rows
    split = rows["split"].cat.set_categories(SPLITS).cat.codes.to_numpy().astype(np.int64)
    animals = rows.groupby(["species", "record"], observed=True)
    record = animals.ngroup().to_numpy().astype(np.int64)  # of two species, equal names are two
    return {head: _read_head(evaluation, head, split, record) for head in HEADS}


def _read_head(evaluation: Evaluation, head: str, split: Whole, record: Whole) -> HeadAnswers:
    rows, is_species = evaluation.rows, head == "species"
    names = tuple(map(str, rows["species"].cat.categories))
    column = rows["species" if is_species else f"{head}_true"]
    labels = [str(name) for name in column.cat.categories]
    species = rows["species"].cat.codes.to_numpy().astype(np.int64)
    label = column.cat.codes.to_numpy().astype(np.int64)
    # also of a species that stage 1 never knew: its photos are lost, not left out
    has_head = np.array([bool(evaluation.class_names(head, name)) for name in names], bool)
    is_known = np.ones(len(rows), bool) if is_species else has_head[species]
    is_known &= (column != "").to_numpy()

    group = np.zeros_like(species) if is_species else species
    num_groups = 1 if is_species else len(names)
    number = np.full((num_groups, len(labels)), UNKNOWN, np.int64)  # of each label's class
    classes: list[tuple[str, str]] = []
    first, own = np.zeros((2, num_groups), np.int64)
    commonest = np.full(num_groups, UNKNOWN, np.int64)
    for g in range(num_groups):
        of_group = is_known & (group == g)
        present = sorted(labels[code] for code in np.unique(label[of_group]).tolist())
        network = evaluation.class_names(head, "" if is_species else names[g])
        listed = [*network, *(name for name in present if name not in set(network))]
        first[g], own[g] = len(classes), len(network)
        places = class_numbers(labels, listed)
        number[g] = np.where(places >= 0, places + first[g], UNKNOWN)
        classes += [(name if is_species else names[g], name) for name in listed]
        trained_on = label[of_group & (split == SPLITS.index("train"))]
        counts = np.bincount(trained_on, minlength=len(labels))
        if counts.any():  # ties: the first by name
            best = np.flatnonzero(counts == counts.max()).tolist()
            commonest[g] = int(number[g][min(best, key=labels.__getitem__)])
    species_right, correct = (
        rows[f"{name}_correct"].to_numpy()
        for name in ("species", head)  # 1, 0 or NaN
    )
    kept = is_known & ~np.isnan(species_right)
    return HeadAnswers(
        head=head,
        species_names=names,
        classes=tuple(classes),
        first_class=first,
        num_classes=own,
        commonest=commonest,
        species=species[kept],
        split=split[kept],
        record=record[kept],
        true=number[group[kept], label[kept]],
        is_predicted=~np.isnan(correct[kept]),
        is_right=correct[kept] == 1.0,
        is_species_right=species_right[kept] == 1.0,
        details=evaluation.details[head][kept],
    )


def share(values: np.ndarray) -> float | None:
    """Average numbers or truths; None where there are none."""
    return float(values.mean(dtype=np.float64)) if len(values) else None
