"""List labels that are likely wrong, the most suspicious first, to be looked at by a person.

    python -m tools.find_label_errors --species cat --features breed color1
    python -m tools.find_label_errors --config configs/label_errors/demo.toml

Writes label_errors.csv and label_errors.json into OUT; no annotation is changed. Each record is
judged by a model that saw none of its photos: logistic regressions, in FOLDS folds over records, on
features of stage 1, which was trained on species alone. A specialist saw the labels, wrong ones
too, so it judges only records of the validation and test parts: give its finished evaluation as
EVALUATION.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from petface import files
from petface.analysis import label_errors
from petface.analysis.label_errors import Head, Predict
from petface.data.dataset import Dataset, load_dataset
from petface.data.loading import worker_count
from petface.errors import SettingsError, UserError, run_script
from petface.evaluation.details import SUMMARY, read_evaluation
from petface.models import checkpoints
from petface.models.network import Network
from petface.report import report_line
from petface.settings import (
    NonNegative,
    Positive,
    PositiveFloat,
    Seed,
    Settings,
    read_settings,
)
from petface.taxonomy import FEATURES as ALL_FEATURES

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
SEED: Seed = 0  # of the folds

# ---- Run ----
OUT: str = "runs/label_errors"  # earlier files there are replaced
DEVICE: str = "auto"  # auto, cpu, cuda, cuda:1
BATCH_SIZE: Positive = 64
NUM_WORKERS: int = -1  # decoding processes; 0 = a thread, -1 = by the number of cores

LABEL_ERRORS, FIGURES = "label_errors.csv", "label_errors.json"
FOLDED = "K folds over records, logistic regression on features of stage 1 (saw species only)"
EVALUATED = "evaluation of both stages, records of the validation and test parts alone"
CRITERION = "self-confidence; confident by the confident joint (Northcutt et al. 2021, 1911.00068)"


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
    names = [settings.SPECIES] if isinstance(settings.SPECIES, str) else list(settings.SPECIES)
    chosen = dataset.catalog.classes if names == ["all"] else names
    heads = [
        head
        for species in chosen
        for head in label_errors.heads_of(dataset, species, settings.FEATURES)
    ]
    if not heads:
        raise UserError(
            f"{settings.ANNOTATIONS_ROOT}: nothing to judge, no species of {', '.join(chosen)} has "
            f"two known classes of {', '.join(settings.FEATURES)}"
        )
    if settings.EVALUATION:
        evaluation = read_evaluation(settings.EVALUATION)
        by_evaluation = label_errors.evaluated_probabilities(evaluation, dataset)
        judges = {head.species: by_evaluation for head in heads}
    else:
        wanted = dict.fromkeys(head.species for head in heads)
        judges = {species: judge_by_folds(settings, dataset, species) for species in wanted}
    list_suspects(settings, dataset, judges, heads)
    print(f"seconds: {time.perf_counter() - start:.0f}")


def judge_by_folds(s: Settings, dataset: Dataset, species: str) -> Predict:
    """Compute a species' features once; judge any labels by models of the other folds."""
    content = checkpoints.read_stage1(s.CHECKPOINT)
    network = Network.build(content.model, content.preprocessing, s.DEVICE, "fp32")
    places, _ = dataset.image_labels(species)
    record = dataset.catalog.record_index[places]
    record = record - record[0]
    if s.PHOTOS_PER_RECORD:  # the photos of a record are consecutive
        number = np.arange(len(record)) - np.searchsorted(record, record)
        places, record = (a[number < s.PHOTOS_PER_RECORD] for a in (places, record))
    features, readable = label_errors.features_of_photos(
        network,
        content.model,
        dataset,
        places,
        grid=s.GRID,
        batch_size=s.BATCH_SIZE,
        num_workers=worker_count(s.NUM_WORKERS),
        title=species,
    )

    def predict(head: Head, labels: np.ndarray) -> np.ndarray:
        return label_errors.predict_out_of_sample(
            features,
            record[readable],
            labels,
            len(head.names),
            num_folds=s.FOLDS,
            inverse_strength=s.INVERSE_STRENGTH,
            seed=s.SEED,
        )

    return predict


def list_suspects(
    s: Settings, dataset: Dataset, judges: dict[str, Predict], heads: list[Head]
) -> None:
    """Write the suspects of every head, the least self-confident label first."""
    tables, figures = [], []
    for head in heads:
        probabilities = judges[head.species](head, head.labels)
        judged = label_errors.judged_records(head.labels, len(head.names), s.MIN_RECORDS)
        suspects = label_errors.rank_suspects(probabilities, head.labels, judged)
        figure = label_errors.summarise_suspects(head, suspects)
        figures.append(figure)
        print(describe(figure))
        table = label_errors.suspect_rows(dataset, head, suspects)
        tables.append(table if figure["can_judge"] else table[:0])
    rows = pd.concat(tables).sort_values("p_label", kind="stable")
    out = Path(s.OUT)
    files.write_csv(out / LABEL_ERRORS, list(rows), rows.round(6).itertuples(index=False))
    told = {
        "out_of_sample": EVALUATED if s.EVALUATION else FOLDED,
        "criterion": CRITERION,
        "settings": s.as_dict(),
        "dataset": dataset.fingerprint(),
        "num_records": sum(figure["num_judged"] for figure in figures),
        "heads": figures,
    }
    files.write_json(out / FIGURES, told)
    print(f"suspects: {len(rows)}\nconfident: {rows['confident'].sum()}")
    print(f"list: {out / LABEL_ERRORS}\nfigures: {out / FIGURES}")
    if (out / SUMMARY).exists():  # beside an evaluation: its report shows the list
        print(report_line(out))


def describe(figure: dict[str, Any]) -> str:
    """Format the figures of a head in a line."""
    name = f"{figure['species']} {figure['feature']}:"
    if not figure["num_judged"]:
        return f"{name} no record to judge"
    told = f"{name} {figure['num_judged']} of {figure['num_known']} labelled records judged, "
    told += f"{figure['agreement'] * 100:.1f} % as labelled"
    if not figure["can_judge"]:
        return f"{told}: no better than the most frequent class, so nothing is suggested"
    return f"{told}; {figure['num_suspects']} suspects, {figure['num_confident']} of them confident"


if __name__ == "__main__":
    run_script(main)
