"""Stage 1: train a network from scratch that names the species of a pet face.

    python train_resnet_minority_aug_dynamic.py                                    # PetFace, 224 px
    python train_resnet_minority_aug_dynamic.py --config configs/stage1/demo.toml  # made-up data
    torchrun --nproc-per-node 8 train_resnet_minority_aug_dynamic.py               # eight GPUs

Writes into runs/<RUN_NAME>: best.pt, last.pt, metrics.csv, classes.csv and curves.png, errors.csv,
confidence.png, settings.toml (itself a preset), environment.json and final.json. The test split is
evaluated once, at the end. Expected: see each preset; PetFace itself has not been trained here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final, Literal

from petface.errors import SettingsError, optional_room, run_script  # isort: split

import numpy as np
import torch

from petface import distributed, metrics
from petface.data.dataset import Dataset, load_dataset
from petface.data.loading import Samples, worker_count
from petface.data.pack import image_source
from petface.data.splits import SPLITS
from petface.models import checkpoints
from petface.models.architecture import Architecture, build_classifier
from petface.models.backbones import input_rule
from petface.models.first_weights import describe_learnt, initialise
from petface.models.network import Network
from petface.settings import (
    Fraction,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Seed,
    Settings,
    read_settings,
)
from petface.training import recipe, records, runs, sampling
from petface.training.augment.mixing import Mixing, MixKind
from petface.training.augment.regimes import Strength, regimes_of
from petface.training.epoch import Progress, train_epoch
from petface.training.evaluate import Evaluation, Job, evaluate
from petface.training.phases import Optimization, Phase, Training, make_phases
from petface.training.records import Tracking
from petface.training.schedule import LrKind

# ---- Data: what changes the meaning of the figures ----
IMAGES_ROOT: str = "data/PetFace/images"  # <species>/<record>/<image>
ANNOTATIONS_ROOT: str = "data/PetFace/annotations"  # <species>.csv
SPLITS_FILE: str = ""  # "" = splits.csv beside the images folder; a folder = official split files
SPLIT_SEED: Seed = 0  # used when splits.csv is made, never after
ALIASES_FILE: str = ""  # a CSV species,feature,label,alias_of, as in stage 2: splits are stratified
IMAGE_SIZE_PX: NonNegative = 224  # both sides; 0 = what the weights of BACKBONE were made for
RESIZE_RULE: Literal["stretch", "center_crop", "letterbox"] = "stretch"
NORMALIZE: Literal["none", "imagenet", "backbone"] = "none"  # none: RGB in [0, 1]
MAX_BAD_FRACTION: Fraction = 0.01  # the run stops when more images than this cannot be read

# ---- Run ----
RUNS_ROOT: str = "runs"
RUN_NAME: str = "cnn_folder_224_raw_aug"  # folder under RUNS_ROOT
SEED: Seed = 42
DEVICE: str = "auto"  # auto, cpu, cuda, cuda:1, mps; under torchrun auto is a GPU for each process
PRECISION: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: what is fast on the device
COMPILE: bool = False  # the network, by torch's compiler; a minute more at the start
CUDA_GRAPHS: bool = False  # True: a step is one launch on a GPU; never tried on one
PACK: str = ""  # "" = decode the files; auto = a pack beside the images, made once; or its path
NUM_WORKERS: int = -1  # decoding processes; 0 = a thread, -1 = by the number of cores
TENSORBOARD: bool = False  # the figures of every epoch as event files too
WANDB: str = ""  # project of Weights & Biases; "" = off; WANDB_MODE=offline needs no network

# ---- Network and optimisation ----
BACKBONE: str = "resnet18"  # resnet34/50, efficientnet_b0, mobilenet_v2/v3_small, timm/<name>
ATTENTION: Literal["none", "se"] = "none"  # se: squeeze-excitation after the last stage
HEAD_HIDDEN: NonNegative = 0  # units of a layer between features and answers; 0 = none
HEAD_BATCHNORM: bool = False  # BatchNorm of the features, where the head begins
POOLING: Literal["average", "both"] = "average"  # both: the maximum of each map, too
DROPOUT: Fraction = 0.0  # share of the features that a head does without in training; 0 = off
BODIES: Positive = 1  # networks side by side, their features in a row
WEIGHTS: str | tuple[str, ...] = "none"  # none, torchvision, timm, a file; or one for each body
PRETRAINED: Literal["auto", "require", "none"] = "auto"  # when these weights cannot be had
FREEZE_BATCHNORM: bool = False  # True for weights whose BatchNorm was folded away, and tiny data
PHASE_STAGES: tuple[str, ...] = ("all",)  # besides the head: all, heads (alone), layer4+layer3
EPOCHS: Positive | tuple[Positive, ...] = 30  # at most; a list has one for each phase
BATCH_SIZE: Positive = 128  # of each process under torchrun
LR: PositiveFloat | tuple[PositiveFloat, ...] = 1e-3  # AdamW, made anew in each phase
BODY_LR_FACTOR: NonNegativeFloat = 1.0  # the body's rate is LR times this
WEIGHT_DECAY: NonNegativeFloat = 1e-4
SCHEDULE: LrKind = "constant"  # over each phase: cosine, restarts, linear, step, plateau
PLATEAU_PATIENCE: NonNegative = 3  # plateau: a tenth after as many epochs without a better one
WARMUP_FRAC: Fraction = 0.0  # share of each phase that the rate climbs; 0 = off
LABEL_SMOOTHING: Fraction = 0.0  # 0 = off
FOCAL_GAMMA: NonNegativeFloat = 0.0  # of the focal loss; 0 = cross-entropy
LOGIT_ADJUSTMENT: NonNegativeFloat = 0.0  # by the shares of the classes; 1 = balanced softmax
CLIP_NORM: NonNegativeFloat = 0.0  # gradients are scaled down to this norm; 0 = off
EMA_DECAY: Fraction = 0.0  # of the average of the weights, which is then measured; 0 = off
PATIENCE: NonNegative | tuple[NonNegative, ...] = 7  # epochs without a better SELECT_BY; 0 = off
SELECT_BY: Literal["accuracy", "balanced_accuracy", "loss"] = "accuracy"  # on the validation split
WANTED_ACCURACY: Fraction = 0.9  # of the answers that count as sure; 0 = all do

# ---- Minority classes: who they are and how often they are shown ----
SAMPLER: Literal["weighted", "shuffle"] = "weighted"  # shuffle: every image once an epoch
TAIL_MODE: sampling.TailMode = "head_exclusion"  # quantile, absolute, cumulative, none
HEAD_CLASSES: tuple[str, ...] = ("cat", "dog")  # never minority under head_exclusion
HEAD_EXCLUSION_MAX: NonNegative = 80_000  # images; minority = others with at most this many
TAIL_QUANTILE: Fraction = 0.85  # quantile: minority = classes up to this quantile of the counts
TAIL_MAX: NonNegative = 2_500  # absolute: minority = classes with at most this many images
TAIL_SHARE: Fraction = 0.2  # cumulative: the smallest classes that hold this share of all images
ALPHA: NonNegativeFloat = 1.0  # base weight = (median / count) ^ ALPHA; 0 = all equal
MIN_WEIGHT_PER_CLASS: PositiveFloat = 1.0  # lower clip; below 1 big classes are shown less often
MAX_UPWEIGHT_PER_CLASS: PositiveFloat = 3.0  # upper clip
PERF_ALPHA: NonNegativeFloat = 1.0  # strength of the difficulty adaptation; 0 = off
MIN_MEDIAN_DIFFICULTY: Fraction = 0.05  # the least that a difficulty is divided by
MIN_RECALL_SUPPORT: NonNegative = 20  # images that a recall needs to count, else factor 1
RECALL_SPLIT: Literal["val", "train"] = "val"  # whose recall per class tells the difficulty
BASE_AUGMENT: Strength = "reference"  # none, mild, strong, crop (strong, a part enlarged)
TAIL_AUGMENT: Strength = "reference"  # for minority classes; reference: a bit stronger
BLUR: Fraction = 0.0  # share of the images that are blurred, by up to 2 px; 0 = off
MIX: MixKind = "none"  # pairs of images: mixup, cutmix, both (one of them by lot)
MIX_PROBABILITY: Fraction = 0.5  # share of the batches that are mixed
MIX_ADAPTS: bool = False  # True: up to MIX_PROBABILITY, more while the validation loss rises
MIX_ALPHA: PositiveFloat = 1.0  # of the Beta distribution of the shares

HELP: Final = (  # what --help shows; --help-all shows every constant
    *("IMAGES_ROOT", "ANNOTATIONS_ROOT", "IMAGE_SIZE_PX", "RUN_NAME", "SEED", "DEVICE"),
    *("PRECISION", "PACK", "BACKBONE", "WEIGHTS", "EPOCHS", "BATCH_SIZE", "LR", "PATIENCE"),
    *("BASE_AUGMENT", "TAIL_AUGMENT"),
)
MAY_CHANGE: Final = ("DEVICE", "NUM_WORKERS", "PACK", "TENSORBOARD", "WANDB")  # when resumed
LIMITS: Final = (  # these, too, where its data is the same
    *("IMAGES_ROOT", "ANNOTATIONS_ROOT", "SPLITS_FILE", "RUNS_ROOT", "RUN_NAME"),
    *("EPOCHS", "PATIENCE", "MAX_BAD_FRACTION", "COMPILE", "CUDA_GRAPHS"),
)


def main() -> int:
    s = read_settings(sys.modules[__name__], switches=runs.SWITCHES)
    distributed.start(s.DEVICE)
    print(s.provenance())
    if s.MIN_WEIGHT_PER_CLASS > s.MAX_UPWEIGHT_PER_CLASS:
        pair = f"{s.MIN_WEIGHT_PER_CLASS} exceeds {s.MAX_UPWEIGHT_PER_CLASS}"
        raise SettingsError(f"MIN_WEIGHT_PER_CLASS {pair} of MAX_UPWEIGHT_PER_CLASS")
    phases_of(s)  # refused before anything is read
    folder = runs.run_path(s.RUNS_ROOT, s.RUN_NAME)
    runs.refuse_finished(folder, s.switches)
    read = {"splits_file": s.SPLITS_FILE, "seed": s.SPLIT_SEED, "aliases_file": s.ALIASES_FILE}
    dataset = load_dataset(s.IMAGES_ROOT, s.ANNOTATIONS_ROOT, **read)
    print("\n".join(dataset.notes))
    if audit := optional_room("analysis.audit"):
        print(audit.quick_audit_line(dataset, s.ANNOTATIONS_ROOT, s.IMAGE_SIZE_PX))
    with (
        runs.open_run(
            folder,
            s.as_toml(),
            may_change=(*MAY_CHANGE, "BATCH_SIZE"),  # the images of a step must stay
            limits=LIMITS,
            describe=lambda: describe_learnt(dataset, s.WEIGHTS, s.PRETRAINED, s.BODIES),
            global_batch_size=s.BATCH_SIZE * distributed.world_size(),
            tracking=Tracking(s.TENSORBOARD, s.WANDB),
            switches=s.switches,
        ) as run,
        runs.StopRequest() as stop,
    ):
        run.write_conflicts(dataset.annotations.values())
        return train(s, dataset, run, stop)


def phases_of(s: Settings) -> list[Phase]:
    """Read the phases of the training."""
    return make_phases(s.PHASE_STAGES, s.LR, s.EPOCHS, s.PATIENCE, s.BACKBONE)


def train(s: Settings, dataset: Dataset, run: runs.RunFolder, stop: runs.StopRequest) -> int:
    """Train through the phases, until a signal; then measure the best network on the test split."""
    classes = dataset.catalog.classes
    parts = split_into_samples(s, dataset)
    sampler = make_sampler(s, parts["train"], len(classes))
    base_weights = sampler.weights.copy()
    torch.manual_seed(s.SEED)
    body = s.BACKBONE, s.ATTENTION, s.HEAD_HIDDEN, s.DROPOUT, s.BODIES
    architecture = Architecture(*body, s.POOLING, s.HEAD_BATCHNORM)
    model = build_classifier(architecture, len(classes))
    pretrained = initialise(model, s.WEIGHTS, s.PRETRAINED, {"species": classes})
    job, draw = make_job(s, dataset, model, parts, sampler, run), make_draw(s, sampler)
    distributed.copy_from_main(model)
    regimes = regimes_of(s.BASE_AUGMENT, s.TAIL_AUGMENT, s.BLUR)
    description = {
        "kind": "stage1",
        "class_to_index": {name: index for index, name in enumerate(classes)},
        **architecture.stored(),
        "preprocessing": job.network.preprocessing.to_dict(),
        "pretrained": pretrained,
    }
    watched = "val_loss" if s.SELECT_BY == "loss" else f"val_{s.SELECT_BY}_frac"
    training = Training(
        phases_of(s),
        Optimization(
            *(s.WEIGHT_DECAY, s.BODY_LR_FACTOR, s.SCHEDULE, s.WARMUP_FRAC),
            *(s.PLATEAU_PATIENCE, s.EMA_DECAY, s.CUDA_GRAPHS),
        ),
        job,
        run,
        description,
        watched=lambda row: row[watched],
        mode="min" if s.SELECT_BY == "loss" else "max",
        more=lambda: {"sampler_weights": sampler.weights.tolist(), "class_history": class_history},
    )
    mixing = Mixing(s.MIX, s.MIX_PROBABILITY, s.MIX_ALPHA, s.MIX_ADAPTS)
    class_history: sampling.ClassHistory = []
    if last := training.resume():
        sampler.set_weights(last["sampler_weights"])
        class_history += last.get("class_history", [])
    training.announce(parts)
    print("\n".join(sampling.class_lines(parts["train"], classes, base_weights)))
    adapts = s.SAMPLER == "weighted" and s.PERF_ALPHA > 0
    while training.has_epoch():
        epoch, measured = training.progress.epoch.epoch, training.progress.measured(job)
        val = seen = train_epoch(
            job,
            training.progress,
            parts["train"],
            draw(epoch),
            regimes,
            seed=s.SEED,
            rate=training.rate(),
            mixing=mixing.after([row["val_loss"] for row in training.rows()]),
            picture=records.BatchPicture(run.path, {"species": classes}),
            stop=stop.asked,
        ) and evaluate(measured, parts["val"], "validate", stop=stop.asked)
        if val and adapts and s.RECALL_SPLIT == "train":
            seen = evaluate(measured, parts["train"], "recall", stop=stop.asked)
        if not val or not seen:
            training.save_last()
            return stop.leave(f"in epoch {epoch + 1}")
        shown = sampler.weights.tolist() if s.SAMPLER == "weighted" else [1.0] * len(classes)
        recall = metrics.recall_per_class(seen.confusions["species"]).tolist()
        class_history.append((epoch + 1, recall, shown))
        if adapts:
            weights = adapted_weights(s, base_weights, seen)
            sampler.set_weights(distributed.broadcast_object(weights))
        if distributed.is_main():
            sampling.write_class_history(run.path / "classes.csv", classes, class_history)
        accuracy, balanced = val.accuracy("species"), val.balanced_accuracy("species")
        scores = {"val_accuracy_frac": accuracy, "val_balanced_accuracy_frac": balanced}
        training.end_epoch(val, scores)
    return finish(s, run, job, parts, classes, training.progress, stop)


def split_into_samples(s: Settings, dataset: Dataset) -> dict[str, Samples]:
    """Cut the catalog into its splits; classes with few training images are marked."""
    class_index, split = dataset.catalog.class_index.astype(np.int64), dataset.image_split
    classes = dataset.catalog.classes
    counts = np.bincount(class_index[split == 0], minlength=len(classes))
    limits = {"head_classes": s.HEAD_CLASSES, "head_exclusion_max": s.HEAD_EXCLUSION_MAX}
    limits |= {"tail_quantile": s.TAIL_QUANTILE, "tail_max": s.TAIL_MAX, "tail_share": s.TAIL_SHARE}
    is_tail = sampling.tail_classes(counts, classes, s.TAIL_MODE, **limits)
    return sampling.samples_by_split(
        np.arange(len(split)),
        {"species": class_index},
        is_tail[class_index],
        split,
        needed=SPLITS,
        what=s.IMAGES_ROOT,
    )


def make_sampler(s: Settings, samples: Samples, num_classes: int) -> sampling.ClassWeightedSampler:
    """Build the weighted draw over the train split, with the base weight of each class."""
    counts = np.bincount(samples.labels["species"], minlength=num_classes)
    base = sampling.base_weights(
        counts, alpha=s.ALPHA, floor=s.MIN_WEIGHT_PER_CLASS, cap=s.MAX_UPWEIGHT_PER_CLASS
    )
    return sampling.ClassWeightedSampler(samples.labels["species"], base, seed=s.SEED)


def make_draw(s: Settings, sampler: sampling.ClassWeightedSampler) -> Callable[[int], np.ndarray]:
    """Return the order of an epoch over the train split: weighted, or every image once."""
    if s.SAMPLER == "weighted":
        return sampler.draw
    return lambda epoch: sampling.shuffled(len(sampler), s.SEED, epoch)


def adapted_weights(s: Settings, base: np.ndarray, seen: Evaluation) -> np.ndarray:
    """Return (K,) sampling weights after an epoch: difficult classes are shown more often."""
    confusion = seen.confusions["species"]
    return sampling.difficulty_weights(
        base,
        metrics.recall_per_class(confusion),
        confusion.sum(axis=1),
        perf_alpha=s.PERF_ALPHA,
        min_median=s.MIN_MEDIAN_DIFFICULTY,
        min_support=s.MIN_RECALL_SUPPORT,
        floor=s.MIN_WEIGHT_PER_CLASS,
        cap=s.MAX_UPWEIGHT_PER_CLASS,
    )


def make_job(
    s: Settings,
    dataset: Dataset,
    model: torch.nn.Module,
    parts: dict[str, Samples],
    sampler: sampling.ClassWeightedSampler,
    run: runs.RunFolder,
) -> Job:
    """Gather what every pass needs; the network goes to the device."""
    # The loss takes the classes to be as frequent as the first epoch shows them.
    labels, num_classes = parts["train"].labels["species"], len(dataset.catalog.classes)
    shown = np.bincount(labels, minlength=num_classes).astype(float)
    if s.SAMPLER == "weighted":
        shown *= sampler.weights
    preprocessing = input_rule(s.BACKBONE, s.IMAGE_SIZE_PX, s.RESIZE_RULE, s.NORMALIZE)
    network = Network.build(model, preprocessing, s.DEVICE, s.PRECISION, compiled=s.COMPILE)
    class_weights, loss = recipe.heads_loss(
        {"species": shown},
        {"species": s.FOCAL_GAMMA},
        network.device,
        label_smoothing=s.LABEL_SMOOTHING,
        logit_adjustment=s.LOGIT_ADJUSTMENT,
    )
    num_images = sum(map(len, parts.values()))
    return Job(
        network=network,
        num_classes={"species": num_classes},
        loss=loss,
        class_weights=class_weights,
        source=image_source(dataset.catalog, s.PACK, preprocessing),
        batch_size=s.BATCH_SIZE,
        num_workers=worker_count(s.NUM_WORKERS),
        freeze_batchnorm=s.FREEZE_BATCHNORM,
        clip_norm=s.CLIP_NORM,
        failures=runs.FailureLog(run, dataset.catalog, num_images, s.MAX_BAD_FRACTION),
    )


def finish(
    s: Settings,
    run: runs.RunFolder,
    job: Job,
    parts: dict[str, Samples],
    classes: tuple[str, ...],
    progress: Progress,
    stop: runs.StopRequest,
) -> int:
    """Calibrate best.pt, measure it on the test split, mark the run as finished."""
    from petface.calibration import calibrate_heads, headline_metrics

    best = checkpoints.load(run.best)
    job.network.model.load_state_dict(best["model"])
    val, test = (
        evaluate(job, parts[name], name, keep_answers=True, stop=stop.asked)
        for name in ("val", "test")
    )
    if not val or not test:
        return stop.leave("in the last passes")
    if not distributed.is_main():
        return 0
    stop.leave_at_once()
    fitted, measured = calibrate_heads(val.answers, test.answers, s.WANTED_ACCURACY)
    checkpoints.save(run.best, {**best, "calibration": fitted})
    confusion = test.confusions["species"]
    counts = [np.bincount(parts[name].labels["species"], minlength=len(classes)) for name in SPLITS]
    figures: dict[str, Any] = {
        "epochs": len(progress.history),
        "best_epoch": best["figures"]["epoch"],
        "train_minutes": sum(row["train_s"] for row in progress.history) / 60,
        "val_accuracy": best["figures"]["val_accuracy_frac"],
        "val_balanced_accuracy": best["figures"]["val_balanced_accuracy_frac"],
        "test_images": test.num_images,
        "test_accuracy": test.accuracy("species"),
        "test_balanced_accuracy": test.balanced_accuracy("species"),
        "test_majority_baseline": metrics.majority_baseline(counts[0], counts[2]),
        **headline_metrics(measured),
        "num_unreadable": len(job.failures.messages),
        "checkpoint": str(run.best),
    }
    recall = metrics.recall_per_class(confusion)
    run.write_metrics(progress.history)  # again: a kill may have come just before the last time
    job.failures.write()
    metrics.write_confusion(run.path / "confusion_test_species.csv", confusion, classes)
    metrics.write_classification_report(run.path, "test_species", confusion, classes)
    run.finish(
        figures,
        {
            "test_recall": {n: r for n, r in zip(classes, recall.tolist(), strict=True) if r == r},
            "unreadable_per_species": job.failures.per_species(),
            "calibration": measured,
        },
    )
    return 0


if __name__ == "__main__":
    run_script(main)
