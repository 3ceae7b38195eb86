"""Identity: train a network whose embeddings tell single animals apart, also ones never seen.

    python train_identity.py                                    # PetFace, 224 px, all species
    python train_identity.py --config configs/identity/demo.toml  # made-up data
    torchrun --nproc-per-node 8 train_identity.py               # eight GPUs

Each animal of the train split with two photos or more is a class. Chosen by verification on the
animals of the validation split, which are others. Writes into runs/<RUN_NAME>: best.pt, last.pt,
metrics.csv and curves.png, identity_summary.json, identity_pairs.csv, identity_queries.csv,
settings.toml (itself a preset), environment.json and final.json. The test split is evaluated once,
at the end. PetFace itself has not been trained here.
"""

from __future__ import annotations

import sys
from math import nan
from typing import Annotated, Any, Final, Literal

from petface.errors import SettingsError, UserError, optional_room, run_script  # isort: split

import numpy as np
import torch

from petface import distributed
from petface.data.dataset import Dataset, load_dataset
from petface.data.loading import Samples, worker_count
from petface.data.pack import image_source
from petface.identity import embed, figures, protocols
from petface.identity import evaluate as evaluation
from petface.models import checkpoints
from petface.models.architecture import Architecture
from petface.models.backbones import input_rule
from petface.models.embedding import MAX_EMBEDDING, EmbeddingModel, keep_distances
from petface.models.first_weights import describe_learnt, initialise_body
from petface.models.network import Network
from petface.settings import (
    Fraction,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Range,
    Seed,
    Settings,
    read_settings,
)
from petface.training import recipe, records, runs, sampling
from petface.training.augment.regimes import Strength, regimes_of
from petface.training.epoch import train_epoch
from petface.training.evaluate import Evaluation, Job
from petface.training.phases import Optimization, Phase, Training, make_phases
from petface.training.records import Tracking
from petface.training.schedule import LrKind

# ---- Data ----
IMAGES_ROOT: str = "data/PetFace/images"  # <species>/<record>/<image>
ANNOTATIONS_ROOT: str = "data/PetFace/annotations"  # <species>.csv: splits are stratified by them
SPLITS_FILE: str = ""  # "" = splits.csv beside the images folder; a folder = official lists
SPLIT_SEED: Seed = 0  # used when splits.csv is made, never after
SPECIES: str | tuple[str, ...] = "all"  # all, one, or a list of some: one network for all of them
IMAGE_SIZE_PX: NonNegative = 224  # both sides; 0 = what the weights of BACKBONE were made for
RESIZE_RULE: Literal["stretch", "center_crop", "letterbox"] = "stretch"
NORMALIZE: Literal["none", "imagenet", "backbone"] = "imagenet"  # none: RGB in [0, 1]
MAX_BAD_FRACTION: Fraction = 0.01  # the run stops when more images than this cannot be read

# ---- Run ----
RUNS_ROOT: str = "runs"
RUN_NAME: str = "identity"  # folder under RUNS_ROOT
SEED: Seed = 42
DEVICE: str = "auto"  # auto, cpu, cuda, cuda:1, mps; under torchrun auto is a GPU for each process
PRECISION: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: what is fast on the device
PACK: str = ""  # "" = decode the files; auto = a pack beside the images, made once; or its path
NUM_WORKERS: int = -1  # decoding processes; 0 = a thread, -1 = by the number of cores
TENSORBOARD: bool = False  # the figures of every epoch as event files too
WANDB: str = ""  # project of Weights & Biases; "" = off; WANDB_MODE=offline needs no network

# ---- Network and loss ----
BACKBONE: str = "resnet18"  # resnet34/50, efficientnet_b0, mobilenet_v2/v3_small, timm/<name>
WEIGHTS: str = "torchvision"  # none, torchvision, timm, a file: a best.pt of stage 1 or 2, too
PRETRAINED: Literal["auto", "require", "none"] = "auto"  # when these weights cannot be had
FREEZE_BATCHNORM: bool = False  # True for weights whose BatchNorm was folded away, and tiny data
HEAD_BATCHNORM: bool = False  # BatchNorm of the features, before the embedding
EMBEDDING_SIZE: Annotated[int, Range(0, MAX_EMBEDDING)] = 512  # 0 = the features themselves
MARGIN_KIND: Literal["arcface", "cosface"] = "arcface"  # of the angle, or of its cosine
MARGIN: Annotated[float, Range(0, 2)] = 0.5  # radians of arcface (0.5 there), cosine (0.35 there)
SCALE: PositiveFloat = 64.0  # what cosines are multiplied by; less for few animals
LABEL_SMOOTHING: Fraction = 0.0  # 0 = off

# ---- Optimisation ----
PHASE_STAGES: tuple[str, ...] = ("all",)  # besides the head: all, heads (alone), layer4+layer3
EPOCHS: Positive | tuple[Positive, ...] = 30  # at most; a list has one for each phase
LR: PositiveFloat | tuple[PositiveFloat, ...] = 1e-3  # AdamW, made anew in each phase
BODY_LR_FACTOR: NonNegativeFloat = 0.1  # the body's rate is LR times this
WEIGHT_DECAY: NonNegativeFloat = 5e-4
SCHEDULE: LrKind = "cosine"  # over each phase: constant, restarts, linear, step, plateau
WARMUP_FRAC: Fraction = 0.05  # share of each phase that the rate climbs; 0 = off
CLIP_NORM: NonNegativeFloat = 5.0  # gradients are scaled down to this norm; 0 = off
COMPILE: bool = False  # the network, by torch's compiler; a minute more at the start
CUDA_GRAPHS: bool = False  # True: a step is one launch on a GPU; never tried on one
EMA_DECAY: Fraction = 0.0  # of the average of the weights, which is then measured; 0 = off
PATIENCE: NonNegative | tuple[NonNegative, ...] = 7  # epochs without a better AUC; 0 = off

# ---- What an epoch shows ----
BATCH_SIZE: Positive = 128  # of each process under torchrun
PHOTOS_PER_ANIMAL: Positive = 4  # of one animal in a batch, which so has BATCH_SIZE / this animals
AUGMENT: Strength = "mild"  # none, mild, strong, crop, reference
BLUR: Fraction = 0.0  # share of the images that are blurred, by up to 2 px; 0 = off
WANTED_FALSE_MATCHES: Fraction = 0.01  # of pairs of two animals: gives the threshold of "unknown"

HELP: Final = (  # what --help shows; --help-all shows every constant
    *("IMAGES_ROOT", "ANNOTATIONS_ROOT", "SPECIES", "IMAGE_SIZE_PX", "RUN_NAME", "SEED", "DEVICE"),
    *("PRECISION", "PACK", "BACKBONE", "WEIGHTS", "EPOCHS", "BATCH_SIZE", "LR", "PATIENCE"),
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
    phases_of(s)  # refused before anything is read
    folder = runs.run_path(s.RUNS_ROOT, s.RUN_NAME)
    runs.refuse_finished(folder, s.switches)
    species = None if s.SPECIES == "all" else s.SPECIES
    read = {"splits_file": s.SPLITS_FILE, "seed": s.SPLIT_SEED, "species": species}
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
            describe=lambda: describe_learnt(dataset, s.WEIGHTS, s.PRETRAINED),
            global_batch_size=s.BATCH_SIZE * distributed.world_size(),
            tracking=Tracking(s.TENSORBOARD, s.WANDB),
            switches=s.switches,
        ) as run,
        runs.StopRequest() as stop,
    ):
        return train(s, dataset, run, stop)


def phases_of(s: Settings) -> list[Phase]:
    """Read the phases of the training; `SettingsError` for what does not go together."""
    if s.PHOTOS_PER_ANIMAL > s.BATCH_SIZE:
        raise SettingsError(
            f"PHOTOS_PER_ANIMAL = {s.PHOTOS_PER_ANIMAL} is more than BATCH_SIZE = {s.BATCH_SIZE}"
        )
    if s.HEAD_BATCHNORM and not s.EMBEDDING_SIZE:
        raise SettingsError("HEAD_BATCHNORM needs an embedding, EMBEDDING_SIZE above 0")
    return make_phases(s.PHASE_STAGES, s.LR, s.EPOCHS, s.PATIENCE, s.BACKBONE)


def train(s: Settings, dataset: Dataset, run: runs.RunFolder, stop: runs.StopRequest) -> int:
    """Train through the phases, until a signal; then measure the best network on the test split."""
    samples, animals = animals_of(dataset)
    val = protocols.photos_of_split(dataset, "val")
    pairs = protocols.made_pairs(dataset.catalog, val, s.SPLIT_SEED, "the val split")
    to_test = evaluation.choose_lists(dataset, s.SPLITS_FILE, "test", s.SPLIT_SEED)
    torch.manual_seed(s.SEED)
    architecture = Architecture(s.BACKBONE, batchnorm=s.HEAD_BATCHNORM)
    model = EmbeddingModel(s.EMBEDDING_SIZE, len(animals), architecture)
    keep_distances(model)
    pretrained = initialise_body(model.body, s.BACKBONE, s.WEIGHTS, s.PRETRAINED)
    job = make_job(s, dataset, model, samples, run)
    distributed.copy_from_main(model)
    description = {
        "kind": "identity",
        "embedding_size": s.EMBEDDING_SIZE,
        "animals": animals,
        **architecture.stored(),
        "preprocessing": job.network.preprocessing.to_dict(),
        "pretrained": pretrained,
    }
    rates = s.BODY_LR_FACTOR, s.SCHEDULE, s.WARMUP_FRAC, 3, s.EMA_DECAY
    how = Optimization(s.WEIGHT_DECAY, *rates, s.CUDA_GRAPHS)
    watched = lambda row: row["val_auc_frac"]  # noqa: E731
    training = Training(phases_of(s), how, job, run, description, watched, "max")
    training.resume()
    print(f"animals: {len(animals):,} to learn; {len(pairs.left):,} pairs of others to verify")
    training.announce({"train": samples})
    common = s.BATCH_SIZE * distributed.world_size()
    while training.has_epoch():
        epoch, measured = training.progress.epoch.epoch, training.progress.measured(job)
        labels = samples.labels["animals"]
        done = train_epoch(
            job,
            training.progress,
            samples,
            sampling.animal_groups(labels, s.PHOTOS_PER_ANIMAL, common, s.SEED, epoch),
            regimes_of(s.AUGMENT, s.AUGMENT, s.BLUR),
            seed=s.SEED,
            rate=training.rate(),
            picture=records.BatchPicture(run.path, {"animals": animals}),
            stop=stop.asked,
        )
        if not done or stop.asked():
            training.save_last()
            return stop.leave(f"in epoch {epoch + 1}")
        similarity, read = compare(measured, pairs)
        left, right = (dataset.catalog.record_index[side] for side in (read.left, read.right))
        num_bad = int((~np.isfinite(similarity)).sum())
        auc = nan if num_bad else figures.verification(similarity, read.is_same, left, right)["auc"]
        val_part = Evaluation({}, nan, len(similarity), 0, num_bad)
        training.end_epoch(val_part, {"val_auc_frac": nan if auc is None else auc})
    return finish(s, dataset, run, job, training, pairs, to_test, stop)


def animals_of(dataset: Dataset) -> tuple[Samples, list[str]]:
    """List the photos of the train split's animals with two or more, and the animals' names."""
    catalog = dataset.catalog
    photos = protocols.photos_of_split(dataset, "train", at_least=2)
    records, label = np.unique(catalog.record_index[photos], return_inverse=True)
    if len(records) < 2:
        raise UserError("the train split has no two animals with two photos each: add some")
    species = [catalog.classes[k] for k in catalog.record_class[records]]
    names = [f"{a}/{b}" for a, b in zip(species, catalog.record_names[records], strict=True)]
    labels = {"animals": label.astype(np.int64)}
    return Samples(photos, labels, np.zeros(len(photos), bool)), names


def compare(job: Job, pairs: protocols.Pairs) -> tuple[np.ndarray, protocols.Pairs]:
    """Return the similarity (P,) of the pairs that can be read, and these pairs."""
    places = np.unique(np.concatenate([pairs.left, pairs.right]))
    job.network.model.eval()
    named = {"batch_size": job.batch_size, "num_workers": job.num_workers, "title": "verify"}
    table = embed.Embedder(job.network, "").embed(job.source, places, **named)
    bad = places[np.isnan(table).any(axis=1)]
    pairs = pairs.only(~np.isin(pairs.left, bad) & ~np.isin(pairs.right, bad))
    if not len(pairs.left):
        raise UserError("no photo to verify can be read: mend the validation split's photos")
    left, right = (np.searchsorted(places, side) for side in (pairs.left, pairs.right))
    return figures.similarities(table, left, right), pairs


def make_job(
    s: Settings, dataset: Dataset, model: EmbeddingModel, samples: Samples, run: runs.RunFolder
) -> Job:
    """Gather what every pass needs; the network goes to the device."""
    preprocessing = input_rule(s.BACKBONE, s.IMAGE_SIZE_PX, s.RESIZE_RULE, s.NORMALIZE)
    network = Network.build(model, preprocessing, s.DEVICE, s.PRECISION, compiled=s.COMPILE)
    return Job(
        network=network,
        num_classes={"animals": int(samples.labels["animals"].max()) + 1},
        loss=recipe.margin_loss("animals", s.MARGIN_KIND, s.MARGIN, s.SCALE, s.LABEL_SMOOTHING),
        source=image_source(dataset.catalog, s.PACK, preprocessing),
        batch_size=s.BATCH_SIZE,
        num_workers=worker_count(s.NUM_WORKERS),
        freeze_batchnorm=s.FREEZE_BATCHNORM,
        clip_norm=s.CLIP_NORM,
        failures=runs.FailureLog(run, dataset.catalog, len(samples), s.MAX_BAD_FRACTION),
    )


def finish(
    s: Settings,
    dataset: Dataset,
    run: runs.RunFolder,
    job: Job,
    training: Training,
    pairs: protocols.Pairs,
    to_test: evaluation.Lists,
    stop: runs.StopRequest,
) -> int:
    """Find the threshold of best.pt, measure it on animals of the test split, finish the run."""
    best = checkpoints.load(run.best)
    job.network.model.load_state_dict(best["model"])
    similarity, others = compare(job, pairs.only(~pairs.is_same))
    threshold = figures.threshold_at(similarity, s.WANTED_FALSE_MATCHES)
    lists, notes = to_test
    embedder = embed.Embedder(job.network, str(run.best), data=run.data, threshold=threshold)
    how = {"batch_size": job.batch_size, "num_workers": job.num_workers}
    measured = evaluation.run(dataset, *lists, embedder, job.source, {}, **how)
    if measured is None:  # the first process has it
        return 0
    stop.leave_at_once()
    print("\n".join(notes), end="\n" * bool(notes))
    matching = {"threshold": threshold, "false_match_rate": s.WANTED_FALSE_MATCHES}
    checkpoints.save(run.best, {**best, "matching": matching})
    facts = {"network": str(run.best), "split": "test", "data": dataset.fingerprint()}
    summary = evaluation.write_evaluation(run.path, *measured, facts)
    verified, found = summary["verification"], summary["reidentification"]
    rows = training.progress.history
    values: dict[str, Any] = {
        "epochs": len(rows),
        "best_epoch": best["figures"]["epoch"],
        "train_minutes": sum(row["train_s"] for row in rows) / 60,
        "val_auc": best["figures"]["val_auc_frac"],
        "test_pairs": verified["num_pairs"],
        "test_auc": verified["auc"],
        "test_queries": found["num_queries"],
        "test_top1": found.get("top1"),
        "test_top5": found.get("top5"),
        "test_mean_average_precision": found.get("mean_average_precision"),
        "num_unreadable": len(job.failures.messages),
        "checkpoint": str(run.best),
    }
    run.write_metrics(rows)  # again: a kill may have come just before the last time
    job.failures.write()
    run.finish(
        values, {"identity": {key: summary[key] for key in ("verification", "left_out", "learnt")}}
    )
    return 0


if __name__ == "__main__":
    run_script(main)
