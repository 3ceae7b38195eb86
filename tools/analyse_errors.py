"""Analyse the errors of a finished evaluation: where they are, what the networks look at, and
whether they lean on how photos are cut.

    python -m tools.analyse_errors --out-dir runs/evaluation

Writes into OUT_DIR/analysis, all on the test part: analysis.json; mistakes.csv, every wrong answer,
the surest first; slices.csv, accuracy by light, sharpness, size, number of photos and label
frequency; probes.csv, answers to shifted photos and to those with a painted border. Grad-CAM
pictures of the surest mistakes, which show photos, are in analysis/photos.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from petface.errors import UserError, run_script

# isort: split
import numpy as np
import pandas as pd

from inference_engine import Stage1Model, Stage2Model
from petface import files
from petface.analysis import attention, errors, probes
from petface.analysis.photos import look_at, worker_count
from petface.data.loading import OK
from petface.data.loading import worker_count as loader_count
from petface.evaluation.details import HEADS, Evaluation, class_numbers, read_evaluation
from petface.inference.loading import find_specialist
from petface.models.network import Network
from petface.report import report_line
from petface.settings import NonNegative, Positive, Seed, read_settings
from petface.taxonomy import UNKNOWN

# ---- Evaluation ----
OUT_DIR: str = "runs/evaluation"  # the evaluation's folder
IMAGES_ROOT: str = ""  # "" = where the evaluation found the photos
STAGE1_CHECKPOINT: str = ""  # "" = the file that was evaluated; another must have its bytes
STAGE2_FOLDER: str = ""  # "" = likewise; holds <species>/<species>_best.pt
DEVICE: str = "auto"  # auto, cpu, cuda, cuda:1

# ---- How much ----
SAMPLE: NonNegative = 2000  # test photos that are decoded, spread evenly; 0 = all
PROBE_SAMPLE: NonNegative = 500  # of these, predicted under every probe; 0 = all of them
CAM_PHOTOS: Positive = 32  # right answers per class whose maps are measured
EXAMPLES: Positive = 8  # mistakes per head in a picture
SAMPLE_SEED: Seed = 0

# ---- Speed ----
BATCH_SIZE: Positive = 64
WORKERS: int = -1  # decoding processes; 0 = none but this one, -1 = one per core

SHOWN = ("left 10 %", "down 10 %", "outer 10 % black", "outer 10 % mean colour")


def main() -> None:
    s = read_settings(sys.modules[__name__])
    start = time.perf_counter()
    evaluation = read_evaluation(s.OUT_DIR)
    out = Path(s.OUT_DIR) / "analysis"
    root = s.IMAGES_ROOT or evaluation.models["images_root"]
    nothing = UserError(f"no test photo below {root} can be read; set --images-root")
    if not Path(root).is_dir():
        raise nothing
    work = attention.choose_photos(evaluation, s.IMAGES_ROOT, s.SAMPLE, s.EXAMPLES)
    for path in out.rglob("gradcam_*.png"):  # of an earlier analysis, of other heads
        path.unlink()
    worst = errors.write_mistakes(out / "mistakes.csv", evaluation)
    seen = look_at(work.catalog, work.sample, worker_count(s.WORKERS), with_sharpness=True).seen
    num_readable = int((seen["status"] == OK).sum())
    if not num_readable:
        raise nothing
    slices = errors.make_slices(evaluation, work.rows[work.sample], seen)
    errors.write_slices(out / "slices.csv", slices)
    figures, maps, num_probed, same_frac = run_networks(evaluation, work, s)
    probes.write_probes(out / "probes.csv", figures)
    result = {
        "num_test": int((evaluation.rows["split"] == "test").sum()),
        "sample": len(work.sample),
        "num_unreadable": len(work.sample) - num_readable,
        "probe_sample": num_probed,
        "same_species_as_evaluation_frac": same_frac,
        "mistakes": worst,
        "slices": slices,
        "slices_standing_out": errors.count_standing_out(slices),
        "gradcam": attention.draw_maps(work, maps, out),
        "probes": figures,
        "seconds": round(time.perf_counter() - start, 1),
    }
    written = {str(p.relative_to(out)) for p in out.rglob("*") if p.suffix in (".csv", ".png")}
    files.write_json(out / "analysis.json", {**result, "files": sorted(written)})
    print(describe(result))
    print(f"seconds: {result['seconds']}\nanalysis: {out / 'analysis.json'}")
    print(report_line(out.parent))


def run_networks(
    evaluation: Evaluation, work: attention.Work, s: Any
) -> tuple[dict[str, Any], dict[str, attention.HeadMaps], int, float | None]:
    """Run stage 1 and then each specialist over the photos.

    Return the probes' figures and the maps of each head, the number of probed photos, and the share
    of them whose species was answered as in the evaluation: it may have run in another precision.
    """
    sample = attention.spread(work.sample, s.PROBE_SAMPLE)
    species_of = np.array(work.labels("species", sample))
    records = errors.record_numbers(evaluation)[work.rows[sample]]
    kept, maps = defaultdict(list), {head: attention.HeadMaps() for head in HEADS}
    right, readable, same_frac = np.zeros(len(sample), bool), 0, None
    for species, network, heads in load_networks(evaluation, s):
        asked = np.arange(len(sample))
        asked = asked if species is None else asked[right & (species_of == species)]
        answers = probes.predict_under_probes(
            network,
            work.catalog,
            sample[asked],
            batch_size=s.BATCH_SIZE,
            num_workers=loader_count(s.WORKERS),
            description=f"probes, {species or 'species'}",
        )
        for number, (head, names) in enumerate(heads.items()):
            predicted, confidence = (a[:, :, number] for a in answers[:2])
            true = class_numbers(work.labels(errors.true_column(head), sample[asked]), names)
            use = (predicted[0] >= 0) & (true != UNKNOWN)
            own = predicted[:, use], confidence[:, use], true[use], records[asked[use]]
            kept[head].append(own)
            attention.explain(
                maps[head], work, network, head, number, names, species,
                photos_per_class=s.CAM_PHOTOS, seed=s.SAMPLE_SEED,
            )  # fmt: skip
        if species is None:
            right, readable = predicted[0] == true, int(answers.readable.sum())
            before = class_numbers(work.labels("species_pred", sample), names)
            both = answers.readable & (before != UNKNOWN)
            same_frac = float((predicted[0] == before)[both].mean()) if both.any() else None
    figures = {}
    for head in (head for head in HEADS if head in kept):
        # each photo holds class numbers of one specialist only, so they may stand side by side
        whole = [np.concatenate(columns, axis=-1) for columns in zip(*kept[head], strict=True)]
        if len(whole[2]):
            figures[head] = probes.probe_figures(*whole)
    return figures, maps, readable, same_frac


def load_networks(
    evaluation: Evaluation, s: Any
) -> Iterator[tuple[str | None, Network, dict[str, tuple[str, ...]]]]:
    """Load the networks that were evaluated, from where they are now: stage 1 as None first."""
    path = s.STAGE1_CHECKPOINT or evaluation.models["stage1"]["path"]
    check_bytes(path, evaluation.models["stage1"])
    stage1 = Stage1Model(path, s.DEVICE)
    yield None, stage1.network, {"species": stage1.classes}
    for species, model in evaluation.models["specialists"].items():
        path = model["path"]
        if s.STAGE2_FOLDER:
            path = find_specialist(species, s.STAGE2_FOLDER) or s.STAGE2_FOLDER
        check_bytes(path, model)
        specialist = Stage2Model.load_for_species(species, path, s.DEVICE)
        names = {head: specialist.vocabularies[head] for head in specialist.heads}
        yield species, specialist.network, names


def check_bytes(path: str | Path, model: dict[str, Any]) -> None:
    """Refuse a checkpoint that is not the one whose answers were evaluated."""
    if Path(path).is_file() and files.sha256_of_file(path) != model["sha256"]:
        raise UserError(
            f"{path} is not the checkpoint that was evaluated, {model['path']}; evaluate again, "
            "or set --stage1-checkpoint and --stage2-folder"
        )


def describe(result: dict[str, Any]) -> str:
    """Format what an analysis found: of the probes, the change in points."""
    chance = result["slices_standing_out"]
    rows = {
        head: {
            "probed": entry["baseline"]["num"],
            "right, %": entry["baseline"]["accuracy"] * 100,
            **{p["name"]: p["change"] * 100 for p in entry["probes"] if p["name"] in SHOWN},
        }
        for head, entry in result["probes"].items()
    }
    lines = [
        f"test part: {result['num_test']:,} photos; {result['sample']:,} looked at, "
        f"{result['num_unreadable']:,} cannot be read; {result['probe_sample']:,} probed",
        f"slices: {chance['stand_out']} of {chance['bins']} bins stand out; about "
        f"{chance['by_chance']} would by chance",
        pd.DataFrame.from_dict(rows, orient="index").to_string(float_format="{:.1f}".format),
    ]
    for head, entry in result["gradcam"].items():
        if entry["border_energy_frac"] is not None:
            share, area = entry["border_energy_frac"] * 100, entry["border_area_frac"] * 100
            told = f"border ring: {share:.0f} % of Grad-CAM on {area:.0f} % of the area"
            lines.append(f"{head}: {told}, {entry['layer']}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
