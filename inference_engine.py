"""Two-stage inference: name the species, then let its specialist name breed, colours and gender.

    python inference_engine.py photo.jpg     # a readable answer; --json for machines
    python inference_engine.py predict folder --out answers.csv     # photos without labels
    python inference_engine.py evaluate      # over every image of the dataset
    python inference_engine.py evaluate --config configs/eval/demo.toml

`evaluate` writes petface_eval_per_image.csv, petface_eval_summary.json and confusion/ into OUT_DIR
and goes on where it was stopped. As a library: `Stage1Model`, `Stage2Model`, `TwoStageInference`,
`evaluate_full_dataset`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from petface import distributed
from petface.data.dataset import load_dataset
from petface.data.images import Preprocessing
from petface.data.loading import worker_count
from petface.data.pack import image_source
from petface.errors import SettingsError, run_script
from petface.evaluation import parts as shares
from petface.evaluation.confusions import CONFUSIONS, write_confusions
from petface.evaluation.details import (
    DETAILS,
    DETAILS_FILE,
    MODELS,
    PER_IMAGE,
    PER_IMAGE_COLUMNS,
    SUMMARY,
    read_evaluation,
)
from petface.evaluation.heads import read_heads
from petface.evaluation.run import answer_slices, plan_slices, write_answers
from petface.evaluation.summary import describe_summary, summarise
from petface.files import write_json
from petface.inference import onnx_models as exported
from petface.inference.loading import (
    ComputeOptions,
    Stage,
    describe_model,
    find_model,
    find_specialist,
    load_stage,
)
from petface.inference.predict import find_photos, predict_files
from petface.inference.stages import Stage1Model, Stage2Model
from petface.inference.two_stage import TwoStageInference, readable
from petface.inference.views import Views
from petface.report.report_index import late_report, report_line
from petface.resumable import ResumableRecords, ResumableTable
from petface.settings import NonNegative, Positive, Seed, read_settings

__all__ = [
    "Stage1Model",
    "Stage2Model",
    "TwoStageInference",
    "evaluate_full_dataset",
]

# ---- Models ----
STAGE1_CHECKPOINT: str = "runs/cnn_folder_224_raw_aug/best.pt"  # or a bundle of tools.export
STAGE2_FOLDER: str = "runs/stage2"  # holds <species>/<species>_best.pt; a bundle brings its own
DEVICE: str = "auto"  # auto, cpu, cuda, cuda:1
TOPK: Positive = 3  # answers shown per head for a single photo
OUT: str = "predictions.csv"  # of predict: .csv, or .jsonl with the topk answers of every head

# ---- Evaluation ----
IMAGES_ROOT: str = "data/PetFace/images"  # <species>/<record>/<image>
ANNOTATIONS_ROOT: str = "data/PetFace/annotations"  # <species>.csv
SPLITS_FILE: str = ""  # "" = splits.csv beside the images, the one the models were trained with
SPLIT_SEED: Seed = 0  # used when splits.csv is made, never after
OUT_DIR: str = "runs/evaluation"
BATCH_SIZE: Positive = 64
PACK: str = ""  # "" = decode the files; auto = a pack beside the images, made once; or its path
NUM_WORKERS: int = -1  # decoding processes; 0 = a thread, -1 = by the number of cores
INTERVAL_RESAMPLES: NonNegative = 1000  # bootstrap over records for the 95 % intervals; 0 = none

# ---- Arithmetic of evaluate and predict; single photos are computed by torch in fp32 ----
PRECISION: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # fp32 = exact; see README
COMPILE: bool = False  # torch's compiler: 1.1 times as fast on a CPU after 6 to 17 s per network
TTA: Views = "none"  # flip: also mirrored, twice the work; five: also the corners, five times


def evaluate_full_dataset(
    images_root: str | Path,
    annotations_root: str | Path,
    *,
    stage1_checkpoint: str | Path,
    stage2_folder: str | Path,
    out_dir: str | Path,
    splits_file: str = "",
    split_seed: int = 0,
    device: str | None = None,
    precision: str = "auto",
    batch_size: int = 64,
    num_workers: int = -1,
    pack: str = "",
    interval_resamples: int = 1000,
    compiled: bool = False,
    tta: Views = "none",
    force: bool = False,
) -> dict[str, Any]:
    """Answer every image under `images_root` and write the files of an evaluation.

    Stage 2 is asked only where stage 1 is right. A stopped evaluation goes on at its last whole
    batch; the files are byte for byte those of an undisturbed one. A finished one is refused
    unless `force`. Gives the summary that is also written as JSON. Under torchrun each process
    answers a part of the images; the files are the same.
    """
    if exported.is_bundle(stage1_checkpoint):
        stage2_folder = stage1_checkpoint
        stage1_checkpoint = find_model(stage1_checkpoint, None)
    how = ComputeOptions.choose(device, precision, compiled, tta, stage1=stage1_checkpoint)
    dataset = load_dataset(images_root, annotations_root, splits_file=splits_file, seed=split_seed)
    print("\n".join(dataset.notes))
    found = {name: find_specialist(name, stage2_folder) for name in dataset.catalog.classes}
    if missing := [name for name, path in found.items() if path is None]:
        print(f"no specialist in {stage2_folder} for: {', '.join(missing)}")
    plan = plan_slices(dataset.catalog.class_index, batch_size)
    models: dict[str, Any] = {
        "stage1": describe_model(stage1_checkpoint, None),
        "specialists": {
            name: describe_model(path, name) for name, path in found.items() if path is not None
        },
        "images_root": str(images_root),
        "annotations_root": str(annotations_root),
        "splits_file": str(splits_file),
        "dataset": dataset.fingerprint(),
        "batch_size": batch_size,
        **how.identity(),
    }
    identity = {
        "stage1": models["stage1"]["sha256"],
        "specialists": {name: model["sha256"] for name, model in models["specialists"].items()},
        **{name: models[name] for name in ("dataset", "batch_size", *how.identity())},
        "details": str(DETAILS),
    }
    out = Path(out_dir)
    rule = Preprocessing(**models["stage1"]["preprocessing"])
    image_source(dataset.catalog, pack, rule)  # a pack is made by one process
    if not distributed.is_main():
        distributed.barrier()  # until the first has kept models and the table, and has not refused

    def load(species: str | None) -> Stage | None:
        """Load stage 1 (None) or a specialist, None where there is none."""
        model = models["stage1"] if species is None else models["specialists"].get(species)
        return model and load_stage(model["path"], species, how)

    stage1 = load(None)
    assert stage1 is not None
    begin, end = shares.own_range([len(part) for part in plan])
    plan, num_images = plan[begin:end], len(dataset.catalog)
    num_own = num_images if distributed.is_main() else sum(map(len, plan))
    table_path, records_path = (shares.own_path(out / name) for name in (PER_IMAGE, DETAILS_FILE))
    table = ResumableTable(table_path, PER_IMAGE_COLUMNS, identity, force=force)
    records = ResumableRecords(records_path, DETAILS, num_own)
    if table_path.exists() and distributed.is_main():  # killed when only this was left to do
        shares.remove_parts(table_path, records_path)
    with (
        table,
        tqdm(
            total=sum(map(len, plan)),
            desc="evaluate",
            unit="img",
            mininterval=0.5,
            disable=not distributed.shows(),
        ) as bar,
    ):
        done = table.batches_kept([len(part) for part in plan], 0 if force else records.num_kept())
        num_rows = sum(len(part) for part in plan[:done])
        records.begin(num_rows)
        if distributed.is_main():
            if force:  # its files are replaced one by one from here on: without it they are none's
                table_path.unlink(missing_ok=True)
            write_json(out / MODELS, models)
            distributed.barrier()
        bar.update(num_rows)
        answers = answer_slices(
            dataset, stage1, load, plan[done:], num_workers=worker_count(num_workers), pack=pack
        )
        num_rows = write_answers(answers, records, table, num_rows, bar)
        distributed.barrier()
        if not distributed.is_main():
            return distributed.broadcast_object({})
        shares.take_in_parts(table, records, num_rows)
        records.finish()
        # Before the table has its final name: one that has it is refused, not summarised again.
        evaluation = read_evaluation(out, table.unfinished)
        heads = read_heads(evaluation)
        summary = summarise(evaluation, interval_resamples, heads)
        write_confusions(heads, out / CONFUSIONS)
        write_json(out / SUMMARY, summary)
        table.finish()
        shares.remove_parts(table.path, records.path)
    return distributed.broadcast_object(summary)


def main() -> int:
    commands = {"evaluate": evaluate, "predict": predict}
    command = commands.get(sys.argv[1] if len(sys.argv) > 1 else "")
    return command(sys.argv[2:]) if command else show(sys.argv[1:])


def evaluate(arguments: list[str]) -> int:
    """Answer every photo of the dataset and compare with its labels."""
    force = {"force": "replace a finished evaluation"}
    s = read_settings(sys.modules[__name__], arguments, switches=force)
    distributed.start(s.DEVICE)
    print(f"{s.provenance()}{late_report(Path(s.OUT_DIR))}")
    summary = evaluate_full_dataset(
        s.IMAGES_ROOT,
        s.ANNOTATIONS_ROOT,
        stage1_checkpoint=s.STAGE1_CHECKPOINT,
        stage2_folder=s.STAGE2_FOLDER,
        out_dir=s.OUT_DIR,
        splits_file=s.SPLITS_FILE,
        split_seed=s.SPLIT_SEED,
        device=s.DEVICE,
        precision=s.PRECISION,
        batch_size=s.BATCH_SIZE,
        num_workers=s.NUM_WORKERS,
        pack=s.PACK,
        interval_resamples=s.INTERVAL_RESAMPLES,
        compiled=s.COMPILE,
        tta=s.TTA,
        force="force" in s.switches,
    )
    print(describe_summary(summary))
    print(f"per_image: {Path(s.OUT_DIR, PER_IMAGE)}\nsummary: {Path(s.OUT_DIR, SUMMARY)}")
    if distributed.is_main():
        print(report_line(Path(s.OUT_DIR)))
    return 0


def predict(arguments: list[str]) -> int:
    """Predict files and folders of photos without labels."""
    s = read_settings(
        sys.modules[__name__],
        arguments,
        switches={"force": "replace a finished table"},
        positional=("photos", "photo files, and folders that are searched for them"),
    )
    print(s.provenance())
    photos, left_out = find_photos(s.positional)
    if not photos:
        raise SettingsError("no photo to predict: predict takes photo files and folders of them")
    options = ComputeOptions.choose(
        s.DEVICE, s.PRECISION, s.COMPILE, s.TTA, stage1=s.STAGE1_CHECKPOINT
    )
    counts = predict_files(
        TwoStageInference(s.STAGE1_CHECKPOINT, s.STAGE2_FOLDER, options=options),
        photos,
        s.OUT,
        topk=s.TOPK,
        num_workers=worker_count(s.NUM_WORKERS),
        force="force" in s.switches,
    )
    for reason, num in sorted(left_out.items()):
        print(f"left out, {reason}: {num}")
    print("\n".join(f"{status}: {num}" for status, num in sorted(counts.items())))
    print(f"photos: {len(photos)}\npredictions: {s.OUT}")
    return 0


def show(arguments: list[str]) -> int:
    """Predict a few photos in the terminal."""
    s = read_settings(
        sys.modules[__name__],
        arguments,
        switches={"json": "one JSON object per photo and line"},
        positional=("photos", "photo files to predict, or first the word evaluate or predict"),
    )
    if not s.positional:
        raise SettingsError("give a photo, or: python inference_engine.py evaluate; see --help")
    inference = TwoStageInference(s.STAGE1_CHECKPOINT, s.STAGE2_FOLDER, s.DEVICE)
    sys.stdout.reconfigure(errors="backslashreplace")  # file names that are no UTF-8
    answers = [inference.infer(photo, s.TOPK) for photo in s.positional]
    for answer in answers:
        print(json.dumps(answer, ensure_ascii=False) if "json" in s.switches else readable(answer))
    return int(any("message" in answer for answer in answers))


if __name__ == "__main__":
    run_script(main)
