"""The files of an evaluation, row by row, and each head's answers: what every metric counts from.

`petface_eval_per_image.csv` holds one row per image. `petface_eval_details.npy` holds one element
of `DETAILS` per row, in the same order: what does not fit a readable table. The names behind its
class numbers, and what was fitted for each head, are in `petface_eval_models.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from petface.calibration import shifted
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
# Of one head's answer; 0, -1 and NaN where it predicted nothing.
HEAD_DETAILS = np.dtype(
    [
        ("top", "<i2", (TOP,)),  # class numbers, the best first; -1 where there are fewer classes
        ("top_prob", "<f4", (TOP,)),
        ("rank", "<i2"),  # of the true class, 1 = best; classes + 1 if it is none; 0 if unknown
        ("nll", "<f4"),  # -log p(true class), nats; NaN if unknown or none of the classes
        ("brier", "<f4"),  # squared distance to the one-hot truth; NaN likewise
        ("raw_prob", "<f4"),  # of the best, at temperature 1
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

    def model(self, head: str, species: str) -> dict[str, Any]:
        """Return the network of a head; empty where the species has no specialist."""
        own = self.models["specialists"].get(species, {})
        return self.models["stage1"] if head == "species" else own

    def class_names(self, head: str, species: str) -> list[str]:
        """Return the classes of a head; none where there is no such specialist or head."""
        return list(self.model(head, species).get("heads", {}).get(head, []))

    def fitted(self, head: str, species: str) -> dict[str, Any]:
        """Return what was fitted for a head on the validation split; empty where nothing was."""
        return dict(self.model(head, species).get("calibration", {}).get(head, {}))

    def image_names(self, places: np.ndarray) -> list[str]:
        """Return the names, `<species>/<record>/<file>`, of the rows at `places` (M,)."""
        path = self.folder / PER_IMAGE
        names = pd.read_csv(path, usecols=["image"], dtype=str, keep_default_na=False)["image"]
        return [plain_cell(name) for name in names.iloc[places]]

    @cached_property
    def records(self) -> Whole:
        """Number the animals of the rows from 0, each (species, record) once: (N,)."""
        animals = self.rows.groupby(["species", "record"], observed=True)  # not by record alone
        return animals.ngroup().to_numpy().astype(np.int64)

    @cached_property
    def heads(self) -> dict[str, HeadAnswers]:
        """Gather every head's answers; heads without any label or specialist have no photo."""
        return {head: _read_head(self, head) for head in HEADS}


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
        raise UserError(f"{paths[DETAILS_FILE]} does not fit the table beside it; evaluate again")
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
    best, from_best = order[:, :TOP], shifted(z.astype(np.float64))
    e = np.exp(from_best / temperature)
    total = e.sum(axis=1)
    log_p = from_best / temperature - np.log(total)[:, None]
    found["top"][rows, : best.shape[1]] = best
    found["top_prob"][rows, : best.shape[1]] = np.exp(np.take_along_axis(log_p, best, axis=1))
    found["raw_prob"][rows] = np.exp(-np.log(np.exp(from_best).sum(axis=1)))
    found["rank"][rows[y == NOT_A_CLASS]] = z.shape[1] + 1
    known = np.flatnonzero(y >= 0)
    y, rows = y[known], rows[known]
    found["rank"][rows] = 1 + (order[known] == y[:, None]).argmax(axis=1)
    squares = np.einsum("bk,bk->b", e, e)[known] / total[known] ** 2
    found["nll"][rows] = -log_p[known, y]
    found["brier"][rows] = squares - 2.0 * np.exp(log_p[known, y]) + 1.0
    return found


def empty_details(num: int) -> np.ndarray:
    """Return (num,) of `DETAILS` where no head predicted anything."""
    found = np.zeros((num, len(HEADS)), HEAD_DETAILS)
    found["top"] = UNKNOWN
    for name in ("top_prob", "nll", "brier", "raw_prob"):
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
    numbers = [c for c in PER_IMAGE_COLUMNS if c.endswith(("_correct", "_prob"))]
    texts = [c for c in PER_IMAGE_COLUMNS if c not in (*numbers, "image", "message")]
    rows = pd.read_csv(
        path,
        usecols=[*texts, *numbers],
        dtype=dict.fromkeys(texts, "str") | dict.fromkeys(numbers, "float32"),
        keep_default_na=False,
        na_values=dict.fromkeys(numbers, [""]),
    )
    for column in texts:
        rows[column] = rows[column].astype("category").cat.rename_categories(plain_cell)
    return rows


# ---- One head's answers over all species ----


@dataclass(frozen=True, eq=False)
class HeadAnswers:
    """M photos with a known label that stage 1 answered, of species whose specialist has the head.

    The classes of all species are numbered together, since (cat, black) is not (dog, black):
    `classes[k]` is (species, label), for the head "species" twice the species. Those of a network
    stand first, then the labels that it has no class for.
    """

    head: str
    species_names: tuple[str, ...]
    classes: tuple[tuple[str, str], ...]
    species: Whole  # (M,) true species, places in `species_names`; as all that follows
    split: Whole  # places in `SPLITS`; -1 elsewhere
    record: Whole  # number of the animal
    true: Whole  # class numbers
    first_class: Whole  # the number of the first class of the photo's network
    num_classes: Whole  # of that network
    is_commonest: Truths  # the label most frequent among the training labels of the species
    is_predicted: Truths  # not where the species was wrong
    is_right: Truths  # false where nothing was predicted
    details: np.ndarray  # of `HEAD_DETAILS`

    def __len__(self) -> int:
        return len(self.true)

    @property
    def top(self) -> Whole:
        """Return the class numbers of the best answers (M, TOP), -1 where there are fewer."""
        own = self.details["top"].astype(np.int64)
        return np.where(own < 0, UNKNOWN, own + self.first_class[:, None])

    def where(self, chosen: Truths) -> HeadAnswers:
        """Keep the photos marked in (M,) bool."""
        per_photo = [field.name for field in fields(self)][3:]
        return replace(self, **{name: getattr(self, name)[chosen] for name in per_photo})

    def predicted(self) -> HeadAnswers:
        """Keep the photos that the head predicted."""
        return self.where(self.is_predicted)

    def of_split(self, split: str) -> HeadAnswers:
        """Keep the photos of a split; "all" keeps everything."""
        return self if split == "all" else self.where(self.split == SPLITS.index(split))

    def per_species(self) -> dict[str, HeadAnswers]:
        """Cut by true species; species without a photo are left out."""
        present = np.unique(self.species).tolist()
        return {self.species_names[k]: self.where(self.species == k) for k in present}


def _read_head(evaluation: Evaluation, head: str) -> HeadAnswers:
    rows, is_species = evaluation.rows, head == "species"
    names = tuple(map(str, rows["species"].cat.categories))
    labels = rows["species" if is_species else f"{head}_true"]
    species = rows["species"].cat.codes.to_numpy().astype(np.int64)
    split = rows["split"].cat.set_categories(SPLITS).cat.codes.to_numpy().astype(np.int64)
    # also of a species that stage 1 never knew: its photos are lost, not left out
    has_head = np.array([is_species or bool(evaluation.class_names(head, n)) for n in names], bool)
    is_known = has_head[species] & (labels != "").to_numpy()
    classes: list[tuple[str, str]] = []
    true, first_class, num_classes, commonest = np.full((4, len(rows)), UNKNOWN, np.int64)
    for number, name in enumerate([""] if is_species else names):
        own = is_known & (is_species | (species == number))
        present, network = sorted(labels[own].unique()), evaluation.class_names(head, name)
        listed = [*network, *sorted({*present} - {*network})]
        first_class[own], num_classes[own] = len(classes), len(network)
        places = labels[own].cat.set_categories(present).cat.codes
        true[own] = len(classes) + class_numbers(present, listed)[places]
        trained_on = labels[own & (split == SPLITS.index("train"))].cat.set_categories(present)
        for label in trained_on.mode()[:1]:  # ties: the first by name
            commonest[own] = len(classes) + listed.index(label)
        classes += [(name or label, label) for label in listed]
    species_right, right = (rows[f"{name}_correct"].to_numpy() for name in ("species", head))
    answers = HeadAnswers(
        head=head,
        species_names=names,
        classes=tuple(classes),
        species=species,
        split=split,
        record=evaluation.records,
        true=true,
        first_class=first_class,
        num_classes=num_classes,
        is_commonest=true == commonest,
        is_predicted=~np.isnan(right),
        is_right=right == 1.0,
        details=evaluation.details[head],
    )
    return answers.where(is_known & ~np.isnan(species_right))


def share(values: np.ndarray) -> float | None:
    """Average numbers or truths; None where there are none."""
    return float(values.mean(dtype=np.float64)) if len(values) else None
