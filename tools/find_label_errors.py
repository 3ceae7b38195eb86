"""List labels that are likely wrong, the most suspicious first, to be looked at by a person.

    python -m tools.find_label_errors --species cat --features breed color1
    python -m tools.find_label_errors --plant 0.05    # how good is the finder on this data?
    python -m tools.find_label_errors --config configs/label_errors/demo.toml

Writes label_errors.csv and label_errors.json into OUT; no annotation is changed. Each record is
judged by a model that saw none of its photos: logistic regressions, in FOLDS folds over records, on
features of stage 1, which was trained on species alone. A specialist saw the labels, wrong ones
too, so it judges only records of the validation and test parts: give its finished evaluation as
EVALUATION. `--plant SHARE` gives random other labels to a share of the records, tells how many of
the first SHARE in the ranking are such, and writes label_errors_planted.json, nothing else.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from petface import files
from petface.analysis.features import features_of_photos
from petface.analysis.label_errors import (
    Suspects,
    describe_planted,
    fuse_photos,
    judged_records,
    plant_flips,
    predict_out_of_sample,
    rank_suspects,
)
from petface.data.dataset import Dataset, load_dataset
from petface.data.loading import FileImages, worker_count
from petface.data.splits import SPLITS
from petface.errors import SettingsError, UserError, run_script
from petface.evaluation.details import SUMMARY, class_numbers, read_evaluation
from petface.models import checkpoints
from petface.models.network import Network
from petface.report import report_line
from petface.settings import (
    Fraction,
    NonNegative,
    Positive,
    PositiveFloat,
    Seed,
    Settings,
    read_settings,
)
from petface.taxonomy import FEATURES as ALL_FEATURES
from petface.taxonomy import UNKNOWN

# ---- Data ----
IMAGES_ROOT: str = "data/PetFace/images"  # <species>/<record>/<image>
ANNOTATIONS_ROOT: str = "data/PetFace/annotations"  # <species>.csv
SPLITS_FILE: str = ""  # "" = splits.csv beside the images
SPLIT_SEED: Seed = 0  # used when splits.csv is made, never after
SPECIES: str | tuple[str, ...] = "all"  # one species, several, or "all"
FEATURES: tuple[str, ...] = ("breed", "color", "color1", "color2", "gender")

# ---- Judge ----
CHECKPOINT: str = "runs/cnn_folder_224_raw_aug/best.pt"  # stage 1
EVALUATION: str = ""  # OUT_DIR of a finished evaluation: judge by it, its train part left out
FOLDS: Positive = 5  # 2 or more; each record is judged by a model of the other folds
GRID: Positive = 2  # cells a side that feature maps are averaged over; memory grows as its square
INVERSE_STRENGTH: PositiveFloat = 0.01  # C of the regression; smaller = smoother
MIN_RECORDS: Positive = 3  # records of rarer classes are not judged
PHOTOS_PER_RECORD: NonNegative = 0  # at most, the first ones; 0 = all
SEED: Seed = 0  # of the folds and of planted flips

# ---- Measurement ----
PLANT: Fraction = 0.0  # share of the records whose label is flipped, to measure; 0 = list suspects
PLANT_SEEDS: Positive = 3  # repetitions

# ---- Run ----
OUT: str = "runs/label_errors"  # earlier files there are replaced
DEVICE: str = "auto"  # auto, cpu, cuda, cuda:1
BATCH_SIZE: Positive = 64
NUM_WORKERS: int = -1  # decoding processes; 0 = a thread, -1 = by the number of cores

COLUMNS = (
    "species", "record", "split", "feature", "label", "suggested", "p_label", "p_suggested",
    "margin", "confident", "num_photos", "image",
)  # fmt: skip
LABEL_ERRORS, FIGURES = "label_errors.csv", "label_errors.json"
PLANTED = "label_errors_planted.json"
FOLDED = "K folds over records, logistic regression on features of stage 1 (saw species only)"
EVALUATED = "evaluation of both stages, records of the validation and test parts alone"
CRITERION = "self-confidence; confident by the confident joint (Northcutt et al. 2021, 1911.00068)"

# (feature, labels (R,), number of classes) -> (R, K) probabilities, NaN where it cannot tell
Judge = Callable[[str, np.ndarray, int], np.ndarray]


def main() -> None:
    settings = read_settings(sys.modules[__name__])
    if settings.FOLDS < 2:
        raise SettingsError(f"FOLDS must be 2 or more, not {settings.FOLDS}")
    if unknown := [name for name in settings.FEATURES if name not in ALL_FEATURES]:
        raise SettingsError(f"FEATURES: no {unknown[0]!r}; there are: {', '.join(ALL_FEATURES)}")
    start = time.perf_counter()
    dataset = load_dataset(
        settings.IMAGES_ROOT,
        settings.ANNOTATIONS_ROOT,
        splits_file=settings.SPLITS_FILE,
        seed=settings.SPLIT_SEED,
    )
    heads = choose_heads(settings, dataset)
    judge = judge_by_evaluation if settings.EVALUATION else judge_by_folds
    work = measure_planted if settings.PLANT > 0 else list_suspects
    work(settings, dataset, {name: judge(settings, dataset, name) for name in heads}, heads)
    print(f"seconds: {time.perf_counter() - start:.0f}")


def choose_heads(s: Settings, dataset: Dataset) -> dict[str, list[str]]:
    """Name the attributes to judge of each species: those asked for that have two known classes."""
    names = [s.SPECIES] if isinstance(s.SPECIES, str) else list(s.SPECIES)
    chosen = dataset.catalog.classes if names == ["all"] else names
    heads = {}
    for species in chosen:
        dataset.image_labels(species)  # refuses an unknown species
        table = dataset.annotations.get(species)
        known = table.vocabularies if table else {}
        found = [feature for feature in s.FEATURES if len(known.get(feature, ())) > 1]
        if found:
            heads[species] = found
    if not heads:
        raise UserError(
            f"{s.ANNOTATIONS_ROOT}: nothing to judge, no species of {', '.join(chosen)} has two "
            f"known classes of {', '.join(s.FEATURES)}"
        )
    return heads


def records_of(dataset: Dataset, species: str) -> slice:
    """Give the places of a species' records in the catalog."""
    number = dataset.catalog.classes.index(species)
    first, end = np.searchsorted(dataset.catalog.record_class, [number, number + 1]).tolist()
    return slice(first, end)


def labels_of(dataset: Dataset, species: str, feature: str) -> np.ndarray:
    """Give the class of each of a species' records, (R,), -1 unknown."""
    names = dataset.catalog.record_names[records_of(dataset, species)]
    return dataset.annotations[species].align(names)[feature].astype(np.int64)


def judge_by_folds(s: Settings, dataset: Dataset, species: str) -> Judge:
    """Compute a species' features once; judge any labels by models of the other folds."""
    content = checkpoints.read_stage1(s.CHECKPOINT)
    network = Network.build(content.model, content.preprocessing, s.DEVICE, "fp32")
    places, _ = dataset.image_labels(species)
    record = dataset.catalog.record_index[places] - records_of(dataset, species).start
    if s.PHOTOS_PER_RECORD:  # the photos of a record are consecutive
        number = np.arange(len(record)) - np.searchsorted(record, record)
        places, record = (a[number < s.PHOTOS_PER_RECORD] for a in (places, record))
    features, readable = features_of_photos(
        network,
        content.model,
        FileImages(dataset.catalog, content.preprocessing),
        places,
        grid=s.GRID,
        batch_size=s.BATCH_SIZE,
        num_workers=worker_count(s.NUM_WORKERS),
        title=species,
    )

    def judge(_feature: str, labels: np.ndarray, num_classes: int) -> np.ndarray:
        return predict_out_of_sample(
            features,
            record[readable],
            labels,
            num_classes,
            num_folds=s.FOLDS,
            inverse_strength=s.INVERSE_STRENGTH,
            seed=s.SEED,
        )

    return judge


def judge_by_evaluation(s: Settings, dataset: Dataset, species: str) -> Judge:
    """Judge by what the specialist answered about validation and test photos, whatever the labels.

    The evaluation keeps five probabilities; what they leave is shared by the other classes.
    """
    evaluation = read_evaluation(s.EVALUATION)
    if evaluation.models["dataset"] != dataset.fingerprint():
        raise UserError(f"{s.EVALUATION} was made of other images, labels or splits")
    rows = evaluation.rows
    # The train part has taught the specialist its wrong labels.
    chosen = np.flatnonzero((rows["species"] == species) & (rows["split"] != "train"))
    names = dataset.catalog.record_names[records_of(dataset, species)]
    record = np.searchsorted(names, rows["record"].astype(str).to_numpy()[chosen])
    vocabularies = dataset.annotations[species].vocabularies

    def judge(feature: str, labels: np.ndarray, num_classes: int) -> np.ndarray:
        of_class = class_numbers(evaluation.class_names(feature, species), vocabularies[feature])
        details = evaluation.details[feature][chosen]
        rows_asked = np.flatnonzero(details["top"][:, 0] >= 0)
        probabilities = np.full((len(chosen), num_classes), np.nan)
        if len(rows_asked):
            top, p = details["top"][rows_asked], details["top_prob"][rows_asked].astype(float)
            p[top < 0] = 0.0
            rest = np.maximum(1 - p.sum(axis=1), 0) / max(num_classes - top.shape[1], 1)
            probabilities[rows_asked] = rest[:, None]
            for column in range(top.shape[1]):
                classes = np.where(top[:, column] >= 0, of_class[top[:, column]], -1)
                known = np.flatnonzero(classes >= 0)
                probabilities[rows_asked[known], classes[known]] = p[known, column]
        return fuse_photos(probabilities, record, len(labels))

    return judge


def list_suspects(
    s: Settings, dataset: Dataset, judges: dict[str, Judge], heads: dict[str, list[str]]
) -> None:
    """Write the suspects of every head, the least self-confident label first."""
    rows: list[tuple[object, ...]] = []
    figures = []
    for species, features in heads.items():
        for feature in features:
            names = dataset.annotations[species].vocabularies[feature]
            labels = labels_of(dataset, species, feature)
            probabilities = judges[species](feature, labels, len(names))
            judged = judged_records(labels, len(names), s.MIN_RECORDS)
            suspects = rank_suspects(probabilities, labels, judged)
            figure = {"species": species, "feature": feature, **figures_of(suspects, labels)}
            figures.append(figure)
            print(describe(figure))
            if figure["can_judge"]:
                rows += rows_of(dataset, species, feature, suspects, labels)
    rows.sort(key=lambda row: float(row[6]))
    out = Path(s.OUT)
    shown = [tuple(round(c, 6) if isinstance(c, float) else c for c in row) for row in rows]
    files.write_csv(out / LABEL_ERRORS, COLUMNS, shown)
    files.write_json(out / FIGURES, {**identity(s, dataset), **found_before(s, dataset, figures)})
    print(f"suspects: {len(rows)}\nconfident: {sum(int(row[9] == 1) for row in rows)}")
    print(f"list: {out / LABEL_ERRORS}\nfigures: {out / FIGURES}")
    if (out / SUMMARY).exists():  # beside an evaluation: its report shows the list
        print(report_line(out))


def figures_of(suspects: Suspects, labels: np.ndarray) -> dict[str, Any]:
    """Count the suspects of a head, and tell whether its judge knows more than the class counts."""
    counts = np.bincount(labels[suspects.record], minlength=1)
    num = len(suspects.record)
    accuracy = float((suspects.margin >= 0).mean()) if num else None
    majority = float(counts.max() / num) if num else None
    return {
        "num_known": int((labels != UNKNOWN).sum()),
        "num_judged": num,
        "agreement": accuracy,  # the most probable class is the given label
        "majority_share": majority,
        "can_judge": num > 0 and accuracy > majority,
        "num_suspects": int((suspects.margin < 0).sum()),
        "num_confident": int((suspects.is_confident & (suspects.margin < 0)).sum()),
    }


def describe(figure: dict[str, Any]) -> str:
    """Lay the figures of a head out in a line."""
    name = f"{figure['species']} {figure['feature']}:"
    if not figure["num_judged"]:
        return f"{name} no record to judge"
    told = f"{name} {figure['num_judged']} of {figure['num_known']} labelled records judged, "
    told += f"{figure['agreement'] * 100:.1f} % as labelled"
    if not figure["can_judge"]:
        return f"{told}: no better than the most frequent class, so nothing is suggested"
    return f"{told}; {figure['num_suspects']} suspects, {figure['num_confident']} of them confident"


def rows_of(
    dataset: Dataset, species: str, feature: str, suspects: Suspects, labels: np.ndarray
) -> list[tuple[object, ...]]:
    """Build the rows of a head, those whose suggestion is more probable than their label."""
    catalog, where = dataset.catalog, records_of(dataset, species)
    names = dataset.annotations[species].vocabularies[feature]
    first = np.searchsorted(catalog.record_index, np.arange(where.start, where.stop + 1))
    rows: list[tuple[object, ...]] = []
    for place in np.flatnonzero(suspects.margin < 0).tolist():
        record = int(suspects.record[place])
        image = catalog.relative_path(int(first[record])).decode("utf-8", "backslashreplace")
        rows.append(
            (
                species,
                str(catalog.record_names[where.start + record]),
                SPLITS[dataset.record_split[where.start + record]],
                feature,
                names[labels[record]],
                names[suspects.suggested[place]],
                float(suspects.p_given[place]),
                float(suspects.p_suggested[place]),
                float(suspects.margin[place]),
                int(suspects.is_confident[place]),
                int(first[record + 1] - first[record]),
                image,
            )
        )
    return rows


def measure_planted(
    s: Settings, dataset: Dataset, judges: dict[str, Judge], heads: dict[str, list[str]]
) -> None:
    """Plant flips, rank, and tell how many of the first are planted: per head, seed and pooled."""
    found: list[dict[str, Any]] = []
    for species, features in heads.items():
        for feature in features:
            num_classes = len(dataset.annotations[species].vocabularies[feature])
            labels = labels_of(dataset, species, feature)
            judged = judged_records(labels, num_classes, s.MIN_RECORDS)
            if s.EVALUATION:
                judged &= dataset.record_split[records_of(dataset, species)] > 0
            for seed in range(s.SEED, s.SEED + s.PLANT_SEEDS):
                flipped, is_planted = plant_flips(labels, judged, num_classes, s.PLANT, seed)
                suspects = rank_suspects(
                    judges[species](feature, flipped, num_classes), flipped, judged
                )
                figures = describe_planted(is_planted[suspects.record], s.PLANT)
                if figures["num_top"]:
                    found.append({"species": species, "feature": feature, "seed": seed, **figures})
                    print(describe_precision(found[-1]))
    if not found:
        raise UserError(f"PLANT {s.PLANT}: no head has enough records to flip one; give more")
    pooled = pool(found)
    print(describe_precision({"species": "all", "feature": "heads", "seed": "all", **pooled}))
    print("labels that were wrong before count as misses: the share of wrong labels is higher")
    out = Path(s.OUT) / PLANTED
    files.write_json(out, {**identity(s, dataset), "pooled": pooled, "runs": found})
    print(f"precision: {pooled['precision']:.4f}\nfigures: {out}")


def pool(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Add the runs of heads and seeds up."""
    total = {
        name: sum(run[name] for run in runs)
        for name in ("num_records", "num_planted", "num_top", "num_found")
    }
    return {
        **total,
        "precision": total["num_found"] / total["num_top"],
        "chance": total["num_planted"] / total["num_records"],
    }


def describe_precision(run: dict[str, Any]) -> str:
    """Lay the measurement of a run out in a line."""
    return (
        f"{run['species']} {run['feature']}, seed {run['seed']}: {run['num_found']} of the first "
        f"{run['num_top']} were planted, {run['precision'] * 100:.0f} % "
        f"(by chance {run['chance'] * 100:.0f} %)"
    )


def identity(s: Settings, dataset: Dataset) -> dict[str, Any]:
    """Say what a list or a measurement is of."""
    return {
        "out_of_sample": EVALUATED if s.EVALUATION else FOLDED,
        "criterion": CRITERION,
        "settings": s.as_dict(),
        "dataset": dataset.fingerprint(),
    }


def found_before(s: Settings, dataset: Dataset, figures: list[dict[str, Any]]) -> dict[str, Any]:
    """Add the heads' figures, and what `--plant` measured before on the same data, if it was."""
    path, expected = Path(s.OUT) / PLANTED, None
    if path.is_file():
        planted = json.loads(path.read_text(encoding="utf-8"))
        free = {
            "PLANT",
            "PLANT_SEEDS",
            "SPECIES",
            "FEATURES",
            "DEVICE",
            "BATCH_SIZE",
            "NUM_WORKERS",
        }
        ours, theirs = (
            {k: v for k, v in json.loads(json.dumps(values)).items() if k not in free}
            for values in (s.as_dict(), planted["settings"])
        )
        if planted["dataset"] == dataset.fingerprint() and ours == theirs:
            expected = {**planted["pooled"], "runs": planted["runs"]}
    return {
        "num_records": sum(figure["num_judged"] for figure in figures),
        "heads": figures,
        "expected_precision": expected,  # of planted flips; None = not measured, see --plant
    }


if __name__ == "__main__":
    run_script(main)
