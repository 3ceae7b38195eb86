"""Analyse the errors of a finished evaluation: where they are, what the networks look at, and
whether they lean on how photos are cut.

    python -m tools.analyse_errors --out-dir runs/evaluation
    python -m tools.analyse_errors --out-dir runs/evaluation --photos a.jpg b.jpg

Writes into OUT_DIR/analysis, all on the test part: analysis.json; mistakes.csv, every wrong answer,
the surest first; slices.csv, accuracy by light, sharpness, borders, size, number of photos and
label frequency; probes.csv and probes_<head>.png, answers to shifted, scaled, turned and masked
photos; gradcam_<head>.png, the mean Grad-CAM of each class. Pictures that show photos are in
analysis/photos. About a minute of one CPU core for 340 photos of 64 px, with 340 of them probed;
probing 100 photos of 224 px takes as long.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from inference_engine import Stage1Model, Stage2Model
from petface import files
from petface.analysis import analysis, attention, mistakes, probe_figures, sheets, slices
from petface.analysis.audit_photos import worker_count
from petface.analysis.photo_statistics import measure_photos
from petface.analysis.probes import all_probes
from petface.data import images
from petface.data.loading import OK
from petface.data.loading import worker_count as loader_count
from petface.errors import UserError, run_script
from petface.evaluation.details import class_numbers, read_evaluation
from petface.inference.loading import find_specialist
from petface.models.network import Network
from petface.report.report_index import report_line
from petface.settings import NonNegative, Positive, Seed, read_settings

# ---- Evaluation ----
OUT_DIR: str = "runs/evaluation"  # the evaluation's folder
IMAGES_ROOT: str = ""  # "" = where the evaluation found the photos
STAGE1_CHECKPOINT: str = ""  # "" = the file that was evaluated; another must have its bytes
STAGE2_FOLDER: str = ""  # "" = likewise; holds <species>/<species>_best.pt
DEVICE: str = "auto"  # auto, cpu, cuda, cuda:1

# ---- How much ----
SAMPLE: NonNegative = 2000  # test photos that are decoded, spread evenly; 0 = all
PROBE_SAMPLE: NonNegative = 500  # of these, asked under every probe; 0 = all of them
CAM_PHOTOS: Positive = 32  # right answers per class in a mean map
EXAMPLES: Positive = 8  # mistakes and right answers per head in a picture
PHOTOS: tuple[str, ...] = ()  # photo files to explain besides
INTERVAL_RESAMPLES: NonNegative = 1000  # bootstrap over records; 0 = no intervals
SAMPLE_SEED: Seed = 0

# ---- Speed ----
BATCH_SIZE: Positive = 64
WORKERS: int = -1  # decoding processes; 0 = none but this one, -1 = one per core


def main() -> None:
    s = read_settings(sys.modules[__name__])
    start = time.perf_counter()
    evaluation = read_evaluation(s.OUT_DIR)
    photos = [images.decode(path) for path in s.PHOTOS]  # a bad one ends the run here, not later
    out = Path(s.OUT_DIR) / "analysis"
    work = analysis.prepare(evaluation, s.IMAGES_ROOT, s.SAMPLE, s.EXAMPLES, s.SAMPLE_SEED)
    remove_pictures(out)
    worst = mistakes.write_mistakes(out / "mistakes.csv", evaluation)
    places = work.places(work.sample)
    measured = measure_photos(work.catalog, places, worker_count(s.WORKERS))
    is_readable = measured["status"] == OK
    if not is_readable.any():
        root = s.IMAGES_ROOT or evaluation.models["images_root"]
        raise UserError(f"no test photo below {root} can be read; set --images-root")
    cut = slices.make_slices(evaluation, work.sample, measured, s.INTERVAL_RESAMPLES)
    slices.write_slices(out / "slices.csv", cut)
    num_probed, same_frac = ask_networks(work, s, photos, out)
    result = {
        "num_test": int((evaluation.rows["split"] == "test").sum()),
        "sample": len(work.sample),
        "num_unreadable": int((~is_readable).sum()),
        "probe_sample": num_probed,
        "same_species_as_evaluation_frac": same_frac,
        "mistakes": worst,
        "slices": cut,
        "slices_standing_out": slices.count_standing_out(cut),
        "gradcam": analysis.draw_maps(work, out),
        "probes": analysis.draw_probes(work, out, s.INTERVAL_RESAMPLES),
    }
    result["seconds"] = round(time.perf_counter() - start, 1)
    files.write_json(out / "analysis.json", {**result, "files": files_in(out)})
    print(analysis.describe_analysis(result))
    print(f"seconds: {result['seconds']}\nanalysis: {out / 'analysis.json'}")
    print(report_line(out.parent))


def ask_networks(
    work: analysis.Work, s: Any, photos: list[np.ndarray], out: Path
) -> tuple[int, float | None]:
    """Ask stage 1 and then each specialist, one after the other; explain the (H, W, 3) photos.

    Give the number of probed photos, and the share of them whose species was answered as in the
    evaluation, which may have run in another precision.
    """
    model = work.evaluation.models["stage1"]
    path = s.STAGE1_CHECKPOINT or model["path"]
    check_bytes(path, model)
    stage1 = Stage1Model(path, s.DEVICE)
    rows = analysis.spread(work.sample, s.PROBE_SAMPLE)
    answers = ask(work, stage1.network, rows, s, "probes, species")
    analysis.note_answers(work, "species", rows, answers, 0, stage1.classes)
    network = stage1.network
    analysis.explain(work, network, "species", 0, stage1.classes, None, s.CAM_PHOTOS, s.SAMPLE_SEED)
    tiles = [[explained(network, photo, 0, "species", stage1.classes)] for photo in photos]
    named = [stage1.predict(photo, 1).label for photo in photos]
    answered = answers.predicted[0, :, 0]
    is_right = answered == class_numbers(work.true_labels("species", rows), stage1.classes)
    for species in work.evaluation.models["specialists"]:
        specialist = load_specialist(work, species, s)
        network = specialist.network
        own = rows[work.of_species(species, rows) & is_right]
        heads = ask(work, network, own, s, f"probes, {species}")
        for number, head in enumerate(specialist.heads):
            names = specialist.vocabularies[head]
            analysis.note_answers(work, head, own, heads, number, names)
            analysis.explain(
                work, network, head, number, names, species, s.CAM_PHOTOS, s.SAMPLE_SEED
            )
            for photo, row, name in zip(photos, tiles, named, strict=True):
                if name == species:
                    row.append(explained(network, photo, number, head, names))
    for number, (photo, row) in enumerate(zip(s.PHOTOS, tiles, strict=True), start=1):
        title = ["/".join(Path(photo).parts[-3:]), "the photo, and what speaks for the answer"]
        sheets.draw_sheet(out / "photos" / f"gradcam_photo_{number}.png", title, row)
    before = work.answered_labels("species", rows)
    both = answers.readable & (np.array(before) != "")
    same = answered == class_numbers(before, stage1.classes)
    return int(answers.readable.sum()), float(same[both].mean()) if both.any() else None


def ask(
    work: analysis.Work, network: Network, rows: np.ndarray, s: Any, description: str
) -> probe_figures.Answers:
    """Ask a network about rows of the evaluation, as they are and under every probe."""
    return probe_figures.ask(
        network,
        work.catalog,
        work.places(rows),
        all_probes(),
        batch_size=s.BATCH_SIZE,
        num_workers=loader_count(s.WORKERS),
        description=description,
    )


def load_specialist(work: analysis.Work, species: str, s: Any) -> Stage2Model:
    """Load the specialist that was evaluated, from where it is now."""
    model = work.evaluation.models["specialists"][species]
    path = model["path"]
    if s.STAGE2_FOLDER:
        path = find_specialist(species, s.STAGE2_FOLDER) or s.STAGE2_FOLDER
    check_bytes(path, model)
    return Stage2Model.load_for_species(species, path, s.DEVICE)


def check_bytes(path: str | Path, model: dict[str, Any]) -> None:
    """Refuse a checkpoint that is not the one whose answers were evaluated."""
    if Path(path).is_file() and files.sha256_of_file(path) != model["sha256"]:
        raise UserError(
            f"{path} is not the checkpoint that was evaluated, {model['path']}; evaluate again, "
            "or set --stage1-checkpoint and --stage2-folder"
        )


def explained(
    network: Network, photo: np.ndarray, number: int, head: str, names: tuple[str, ...]
) -> sheets.Tile:
    """Lay a decoded photo beside what speaks for head `number`'s answer to it."""
    rule = network.preprocessing
    probabilities = network.answer(photo)[number]
    best = int(probabilities.argmax())
    line = f"{head}: {names[best]} {float(probabilities[best]) * 100:.0f} %"
    pixels = images.resize(photo, rule.size_px, rule.resize)
    return attention.photo_tile(network, pixels, number, best, [line])


def remove_pictures(out: Path) -> None:
    """Remove the pictures of an earlier analysis: a head or a photo of then may be missing now."""
    for folder in (out, out / "photos"):
        for pattern in ("gradcam_*.png", "probes_*.png"):
            for path in folder.glob(pattern):
                path.unlink()


def files_in(out: Path) -> list[str]:
    """Name the files of the analysis beside its JSON."""
    found = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    return sorted(
        name for name in found - {"analysis.json"} if not name.endswith(files.TEMPORARY_SUFFIX)
    )


if __name__ == "__main__":
    run_script(main)
