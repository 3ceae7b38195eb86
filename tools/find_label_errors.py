"""List labels that are likely wrong, the most suspicious first, to be looked at by a person.

    python -m tools.find_label_errors --species cat --features breed color1
    python -m tools.find_label_errors --config configs/label_errors/demo.toml

Writes label_errors.csv and label_errors.json into OUT; no annotation is changed. Each record is
judged by a logistic regression that saw none of its photos, in FOLDS folds over records, on
features of stage 1, which learnt species alone. Records that these features learnt from are
counted, "contaminated: n of m records", and marked in the last column. What the specialists think
of the labels of the test split is in mistakes.csv of tools.analyse_errors.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from petface.errors import UserError, run_script  # isort: split

import numpy as np
import pandas as pd

from petface import files
from petface.analysis import label_errors
from petface.data.dataset import Dataset
from petface.data.fingerprint import contaminated, hashes_of, seen_by
from petface.data.loading import worker_count
from petface.evaluation.details import SUMMARY
from petface.models import checkpoints
from petface.models.network import Network
from petface.report import report_line
from petface.settings import Positive, PositiveFloat, Range, Seed, Settings, read_settings
from petface.taxonomy import FEATURES as ALL_FEATURES
from tools.labels import load_as_trained

# ---- Data ----
IMAGES_ROOT: str = "data/PetFace/images"  # <species>/<record>/<image>
ANNOTATIONS_ROOT: str = "data/PetFace/annotations"  # <species>.csv
SPLITS_FILE: str = ""  # "" = splits.csv beside the images
SPLIT_SEED: Seed = 0  # used when splits.csv is made, never after
COLUMNS: tuple[str, ...] = ()  # as in stage 2: "cat.breed=Rasse"; then not as in STAGE2_FOLDER
STAGE2_FOLDER: str = "runs/stage2"  # labels are read as its specialists were trained; "" = not
SPECIES: str | tuple[str, ...] = "all"  # one species, several, or "all"
FEATURES: tuple[Literal[ALL_FEATURES], ...] = ALL_FEATURES

# ---- Judge ----
CHECKPOINT: str = "runs/cnn_folder_224_raw_aug/best.pt"  # stage 1
FOLDS: Annotated[int, Range(2)] = 5  # each record is judged by a model of the other folds
GRID: Positive = 2  # cells a side that feature maps are averaged over; memory grows as its square
INVERSE_STRENGTH: PositiveFloat = 0.01  # C of the regression; smaller = smoother
MIN_RECORDS: Positive = 3  # records of rarer classes are not judged
SEED: Seed = 0  # of the folds

# ---- Run ----
OUT: str = "runs/label_errors"  # earlier files there are replaced
DEVICE: str = "auto"  # auto, cpu, cuda, cuda:1
BATCH_SIZE: Positive = 64
NUM_WORKERS: int = -1  # decoding processes; 0 = a thread, -1 = by the number of cores


def main() -> None:
    s = read_settings(sys.modules[__name__])
    start = time.perf_counter()
    dataset = load_as_trained(s, "IMAGES_ROOT", s.COLUMNS)
    names = [s.SPECIES] if isinstance(s.SPECIES, str) else list(s.SPECIES)
    chosen = dataset.catalog.classes if names == ["all"] else names
    heads = {species: label_errors.heads_of(dataset, species, s.FEATURES) for species in chosen}
    if not any(heads.values()):
        what = f"no species of {', '.join(chosen)} has two known classes of {', '.join(s.FEATURES)}"
        raise UserError(f"{s.ANNOTATIONS_ROOT}: nothing to judge, {what}")
    content = checkpoints.read_stage1(s.CHECKPOINT)
    seen = seen_by(content.data, hashes_of(dataset), chosen=False) if content.data else None
    network = Network.build(content.model, content.preprocessing, s.DEVICE, "fp32")
    tables, figures = [], []
    for species, own in heads.items():
        for figure, table in judge(s, dataset, network, content.model, species, own, seen):
            print(describe(figure))
            tables.append(table if figure["can_judge"] else table[:0])
            figures.append(figure)
    rows = pd.concat(tables).sort_values("p_label", kind="stable")
    out = Path(s.OUT)
    listed, told = out / "label_errors.csv", out / "label_errors.json"
    files.write_csv(listed, list(rows), rows.round(6).itertuples(index=False))
    facts = {"settings": s.as_dict(), "dataset": dataset.fingerprint()}
    num_records = sum(figure["num_judged"] for figure in figures)
    files.write_json(told, {**facts, "num_records": num_records, "heads": figures})
    print(f"suspects: {len(rows)}\nconfident: {rows['confident'].sum()}")
    print(f"list: {listed}\nfigures: {told}")
    if (out / SUMMARY).exists():  # beside an evaluation: its report shows the list
        print(report_line(out))
    print(f"seconds: {time.perf_counter() - start:.0f}")


def judge(
    s: Settings, dataset: Dataset, network: Network, body: Any, species: str,
    heads: list[label_errors.Head], seen: np.ndarray | None,
) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:  # fmt: skip
    """Compute a species' features once; rank the records of each head by models of other folds.

    Returns the figures and the suspects of a head. `seen` tells, of all records, whether the
    features learnt from them; None where nobody knows.
    """
    if not heads:
        return
    places, _ = dataset.image_labels(species)
    record = dataset.catalog.record_index[places]
    features, readable = label_errors.features_of_photos(
        network, body, dataset, places, grid=s.GRID, batch_size=s.BATCH_SIZE,
        num_workers=worker_count(s.NUM_WORKERS), title=species,
    )  # fmt: skip
    print(f"{species}: {len(readable) - readable.sum():,} of {len(readable):,} photos unreadable")
    photos = features, (record - record[0])[readable]
    for head in heads:
        p = label_errors.predict_out_of_sample(
            *photos, head.labels, len(head.names), num_folds=s.FOLDS,
            inverse_strength=s.INVERSE_STRENGTH, seed=s.SEED,
        )  # fmt: skip
        suspects = label_errors.rank_suspects(p, head.labels, s.MIN_RECORDS)
        figure = label_errors.summarise_suspects(head, suspects)
        split = dataset.record_split[head.records]
        frozen = label_errors.frozen_baseline(*photos, head.labels, split, s.INVERSE_STRENGTH)
        table = label_errors.suspect_rows(dataset, head, suspects).assign(contaminated="")
        told = "not known, the checkpoint does not say"
        if seen is not None:
            is_seen = seen[head.records][suspects["record"]]
            table["contaminated"] = is_seen[suspects["margin"] < 0].astype(int)
            told = contaminated(int(is_seen.sum()), len(is_seen))
        yield figure | {"frozen": frozen, "contaminated": told}, table


def describe(figure: dict[str, Any]) -> str:
    """Format the figures of a head in a line."""
    name = f"{figure['species']} {figure['feature']}:"
    if not figure["num_judged"]:
        return f"{name} no record to judge"
    told = f"{name} {figure['num_judged']} of {figure['num_known']} labelled records judged, "
    told += f"{figure['agreement'] * 100:.1f} % as labelled"
    told += f" (contaminated: {figure['contaminated']}, whose photos the features learnt from)"
    if not figure["can_judge"]:
        return f"{told}: no better than the most frequent class, so nothing is suggested"
    return f"{told}; {figure['num_suspects']} suspects, {figure['num_confident']} of them confident"


if __name__ == "__main__":
    run_script(main)
