"""Stage 1: train a network from scratch that names the species of a pet face.

    python train_resnet_minority_aug_dynamic.py                                    # PetFace, 224 px
    python train_resnet_minority_aug_dynamic.py --config configs/stage1/demo.toml  # made-up data
    torchrun --nproc-per-node 8 train_resnet_minority_aug_dynamic.py               # eight GPUs

Out comes runs/<RUN_NAME>/: best.pt and last.pt, metrics.csv and curves.png (one row per epoch),
confidence.png, errors.csv, settings.toml (itself a preset), environment.json and final.json. The
test part is looked at once, at the end. Expected: see the head of each preset; PetFace itself has
not been trained here.
"""

from __future__ import annotations

import sys
from typing import Any, Literal

import numpy as np
import torch

from petface import distributed, metrics
from petface.analysis.audit import quick_audit_line
from petface.calibration import calibrate_heads, headline_figures
from petface.data.dataset import Dataset, load_dataset
from petface.data.images import STATISTICS, Preprocessing
from petface.data.loading import Samples, worker_count
from petface.data.pack import image_source
from petface.data.splits import SPLITS
from petface.errors import UserError, run_script
from petface.metrics import write_confusion
from petface.models import checkpoints
from petface.models.architecture import build_classifier
from petface.models.backbones import BackboneName
from petface.models.first_weights import initialise_body
from petface.models.network import Network
from petface.models.strangers import make_guard
from petface.report import late_report, report_line
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
from petface.training import augment, recipe, runs, sampling
from petface.training import epoch as engine
from petface.training.augment.mixing import MixKind
from petface.training.phases import Phase, PhasedTraining, make_phases
from petface.training.schedule import LrKind
from petface.training.stopping import StopRequest

# ---- Data: what changes the meaning of the figures ----
IMAGES_ROOT: str = "data/PetFace/images"  # <species>/<record>/<image>
ANNOTATIONS_ROOT: str = "data/PetFace/annotations"  # <species>.csv
SPLITS_FILE: str = ""  # "" = splits.csv beside the images folder; a folder = official split files
SPLIT_SEED: Seed = 0  # used when splits.csv is made, never after
IMAGE_SIZE_PX: Positive = 224  # both sides
RESIZE_RULE: Literal["stretch", "center_crop", "letterbox"] = "stretch"
NORMALIZE: Literal["none", "imagenet"] = "none"  # none: RGB in [0, 1]
MAX_BAD_FRACTION: Fraction = 0.01  # the run stops when more images than this cannot be read

# ---- Run ----
RUNS_ROOT: str = "runs"
RUN_NAME: str = "cnn_folder_224_raw_aug"  # folder under RUNS_ROOT
SEED: Seed = 42
DEVICE: str = "auto"  # auto, cpu, cuda, cuda:1; under torchrun auto is a GPU for each process
PRECISION: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: what is fast on the device
PACK: str = ""  # "" = decode the files; auto = a pack beside the images, made once; or its path
NUM_WORKERS: int = -1  # decoding processes; 0 = a thread, -1 = by the number of cores
TENSORBOARD: bool = False  # the figures of every epoch as event files too

# ---- Network and optimisation ----
BACKBONE: BackboneName = (
    "resnet18"  # resnet34/50, efficientnet_b0, mobilenet_v2, mobilenet_v3_small
)
ATTENTION: Literal["none", "se"] = "none"  # se: squeeze-excitation after the last stage
HEAD_HIDDEN: NonNegative = 0  # units of a layer between features and answers; 0 = none
DROPOUT: Fraction = 0.0  # share of the features that a head does without in training; 0 = off
BODIES: Positive = 1  # networks side by side, their features in a row
WEIGHTS: str | tuple[str, ...] = "none"  # none, torchvision, a file; or a list: one for each body
PRETRAINED: Literal["auto", "require", "none"] = "auto"  # when torchvision's weights cannot be had
FREEZE_BATCHNORM: bool = False  # True for weights whose BatchNorm was folded away, and tiny data
PHASE_STAGES: tuple[str, ...] = ("all",)  # besides the head: all, heads (alone), layer4+layer3
EPOCHS: Positive | tuple[Positive, ...] = 50  # at most; a list has one for each phase
BATCH_SIZE: Positive = 64  # of each process under torchrun
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
SELECT_BY: Literal["accuracy", "balanced_accuracy", "loss"] = "accuracy"  # on the validation part
WANTED_ACCURACY: Fraction = 0.9  # of the answers that count as sure; 0 = all do

# ---- Minority classes: who they are and how often they are shown ----
SAMPLER: Literal["weighted", "shuffle"] = "weighted"  # shuffle: every image once an epoch
TAIL_MODE: Literal["head_exclusion", "quantile", "cumulative", "none"] = "head_exclusion"
HEAD_CLASSES: tuple[str, ...] = ("cat", "dog")  # never minority under head_exclusion
HEAD_EXCLUSION_MAX: NonNegative = 30_000  # images; minority = others with at most this many
TAIL_QUANTILE: Fraction = 0.5  # quantile: minority = classes up to this quantile of the counts
TAIL_SHARE: Fraction = 0.2  # cumulative: the smallest classes that hold this share of all images
ALPHA: NonNegativeFloat = 0.5  # base weight = (median / count) ^ ALPHA; 0 = all equal
MIN_WEIGHT_PER_CLASS: PositiveFloat = 1.0  # lower clip; below 1 big classes are shown less often
MAX_UPWEIGHT_PER_CLASS: PositiveFloat = 10.0  # upper clip
PERF_ALPHA: NonNegativeFloat = 0.5  # strength of the difficulty adaptation; 0 = off
RECALL_SPLIT: Literal["val", "train"] = "val"  # whose recall per class tells the difficulty
BASE_AUGMENT: augment.Strength = "mild"  # none, mild, strong, crop (strong with a random crop)
TAIL_AUGMENT: augment.Strength = "strong"  # for minority classes
AUGMENT_MODE: Literal["exact", "fast"] = "exact"  # fast: all colours in one step, nearly the same
MIX: MixKind = "none"  # pairs of images: mixup, cutmix, both (one of them by lot)
MIX_PROBABILITY: Fraction = 0.5  # share of the batches that are mixed
MIX_ADAPTS: bool = False  # True: up to MIX_PROBABILITY, more while the validation loss rises
MIX_ALPHA: PositiveFloat = 1.0  # of the Beta distribution of the shares


def main() -> int:
    settings = read_settings(
        sys.modules[__name__], switches={"force": "replace the finished run of this name"}
    )
    distributed.start(settings.DEVICE)
    print(settings.provenance())
    if settings.MIN_WEIGHT_PER_CLASS > settings.MAX_UPWEIGHT_PER_CLASS:
        raise UserError("MIN_WEIGHT_PER_CLASS must not exceed MAX_UPWEIGHT_PER_CLASS")
    phases_of(settings)  # refused before anything is read
    dataset = load_dataset(
        settings.IMAGES_ROOT,
        settings.ANNOTATIONS_ROOT,
        splits_file=settings.SPLITS_FILE,
        seed=settings.SPLIT_SEED,
    )
    print("\n".join(dataset.notes))
    print(quick_audit_line(dataset, annotations_root=settings.ANNOTATIONS_ROOT))
    folder = runs.run_path(settings.RUNS_ROOT, settings.RUN_NAME)
    print(late_report(folder), end="")
    with (
        runs.open_run(folder, settings, force="force" in settings.switches) as run,
        StopRequest() as stop,
    ):
        run.write_conflicts(dataset.annotations.values())
        return train(settings, dataset, run, stop)


def phases_of(s: Settings) -> list[Phase]:
    """Read the phases of the training."""
    return make_phases(s, "LR", "EPOCHS", "PATIENCE")


def watched_figure(s: Settings) -> tuple[str, Literal["max", "min"]]:
    """Name the column of metrics.csv that chooses the best epoch, and which of two is better."""
    return ("val_loss", "min") if s.SELECT_BY == "loss" else (f"val_{s.SELECT_BY}_frac", "max")


def train(s: Settings, dataset: Dataset, run: runs.RunFolder, stop: StopRequest) -> int:
    """Train through the phases, until a signal; then measure the best network on the test part."""
    classes = dataset.catalog.classes
    parts = split_into_samples(s, dataset)
    sampler = make_sampler(s, parts["train"], len(classes))
    base_weights = sampler.weights.copy()
    torch.manual_seed(s.SEED)
    architecture = recipe.architecture_of(s)
    model = build_classifier(architecture, len(classes))
    pretrained = initialise_body(model, s.BACKBONE, s.WEIGHTS, s.PRETRAINED)
    job = make_job(s, dataset, model, parts, sampler, run)
    distributed.copy_from_main(model)
    regimes = augment.REGIMES[s.BASE_AUGMENT], augment.REGIMES[s.TAIL_AUGMENT]
    description = {
        "kind": "stage1",
        "class_to_index": {name: index for index, name in enumerate(classes)},
        **architecture.stored(),
        "preprocessing": job.network.preprocessing.to_dict(),
        "pretrained": pretrained,
    }

    def save_last() -> None:
        content = {**description, **training.state_dict()}
        content["sampler_weights"] = sampler.weights.tolist()
        content["failures"] = job.failures.messages
        content["global_batch_size"] = runs.global_batch_size(s)
        run.save(run.last, content)

    watched, better = watched_figure(s)
    training = PhasedTraining(s, phases_of(s), model, job, better)
    if run.last.exists():
        last = checkpoints.load(run.last)
        training.load_state_dict(last)
        sampler.set_weights(last["sampler_weights"])
        job.failures.messages.update(last["failures"])
    print_plan(
        parts,
        classes,
        base_weights,
        f"{job.network}{distributed.describe(s.BATCH_SIZE)}, first weights {pretrained}",
    )

    adapts = s.SAMPLER == "weighted" and s.PERF_ALPHA > 0
    while training.has_epoch(run, save_last):
        progress, epoch = training.progress, training.progress.epoch.epoch
        measured = progress.measured(job)
        val = seen = None
        if engine.train_epoch(
            job,
            progress,
            parts["train"],
            draw_order(s, parts["train"], sampler, epoch),
            regimes,
            seed=s.SEED,
            rate=training.rate(lambda row: row[watched]),
            mixing=recipe.make_mixing(s, [row["val_loss"] for row in training.rows()]),
            stop=stop.asked,
        ):
            val = seen = engine.evaluate(measured, parts["val"], "validate", stop=stop.asked)
        if val and adapts and s.RECALL_SPLIT == "train":
            seen = engine.evaluate(measured, parts["train"], "recall", stop=stop.asked)
        if not val or not seen:
            save_last()
            print(f"stopped in epoch {epoch + 1}; the same command goes on there")
            return stop.exit_code
        accuracies = {
            "val_accuracy_frac": val.accuracy("species"),
            "val_balanced_accuracy_frac": val.balanced_accuracy("species"),
        }
        row = {"phase": training.index + 1, **engine.epoch_row(progress, val, accuracies)}
        progress.history.append(row)
        if adapts:
            weights = adapted_weights(s, base_weights, seen)
            sampler.set_weights(distributed.broadcast_object(weights))
        is_best = progress.stopping.update(row[watched])
        if is_best:
            kept = measured.network.model.state_dict()
            best = {**description, "model": kept, "figures": row}
            run.save(run.best, best)
        progress.epoch = progress.epoch.next_epoch()
        save_last()
        run.write_metrics(progress.history)
        job.failures.write()
        print(
            f"epoch {epoch + 1:3d}  loss {row['train_loss']:.3f}  val accuracy "
            f"{row['val_accuracy_frac']:.3f}  balanced {row['val_balanced_accuracy_frac']:.3f}  "
            f"{row['train_images_per_s']:.0f} img/s{'  best' if is_best else ''}"
        )
    return finish(s, run, job, parts, classes, training.progress, stop)


def split_into_samples(s: Settings, dataset: Dataset) -> dict[str, Samples]:
    """Cut the catalog into the parts of the split; minority classes of the train part are
    marked.
    """
    class_index, split = dataset.catalog.class_index.astype(np.int64), dataset.image_split
    classes = dataset.catalog.classes
    counts = np.bincount(class_index[split == 0], minlength=len(classes))
    is_tail = sampling.tail_classes(
        counts,
        classes,
        s.TAIL_MODE,
        head_classes=s.HEAD_CLASSES,
        head_exclusion_max=s.HEAD_EXCLUSION_MAX,
        tail_quantile=s.TAIL_QUANTILE,
        tail_share=s.TAIL_SHARE,
    )
    parts = {}
    for number, name in enumerate(SPLITS):
        places = np.flatnonzero(split == number)
        parts[name] = Samples(
            places, {"species": class_index[places]}, is_tail[class_index[places]]
        )
        if len(parts[name]) < 2:
            raise UserError(
                f"{s.IMAGES_ROOT}: the {name} part has {len(places)} images; two are needed. Add "
                "records, or make the splits anew with another SPLITS_FILE"
            )
    return parts


def make_sampler(s: Settings, samples: Samples, num_classes: int) -> sampling.ClassWeightedSampler:
    """Build the weighted draw over the train part, with the base weight of each class."""
    counts = np.bincount(samples.labels["species"], minlength=num_classes)
    base = sampling.base_weights(
        counts, alpha=s.ALPHA, floor=s.MIN_WEIGHT_PER_CLASS, cap=s.MAX_UPWEIGHT_PER_CLASS
    )
    return sampling.ClassWeightedSampler(samples.labels["species"], base, seed=s.SEED)


def draw_order(
    s: Settings, samples: Samples, sampler: sampling.ClassWeightedSampler, epoch: int
) -> np.ndarray:
    """Give the order of an epoch over the train part: weighted, or every image once."""
    if s.SAMPLER == "weighted":
        return sampler.draw(epoch)
    return sampling.shuffled(len(samples), s.SEED, epoch)


def adapted_weights(s: Settings, base: np.ndarray, seen: engine.Evaluation) -> np.ndarray:
    """Give (K,) sampling weights after an epoch: difficult classes are shown more often."""
    return sampling.difficulty_weights(
        base,
        metrics.recall_per_class(seen.confusions["species"]),
        perf_alpha=s.PERF_ALPHA,
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
) -> engine.Job:
    """Gather what every pass needs; the network goes to the device.

    The loss reckons with the classes as often as they come up in the first epoch.
    """
    labels, num_classes = parts["train"].labels["species"], len(dataset.catalog.classes)
    shown = np.bincount(labels, minlength=num_classes).astype(float)
    if s.SAMPLER == "weighted":
        shown *= sampler.weights
    preprocessing = Preprocessing(s.IMAGE_SIZE_PX, s.RESIZE_RULE, *STATISTICS[s.NORMALIZE])
    network = Network.build(model, preprocessing, s.DEVICE, s.PRECISION)
    return engine.Job(
        network=network,
        num_classes={"species": num_classes},
        loss=recipe.species_loss(s, shown, network.device),
        source=image_source(dataset.catalog, s.PACK, preprocessing),
        batch_size=s.BATCH_SIZE,
        num_workers=worker_count(s.NUM_WORKERS),
        freeze_batchnorm=s.FREEZE_BATCHNORM,
        augment_mode=s.AUGMENT_MODE,
        clip_norm=s.CLIP_NORM,
        failures=runs.FailureLog(
            run, dataset.catalog, sum(map(len, parts.values())), s.MAX_BAD_FRACTION
        ),
    )


def print_plan(
    parts: dict[str, Samples], classes: tuple[str, ...], weights: np.ndarray, on: str
) -> None:
    """Say before the first step what will be trained on what."""
    train = parts["train"]
    counts = np.bincount(train.labels["species"], minlength=len(classes))
    tail = {classes[k] for k in np.unique(train.labels["species"][train.is_tail])}
    print(f"training on {on}; images: {', '.join(f'{n} {len(p):,}' for n, p in parts.items())}")
    for name, count, weight in zip(classes, counts, weights, strict=True):
        mark = "  minority" if name in tail else ""
        print(f"  {name:14s} {count:8,d} images  weight {weight:.2f}{mark}")


def finish(
    s: Settings,
    run: runs.RunFolder,
    job: engine.Job,
    parts: dict[str, Samples],
    classes: tuple[str, ...],
    progress: engine.Progress,
    stop: StopRequest,
) -> int:
    """Calibrate best.pt, measure it on the test part, draw the curves, mark the run as finished."""
    best = checkpoints.load(run.best)
    job.network.model.load_state_dict(best["model"])
    val, test = (
        engine.evaluate(job, parts[name], name, keep_answers=True, stop=stop.asked)
        for name in ("val", "test")
    )
    if not val or not test:
        print("stopped in the last passes; the same command goes on there")
        return stop.exit_code
    if not distributed.is_main():
        return 0
    stop.leave_at_once()
    fitted, measured = calibrate_heads(val.answers, test.answers, s.WANTED_ACCURACY)
    guard, guard_figures = make_guard(
        job.network,
        job.source,
        parts,
        batch_size=s.BATCH_SIZE,
        num_workers=job.num_workers,
        seed=s.SEED,
    )
    checkpoints.save(run.best, {**best, "calibration": fitted, "guard": guard})
    confusion = test.confusions["species"]
    counts = [np.bincount(parts[name].labels["species"], minlength=len(classes)) for name in SPLITS]
    history = progress.history
    best_row = best["figures"]
    figures: dict[str, Any] = {
        "epochs": len(history),
        "best_epoch": best_row["epoch"],
        "train_minutes": sum(row["train_s"] for row in history) / 60,
        "val_accuracy": best_row["val_accuracy_frac"],
        "val_balanced_accuracy": best_row["val_balanced_accuracy_frac"],
        "test_images": test.num_images,
        "test_accuracy": test.accuracy("species"),
        "test_balanced_accuracy": test.balanced_accuracy("species"),
        "test_majority_baseline": metrics.majority_baseline(counts[0], counts[2]),
        **headline_figures(measured),
        "num_unreadable": len(job.failures.messages),
        "checkpoint": str(run.best),
    }
    recall = metrics.recall_per_class(confusion)
    run.write_metrics(history)  # again: a kill may have come just before the last time
    job.failures.write()
    write_confusion(run.path / "confusion_test_species.csv", confusion, classes)
    run.finish(
        {
            **figures,
            "test_recall": {n: r for n, r in zip(classes, recall.tolist(), strict=True) if r == r},
            "unreadable_per_species": job.failures.per_species(),
            "calibration": measured,
            "guard": guard_figures,
        }
    )
    print(f"{runs.summary_block(figures)}\n{report_line(run.path)}")
    return 0


if __name__ == "__main__":
    run_script(main)
