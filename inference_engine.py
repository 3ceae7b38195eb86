"""Two-stage inference: name the species, then let its specialist name breed, colours and gender.

    python inference_engine.py photo.jpg     # a readable answer; --json for machines
    python inference_engine.py predict folder --out answers.csv     # photos without labels
    python inference_engine.py identify photo.jpg --gallery known  # <known>/<animal>/<photo>
    python inference_engine.py evaluate      # over every image of the dataset
    python inference_engine.py evaluate --config configs/eval/demo.toml

`evaluate` writes petface_eval_per_image.csv, petface_eval_summary.json and confusion/ into OUT_DIR
and resumes where it was stopped. As a library: `Stage1Model`, `Stage2Model`, `TwoStageInference`,
`evaluate_full_dataset`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal

from petface import distributed
from petface.data.loading import worker_count
from petface.errors import (
    SettingsError,
    UserError,
    optional_room,
    outlive_reader,
    run_script,
    short,
)
from petface.evaluation.details import PER_IMAGE, SUMMARY
from petface.evaluation.run import EvaluationOptions, evaluate_dataset
from petface.evaluation.summary import describe_summary
from petface.inference import stages, two_stage
from petface.inference.loading import ComputeOptions, Views
from petface.inference.predict import find_photos, predict_files
from petface.inference.two_stage import readable
from petface.models.network import NOT_FINITE
from petface.settings import NonNegative, Positive, Seed, read_settings
from petface.training.runs import late_report, report_line

__all__ = [
    "Stage1Model",
    "Stage2Model",
    "TwoStageInference",
    "evaluate_full_dataset",
]

# ---- Models ----
STAGE1_CHECKPOINT: str = "runs/cnn_folder_224_raw_aug/best.pt"  # or a bundle of tools.export
STAGE2_FOLDER: str = "runs/stage2"  # holds <species>/<species>_best.pt; a bundle brings its own
IDENTITY_CHECKPOINT: str = "runs/identity/best.pt"  # of identify: train_identity.py makes it
GALLERY: str = ""  # of identify: a folder, <animal>/<photo>, or a file of tools.embed
DEVICE: str = "auto"  # auto, cpu, cuda, cuda:1
TOPK: Positive = 3  # answers shown per head for a single photo
OUT: str = "predictions.csv"  # of predict: .csv, or .jsonl with the topk answers of every head

# ---- Evaluation ----
IMAGES_ROOT: str = "data/PetFace/images"  # <species>/<record>/<image>
ANNOTATIONS_ROOT: str = "data/PetFace/annotations"  # <species>.csv
SPLITS_FILE: str = ""  # "" = splits.csv beside the images, the one the models were trained with
SPLIT_SEED: Seed = 0  # used when splits.csv is made, never after
OUT_DIR: str = "runs/evaluation"
BATCH_SIZE: NonNegative = 0  # photos at once; 0 = 256 on a GPU, else 64
PACK: str = ""  # "" = decode the files; auto = a pack beside the images, made once; or its path
NUM_WORKERS: int = -1  # decoding processes; 0 = a thread, -1 = by the number of cores

# ---- Arithmetic of evaluate and predict; single photos are computed by torch in fp32 ----
PRECISION: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # fp32 = exact; see README
COMPILE: bool = False  # torch's compiler: 1.1 times as fast on a CPU after 6 to 17 s per network
TTA: Views = "none"  # flip: also mirrored, twice the work; five: also the corners, five times


class Stage1Model(stages.Stage1Model):
    """The species classifier, by default that of STAGE1_CHECKPOINT."""

    def __init__(self, checkpoint: str | Path | None = None, *more: Any, **named: Any) -> None:
        super().__init__(checkpoint or STAGE1_CHECKPOINT, *more, **named)


class Stage2Model(stages.Stage2Model):
    """A specialist, by default that of STAGE2_FOLDER."""

    @classmethod
    def load_for_species(
        cls, species: str, checkpoint_or_folder: str | Path | None = None, *more: Any, **named: Any
    ) -> Stage2Model:
        """Load the specialist of a species; see `stages.Stage2Model.load_for_species`."""
        folder = checkpoint_or_folder or STAGE2_FOLDER
        return super().load_for_species(species, folder, *more, **named)  # type: ignore[return-value]


class TwoStageInference(two_stage.TwoStageInference):
    """Both stages, by default those of STAGE1_CHECKPOINT and STAGE2_FOLDER."""

    def __init__(
        self,
        stage1_checkpoint: str | Path | None = None,
        stage2_folder: str | Path | None = None,
        *more: Any,
        **named: Any,
    ) -> None:
        if stage1_checkpoint is None:
            stage2_folder = stage2_folder or STAGE2_FOLDER
        super().__init__(stage1_checkpoint or STAGE1_CHECKPOINT, stage2_folder, *more, **named)


def evaluate_full_dataset(
    images_root: str | Path,
    annotations_root: str | Path,
    *,
    stage1_checkpoint: str | Path,
    stage2_folder: str | Path | None,
    out_dir: str | Path,
    splits_file: str = "",
    split_seed: int = 0,
    device: str | None = None,
    precision: str = "auto",
    batch_size: int = 0,
    num_workers: int = -1,
    pack: str = "",
    compiled: bool = False,
    tta: Views = "none",
    force: bool = False,
) -> dict[str, Any]:
    """Predict every image under `images_root`; write the files of an evaluation.

    Stage 2 predicts only where stage 1 is right, and nothing without its folder. A stopped
    evaluation resumes at its last whole batch; the files are byte for byte those of an undisturbed
    one. A finished one is refused unless `force`. Returns the summary that is also written as
    JSON. Under torchrun each process predicts some of the images; the files are the same.
    """
    how = ComputeOptions.choose(device, precision, compiled, tta, stage1=stage1_checkpoint)
    options = EvaluationOptions(
        images_root=images_root,
        annotations_root=annotations_root,
        stage1_checkpoint=stage1_checkpoint,
        stage2_folder=stage2_folder,
        out_dir=out_dir,
        splits_file=splits_file,
        split_seed=split_seed,
        batch_size=batch_size or (256 if how.device.startswith("cuda") else 64),
        num_workers=num_workers,
        pack=pack,
        force=force,
    )
    return evaluate_dataset(options, how)


def main() -> int:
    commands = {"evaluate": evaluate, "predict": predict, "identify": identify}
    command = commands.get(sys.argv[1] if len(sys.argv) > 1 else "")
    return command(sys.argv[2:]) if command else show(sys.argv[1:])


def evaluate(arguments: list[str]) -> int:
    """Predict every photo of the dataset and compare with its labels."""
    force = {"force": "replace a finished evaluation"}
    s = read_settings(sys.modules[__name__], arguments, switches=force)
    distributed.start(s.DEVICE)
    out = Path(s.OUT_DIR)
    print(f"{s.provenance()}{late_report(out)}")
    summary = evaluate_full_dataset(
        s.IMAGES_ROOT,
        s.ANNOTATIONS_ROOT,
        stage1_checkpoint=s.STAGE1_CHECKPOINT,
        stage2_folder=s.own_folder("STAGE2_FOLDER", of="STAGE1_CHECKPOINT"),
        out_dir=out,
        splits_file=s.SPLITS_FILE,
        split_seed=s.SPLIT_SEED,
        device=s.DEVICE,
        precision=s.PRECISION,
        batch_size=s.BATCH_SIZE,
        num_workers=s.NUM_WORKERS,
        pack=s.PACK,
        compiled=s.COMPILE,
        tta=s.TTA,
        force="force" in s.switches,
    )
    print(describe_summary(summary))
    print(f"per_image: {out / PER_IMAGE}\nsummary: {out / SUMMARY}")
    if distributed.is_main():
        print(report_line(out))
    return 0


def predict(arguments: list[str]) -> int:
    """Predict files and folders of photos without labels."""
    s = read_settings(
        sys.modules[__name__],
        arguments,
        switches={"force": "replace a finished table"},
        positional=("photos", "photo files, and folders that are searched for them"),
    )
    outlive_reader()
    print(s.provenance())
    photos, left_out = find_photos(s.positional)
    if not photos:
        raise SettingsError("no photo to predict: predict takes photo files and folders of them")
    options = ComputeOptions.choose(
        s.DEVICE, s.PRECISION, s.COMPILE, s.TTA, stage1=s.STAGE1_CHECKPOINT
    )
    counts = predict_files(
        TwoStageInference(
            s.STAGE1_CHECKPOINT,
            s.own_folder("STAGE2_FOLDER", of="STAGE1_CHECKPOINT"),
            options=options,
            annotations_root=s.ANNOTATIONS_ROOT,
        ),
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


def identify(arguments: list[str]) -> int:
    """Name the animal of a photo, or "unknown", among those of a gallery."""
    if not optional_room("identity.gallery"):
        raise UserError("identify needs petface/identity, which was deleted")
    from petface.identity import embed, gallery

    s = read_settings(
        sys.modules[__name__],
        arguments,
        switches={
            "together": "all photos show one animal: they are fused",
            "json": "one JSON object per animal and line",
        },
        positional=("photos", "photos, and folders of them"),
    )
    photos, _ = find_photos(s.positional)
    if not photos or not s.GALLERY:
        raise SettingsError("give photos and --gallery: <animal>/<photo>, or a file of tools.embed")
    options = ComputeOptions.choose(s.DEVICE, "fp32")
    embedder = embed.load_embedder(s.IDENTITY_CHECKPOINT, options)
    how = {"batch_size": s.BATCH_SIZE or 64, "num_workers": worker_count(s.NUM_WORKERS)}
    known = gallery.open_gallery(s.GALLERY, embedder, **how)
    if known.note:
        print(known.note, file=sys.stderr)
    if embedder.threshold is None:
        print(f"{embedder.name} has no threshold: nobody is called unknown", file=sys.stderr)
    rows = gallery.embed_files(embedder, photos, **how)
    groups = [photos] if "together" in s.switches else [[photo] for photo in photos]
    answers = known.answers(groups, rows, s.TOPK, embedder.threshold)
    for answer in answers:
        print(json.dumps(answer, ensure_ascii=False) if "json" in s.switches else told(answer))
    return int(any(answer["status"] != "ok" for answer in answers))


def told(answer: dict[str, Any]) -> str:
    """Format an answer of `identify` for people."""
    names = ", ".join(map(short, answer["photos"]))
    if answer["status"] != "ok":
        return f"{names}: {NOT_FINITE if answer['status'] == 'non_finite' else 'cannot be read'}"
    listed = "\n".join(f"  {short(name):30s} {value:6.3f}" for name, value in answer["topk"])
    return f"{names}: {short(answer['animal'])}\n{listed}"


def show(arguments: list[str]) -> int:
    """Predict a few photos in the terminal."""
    s = read_settings(
        sys.modules[__name__],
        arguments,
        switches={"json": "one JSON object per photo and line"},
        positional=("photos", "photo files to predict, or first evaluate, predict or identify"),
    )
    if not s.positional:
        raise SettingsError("give a photo, or: python inference_engine.py evaluate; see --help")
    folder = s.own_folder("STAGE2_FOLDER", of="STAGE1_CHECKPOINT")
    inference = TwoStageInference(
        s.STAGE1_CHECKPOINT, folder, s.DEVICE, annotations_root=s.ANNOTATIONS_ROOT
    )
    answers = [inference.infer(photo, s.TOPK) for photo in s.positional]
    for answer in answers:
        print(json.dumps(answer, ensure_ascii=False) if "json" in s.switches else readable(answer))
    return int(any("message" in answer for answer in answers))


if __name__ == "__main__":
    run_script(main)
