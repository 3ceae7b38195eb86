"""Analyse the errors of a finished evaluation: where they are, what the networks look at, and
whether they lean on how photos are cut.

    python -m tools.analyse_errors runs/evaluation
    python -m tools.analyse_errors --config configs/eval/demo.toml

Writes into OUT_DIR/analysis, for the test split: mistakes.csv, every wrong answer, the surest
first; analysis.json: accuracy by how often the label was trained on, and answers to shifted photos
and to those with a painted border. Grad-CAM pictures of the surest mistakes, which show photos, are
in analysis/photos.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from petface.errors import UserError, run_script  # isort: split

import numpy as np

import inference_engine
from petface import files
from petface.analysis import errors
from petface.data.loading import worker_count
from petface.evaluation.details import HEADS, Evaluation, class_numbers, read_evaluation
from petface.inference.loading import ComputeOptions, Stage, find_model, load_stage
from petface.report import report_line
from petface.settings import NonNegative, Positive, read_settings
from petface.taxonomy import UNKNOWN

# ---- Evaluation ----
OUT_DIR: str = "runs/evaluation"  # the evaluation's folder, where none is named
IMAGES_ROOT: str = ""  # "" = where the evaluation found the photos
STAGE1_CHECKPOINT: str = ""  # "" = the file that was evaluated; another must have its bytes
STAGE2_FOLDER: str = ""  # "" = likewise; holds <species>/<species>_best.pt
DEVICE: str = "auto"  # auto, cpu, cuda, cuda:1

# ---- How much ----
SAMPLE: NonNegative = 500  # test photos predicted under every probe, spread evenly; 0 = all
EXAMPLES: Positive = 8  # mistakes per head in a picture

# ---- Speed ----
BATCH_SIZE: Positive = 64
WORKERS: int = -1  # decoding processes; 0 = none but this one, -1 = one per core


def main() -> None:
    words = "FOLDER", "the evaluation's folder, in place of OUT_DIR"
    s = read_settings(sys.modules[__name__], positional=words, presets_of=inference_engine)
    start = time.perf_counter()
    folder = Path((s.positional or [s.OUT_DIR])[0])
    evaluation, out = read_evaluation(folder), folder / "analysis"
    root = s.IMAGES_ROOT or evaluation.models["images_root"]
    nothing = UserError(f"no test photo below {root} can be read; set --images-root")
    if not Path(root).is_dir():
        raise nothing
    mistakes = errors.worst_mistakes(evaluation)
    work = errors.choose_photos(evaluation, root, mistakes, s.SAMPLE, s.EXAMPLES)
    for path in out.rglob("gradcam_*.png"):  # of an earlier analysis, of other heads
        path.unlink()
    result: dict[str, Any] = {
        "num_test": int((evaluation.rows["split"] == "test").sum()),
        "sample": len(work.sample),
        "mistakes": errors.write_mistakes(out / "mistakes.csv", mistakes),
        "slices": errors.make_slices(evaluation),
    }
    print(f"test split: {result['num_test']:,} photos\nmistakes: {out / 'mistakes.csv'}")
    figures, pictures, result["num_unreadable"] = run_networks(evaluation, work, s)
    if result["num_unreadable"] == len(work.sample):
        raise nothing
    for head, own in work.mistakes.groupby("head"):
        picture = out / "photos" / f"gradcam_{head}_mistakes.png"
        errors.draw_mistakes(picture, own, pictures[str(head)])
    result |= {"probes": figures, "seconds": round(time.perf_counter() - start, 1)}
    files.write_json(out / "analysis.json", result)
    unreadable = f"{result['num_unreadable']:,} of them unreadable"
    print(f"probed: {len(work.sample):,} photos, {unreadable}\nseconds: {result['seconds']}")
    print(f"analysis: {out / 'analysis.json'}\n{report_line(folder)}")


def run_networks(
    evaluation: Evaluation, work: errors.Work, s: Any
) -> tuple[dict[str, Any], dict[str, dict[int, list[np.ndarray]]], int]:
    """Run stage 1, then each specialist; return probes' figures and explained mistakes by head.

    Then how many photos cannot be read.
    """
    sample = work.sample
    species_of = np.array(work.labels("species", sample))
    records = evaluation.records[work.answers.index[sample]]
    kept, pictures = defaultdict(list), defaultdict[str, dict[int, list[np.ndarray]]](dict)
    right, num_unreadable = np.zeros(len(sample), bool), 0
    for stage in load_networks(evaluation, s):
        species, network = stage.species, stage.network
        asked = np.flatnonzero((species is None) | (right & (species_of == species)))
        answers = errors.predict_under_probes(
            network, work.catalog, sample[asked], len(stage.names), batch_size=s.BATCH_SIZE,
            num_workers=worker_count(s.WORKERS), description=f"probes, {species or 'species'}",
        )  # fmt: skip
        for number, (head, names) in enumerate(stage.names.items()):
            predicted = answers[:, :, number]
            true = class_numbers(work.labels(errors.true_column(head), sample[asked]), names)
            use = (predicted[0] >= 0) & (true != UNKNOWN)
            kept[head].append((predicted[:, use], true[use], records[asked[use]]))
            pictures[head] |= errors.explain(work, network, head, number, names, species)
        if species is None:
            right, num_unreadable = predicted[0] == true, int((predicted[0] < 0).sum())
    figures = {}
    for head in (head for head in HEADS if head in kept):
        # each photo holds class numbers of one specialist only, so they may stand side by side
        whole = [np.concatenate(columns, axis=-1) for columns in zip(*kept[head], strict=True)]
        if len(whole[1]):
            figures[head] = errors.probe_figures(*whole)
    return figures, pictures, num_unreadable


def load_networks(evaluation: Evaluation, s: Any) -> Iterator[Stage]:
    """Load the networks that were evaluated, from where they are now: stage 1 first."""
    models = {None: evaluation.models["stage1"], **evaluation.models["specialists"]}
    for species, model in models.items():
        place = s.STAGE1_CHECKPOINT if species is None else s.STAGE2_FOLDER
        path = find_model(place or model["path"], species)
        if path.is_file() and files.sha256_of_file(path) != model["sha256"]:
            raise UserError(
                f"{path} is not the checkpoint that was evaluated, {model['path']}; evaluate "
                "again, or set --stage1-checkpoint and --stage2-folder"
            )
        yield load_stage(path, species, ComputeOptions.choose(s.DEVICE))


if __name__ == "__main__":
    run_script(main)
