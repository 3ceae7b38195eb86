"""Stage 2: train one multi-head specialist per species for breed, colours and gender.

    python stage2_resnet_multi.py                        # every species, PetFace, 224 px
    python stage2_resnet_multi.py --species cat dog      # two of them
    python stage2_resnet_multi.py --config configs/stage2/demo.toml
    torchrun --nproc-per-node 8 stage2_resnet_multi.py --spread true   # a species for each GPU

Writes into runs/<RUN_NAME>/<species>: <species>_best.pt and <species>_last.pt, metrics.csv and
curves.png, confidence.png, confusion_test_<head>.csv and confusion_all_<head>.csv, errors.csv,
label_conflicts.csv, eval_summary_stage2.txt, settings.toml, environment.json and final.json. After
a stop the same command resumes; finished specialists are kept. Expected: see the presets.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Literal

from petface.errors import SettingsError, optional_room, run_script  # isort: split

import numpy as np
import torch

from petface import distributed
from petface.data.dataset import Dataset, choose_species, load_dataset
from petface.data.loading import Samples, worker_count
from petface.data.pack import image_source
from petface.data.splits import SPLITS
from petface.models import checkpoints
from petface.models.architecture import Architecture, _MultiHeadModel
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
from petface.taxonomy import PRIMARY_ATTR_PRIORITY, SpeciesTable, with_columns
from petface.training import recipe, records, runs, sampling, specialist
from petface.training.augment.mixing import Mixing, MixKind
from petface.training.augment.regimes import Strength, regimes_of
from petface.training.epoch import Progress, train_epoch
from petface.training.evaluate import Job, evaluate
from petface.training.phases import Optimization, Phase, Training, make_phases
from petface.training.records import Tracking
from petface.training.schedule import LrKind

# ---- Data: what changes the meaning of the figures ----
IMAGES_ROOT: str = "data/PetFace/images"  # <species>/<record>/<image>
ANNOTATIONS_ROOT: str = "data/PetFace/annotations"  # <species>.csv
SPLITS_FILE: str = ""  # "" = splits.csv beside the images folder; a folder = official split files
SPLIT_SEED: Seed = 0  # used when splits.csv is made, never after
ALIASES_FILE: str = ""  # a CSV species,feature,label,alias_of: labels that are one class
COLUMNS: tuple[str, ...] = ()  # over SPECIES_CONFIG: "cat.breed=Rasse", "cat.file=cats.csv"
SPECIES: str | tuple[str, ...] = "all"  # one species, several, or "all"
IMAGE_SIZE_PX: NonNegative = 224  # both sides; 0 = what the weights of BACKBONE were made for
RESIZE_RULE: Literal["stretch", "center_crop", "letterbox"] = "stretch"
NORMALIZE: Literal["none", "imagenet", "backbone"] = "imagenet"  # none: RGB in [0, 1]
MAX_BAD_FRACTION: Fraction = 0.01  # a run stops when more images than this cannot be read

# ---- Run ----
RUNS_ROOT: str = "runs"
RUN_NAME: str = "stage2"  # folder under RUNS_ROOT; each species gets a folder in it
SEED: Seed = 42
DEVICE: str = "auto"  # auto, cpu, cuda, cuda:1, mps; under torchrun auto is a GPU for each process
PRECISION: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: what is fast on the device
COMPILE: bool = False  # the network, by torch's compiler; a minute more at the start
CUDA_GRAPHS: bool = False  # True: a step is one launch on a GPU; never tried on one
PACK: str = ""  # "" = decode the files; auto = a pack beside the images, made once; or its path
NUM_WORKERS: int = -1  # decoding processes; 0 = a thread, -1 = by the number of cores
TENSORBOARD: bool = False  # the figures of every epoch as event files too
WANDB: str = ""  # project of Weights & Biases; "" = off; WANDB_MODE=offline needs no network
SPREAD: bool = False  # under torchrun: True = each process trains other species, alone

# ---- Network and optimisation ----
BACKBONE: str = "resnet18"  # resnet34/50, efficientnet_b0, mobilenet_v2/v3_small, timm/<name>
ATTENTION: Literal["none", "se"] = "none"  # se: squeeze-excitation after the last stage
HEAD_HIDDEN: NonNegative = 0  # units of a layer between features and answers; 0 = none
HEAD_BATCHNORM: bool = False  # BatchNorm of the features, where the head begins
POOLING: Literal["average", "both"] = "average"  # both: the maximum of each map, too
DROPOUT: Fraction = 0.0  # share of the features that a head does without in training; 0 = off
BODIES: Positive = 1  # networks side by side, their features in a row
WEIGHTS: str | tuple[str, ...] = "torchvision"  # none, timm, a file; or one for each body
PRETRAINED: Literal["auto", "require", "none"] = "auto"  # when these weights cannot be had
FREEZE_BATCHNORM: bool = False  # True for weights whose BatchNorm was folded away, and tiny data
PHASE_STAGES: tuple[str, ...] = ("layer4", "layer4+layer3")  # besides the heads; or all, heads
PHASE_LR: tuple[PositiveFloat, ...] = (1e-3, 3e-4)  # AdamW, made anew in each phase
BODY_LR_FACTOR: NonNegativeFloat = 1.0  # the body's rate is PHASE_LR times this
PHASE_EPOCHS: tuple[Positive, ...] = (30, 20)  # at most
PHASE_PATIENCE: tuple[NonNegative, ...] = (7, 5)  # epochs without a better validation loss; 0 = off
BATCH_SIZE: Positive = 128  # of each process under torchrun
WEIGHT_DECAY: NonNegativeFloat = 1e-4
SCHEDULE: LrKind = "constant"  # over each phase: cosine, restarts, linear, step, plateau
PLATEAU_PATIENCE: NonNegative = 3  # plateau: a tenth after as many epochs without a better one
WARMUP_FRAC: Fraction = 0.0  # share of each phase that the rate climbs; 0 = off
CLIP_NORM: NonNegativeFloat = 0.0  # gradients are scaled down to this norm; 0 = off
EMA_DECAY: Fraction = 0.0  # of the average of the weights, which is then measured; 0 = off
WANTED_ACCURACY: Fraction = 0.9  # of the answers that count as sure; 0 = all do

# ---- Losses, sampling, augmentation ----
FOCAL_GAMMA_COLOR: NonNegativeFloat = 2.0  # of all heads but gender, where there are colour heads
FOCAL_GAMMA_IMBAL: NonNegativeFloat = 2.5  # of the breed head, where it stands alone
LABEL_SMOOTHING: Fraction = 0.0  # 0 = off
LOGIT_ADJUSTMENT: NonNegativeFloat = 0.0  # by the shares of the classes; 1 = balanced softmax
CLASS_WEIGHTS: Literal["inverse", "none"] = "inverse"  # in the losses, by training frequency
CLASS_WEIGHT_ALPHA: NonNegativeFloat = 0.7  # inverse: (largest / count) ^ this, clipped
GENDER_WEIGHT_ALPHA: NonNegativeFloat = 1.0  # the same of the gender head
WEIGHT_CLIP: tuple[PositiveFloat, PositiveFloat] = (0.2, 8.0)  # of losses and sampler
SAMPLER: Literal["weighted", "shuffle"] = "weighted"  # on the first head with classes, not gender
SAMPLER_ALPHA: NonNegativeFloat = 0.7  # (largest / count) ^ this; 1 = equally often, unclipped
TAIL_QUANTILE: Fraction = 0.5  # minority = classes of that head up to this quantile; 0 = smallest
BASE_AUGMENT: Strength = "reference"  # none, mild, strong, crop (strong, a part enlarged)
TAIL_AUGMENT: Strength = "reference"  # for minority classes; reference: a bit stronger
BLUR: Fraction = 0.0  # share of the images that are blurred, by up to 2 px; 0 = off
MIX: MixKind = "none"  # pairs of images: mixup, cutmix, both (one of them by lot)
MIX_PROBABILITY: Fraction = 0.5  # share of the batches that are mixed
MIX_ADAPTS: bool = False  # True: up to MIX_PROBABILITY, more while the validation loss rises
MIX_ALPHA: PositiveFloat = 1.0  # of the Beta distribution of the shares
TOP_SUPPORT: NonNegative = 10  # classes listed one by one in eval_summary_stage2.txt

# ---- Species: the heads that are trained on <species>.csv ----
# head -> the column of its labels, or (column, classes): other labels are unknown then. gender is
# what GENDER_MAP makes of a lower-case cell, other heads are a choice among the known labels.
# "file" names another table than <species>.csv. Species that are not listed get every head. A
# checkpoint keeps its entry: the evaluation reads labels as the training did.
GENDER_MAP: Final = {"female": "female", "f": "female", "male": "male", "m": "male"}
SPECIES_CONFIG: Final[dict[str, SpeciesTable]] = {
    "cat": {"breed": "Breed", "color1": "Color1", "color2": "Color2", "gender": "Gender"},
    "chimp": {"breed": "Breed", "gender": "Gender"},
    "chinchilla": {"color1": "Color1", "color2": "Color2", "gender": "Gender"},
    "degus": {"color1": "Color1", "color2": "Color2", "gender": "Gender"},
    "dog": {"breed": "Breed", "gender": "Gender"},
    "ferret": {"color1": "Color1", "gender": "Gender"},
    "guineapig": {"breed": "Breed", "color1": "Color1", "color2": "Color2", "gender": "Gender"},
    "hamster": {"breed": "Breed", "color1": "Color1", "color2": "Color2", "gender": "Gender"},
    "hedgehog": {"color1": "Color1", "gender": "Gender"},
    "javasparrow": {"color": "Color", "color1": "Color1", "color2": "Color2", "gender": "Gender"},
    "parakeet": {"breed": "Breed", "color1": "Color1", "color2": "Color2", "gender": "Gender"},
    "pig": {"breed": "Breed", "color1": "Color1", "color2": "Color2", "gender": "Gender"},
    "rabbit": {"breed": "Breed", "color1": "Color1", "color2": "Color2", "gender": "Gender"},
}
HELP: Final = (  # what --help shows; --help-all shows every constant
    *("IMAGES_ROOT", "ANNOTATIONS_ROOT", "SPECIES", "IMAGE_SIZE_PX", "RUN_NAME", "SEED", "DEVICE"),
    *("PRECISION", "PACK", "BACKBONE", "WEIGHTS", "PHASE_EPOCHS", "BATCH_SIZE", "PHASE_LR"),
    *("PHASE_PATIENCE", "BASE_AUGMENT", "TAIL_AUGMENT"),
)
MAY_CHANGE: Final = ("DEVICE", "NUM_WORKERS", "PACK", "TENSORBOARD", "WANDB", "SPECIES", "SPREAD")
LIMITS: Final = (  # a resumed run may set these otherwise, too, where its data is the same
    *("IMAGES_ROOT", "ANNOTATIONS_ROOT", "SPLITS_FILE", "RUNS_ROOT", "RUN_NAME"),
    *("PHASE_EPOCHS", "PHASE_PATIENCE", "MAX_BAD_FRACTION", "COMPILE", "CUDA_GRAPHS"),
)


def main() -> int:
    s = read_settings(sys.modules[__name__], switches=runs.SWITCHES)
    distributed.start(s.DEVICE)
    print(s.provenance())
    if s.WEIGHT_CLIP[0] > s.WEIGHT_CLIP[1]:
        raise SettingsError(f"WEIGHT_CLIP must ascend, not {s.WEIGHT_CLIP}")
    phases_of(s)  # refused before anything is read
    if isinstance(s.SPECIES, str) and s.SPECIES != "all":
        runs.refuse_finished(runs.run_path(s.RUNS_ROOT, f"{s.RUN_NAME}/{s.SPECIES}"), s.switches)
    tables = with_columns(SPECIES_CONFIG, s.COLUMNS)
    read = {"splits_file": s.SPLITS_FILE, "seed": s.SPLIT_SEED, "aliases_file": s.ALIASES_FILE}
    read |= {"gender_map": GENDER_MAP, "reading_of": lambda name: {"table": tables.get(name)}}
    dataset = load_dataset(s.IMAGES_ROOT, s.ANNOTATIONS_ROOT, **read)
    print("\n".join(dataset.notes))
    if audit := optional_room("analysis.audit"):
        print(audit.quick_audit_line(dataset, s.ANNOTATIONS_ROOT, s.IMAGE_SIZE_PX, s.COLUMNS))
    chosen, notes = choose_species(dataset, s.SPECIES, s.ANNOTATIONS_ROOT)
    print("\n".join(notes), end="\n" * bool(notes))
    folders = [runs.run_path(s.RUNS_ROOT, f"{s.RUN_NAME}/{species}") for species in chosen]
    if "force" in s.switches:
        runs.replace_finished(folders)
    mine = chosen
    if s.SPREAD:
        rule = input_rule(s.BACKBONE, s.IMAGE_SIZE_PX, s.RESIZE_RULE, s.NORMALIZE)
        image_source(dataset.catalog, s.PACK, rule)  # a pack is made before they part
        mine = distributed.part_ways(chosen)
    with runs.StopRequest() as stop:
        for number, species in enumerate(mine, start=1):
            folder = folders[chosen.index(species)]
            is_finished = (folder / "final.json").exists()
            if len(chosen) > 1 and is_finished and "extend" not in s.switches:
                late = runs.late_report(folder)
                print(f"{species}: finished before, left alone ({folder}){late}")
                continue
            heads, bodies = dataset.annotations[species].heads, s.BODIES
            print(f"\n== {species} ({number} of {len(mine)}) =={runs.late_report(folder)}")
            learnt = (dataset, s.WEIGHTS, s.PRETRAINED, bodies, species, heads)
            with runs.open_run(
                folder,
                s.as_toml(),
                may_change=(*MAY_CHANGE, "BATCH_SIZE"),  # the images of a step must stay
                limits=LIMITS,
                describe=partial(describe_learnt, *learnt),
                global_batch_size=s.BATCH_SIZE * distributed.world_size(),
                tracking=Tracking(s.TENSORBOARD, s.WANDB),
                switches=s.switches,
                prefix=f"{species}_",
            ) as run:
                run.write_conflicts([dataset.annotations[species]])
                run.is_one_of_many = len(chosen) > 1
                run.later = specialist.share_of_work(dataset, species, mine[number:])
                if code := train_specialist(s, dataset, species, run, stop):
                    return code
    runs.end_of_force(folders)
    specialist.pool_species(runs.run_path(s.RUNS_ROOT, s.RUN_NAME))
    if len(chosen) > 1:
        print(f"\n{specialist.table_of(folders)}")
    return 0


def phases_of(s: Settings) -> list[Phase]:
    """Read the phases of the training."""
    return make_phases(s.PHASE_STAGES, s.PHASE_LR, s.PHASE_EPOCHS, s.PHASE_PATIENCE, s.BACKBONE)


def train_specialist(
    s: Settings, dataset: Dataset, species: str, run: runs.RunFolder, stop: runs.StopRequest
) -> int:
    """Train one specialist through its phases; then measure the best one on test and on all."""
    vocabularies = dataset.annotations[species].heads
    sampler_head = next((h for h in PRIMARY_ATTR_PRIORITY[:-1] if h in vocabularies), None)
    parts = split_into_samples(s, dataset, species, vocabularies, sampler_head)
    torch.manual_seed(s.SEED)
    body = s.BACKBONE, s.ATTENTION, s.HEAD_HIDDEN, s.DROPOUT, s.BODIES
    architecture = Architecture(*body, s.POOLING, s.HEAD_BATCHNORM)
    model = _MultiHeadModel({h: len(names) for h, names in vocabularies.items()}, architecture)
    pretrained = initialise(model, s.WEIGHTS, s.PRETRAINED, vocabularies, species)
    job = make_job(s, dataset, model, parts, sampler_head, run)
    distributed.copy_from_main(model)
    draw = make_draw(s, parts["train"], sampler_head)
    regimes = regimes_of(s.BASE_AUGMENT, s.TAIL_AUGMENT, s.BLUR)
    description = {
        "kind": "stage2",
        "species": species,
        "head_vocabs": {head: list(names) for head, names in vocabularies.items()},
        **architecture.stored(),
        "preprocessing": job.network.preprocessing.to_dict(),
        "pretrained": pretrained,
        "labels": dataset.annotations[species].reading,
    }
    rates = s.BODY_LR_FACTOR, s.SCHEDULE, s.WARMUP_FRAC, s.PLATEAU_PATIENCE, s.EMA_DECAY
    how = Optimization(s.WEIGHT_DECAY, *rates, s.CUDA_GRAPHS)
    watched = specialist.watched_loss(parts["val"])
    training = Training(phases_of(s), how, job, run, description, watched)
    mixing = Mixing(s.MIX, s.MIX_PROBABILITY, s.MIX_ALPHA, s.MIX_ADAPTS)
    training.resume()
    training.announce(parts)
    while training.has_epoch():
        epoch, measured = training.progress.epoch.epoch, training.progress.measured(job)
        val = train_epoch(
            job,
            training.progress,
            parts["train"],
            draw(epoch),
            regimes,
            seed=s.SEED,
            rate=training.rate(),
            mixing=mixing.after([row["val_loss"] for row in training.rows()]),
            picture=records.BatchPicture(run.path, vocabularies),
            stop=stop.asked,
        ) and evaluate(measured, parts["val"], "validate", stop=stop.asked)
        if not val:
            training.save_last()
            return stop.leave(f"in epoch {epoch + 1}")
        accuracies = {f"val_{head}_accuracy_frac": val.accuracy(head) for head in vocabularies}
        training.end_epoch(val, accuracies)
    return finish(s, run, job, parts, vocabularies, training.progress, stop)


def split_into_samples(
    s: Settings,
    dataset: Dataset,
    species: str,
    vocabularies: dict[str, tuple[str, ...]],
    sampler_head: str | None,
) -> dict[str, Samples]:
    """Cut one species into its splits; minority classes are marked."""
    places, labels = dataset.image_labels(species)
    # A photo without any known label teaches a specialist nothing.
    is_known = np.any([labels[head] >= 0 for head in vocabularies], axis=0)
    places, labels = places[is_known], {head: labels[head][is_known] for head in vocabularies}
    split = dataset.image_split[places]
    is_tail = np.zeros(len(places), bool)
    if sampler_head is not None:
        is_tail = sampling.tail_samples(labels[sampler_head], split == 0, s.TAIL_QUANTILE)
    return sampling.samples_by_split(places, labels, is_tail, split, needed=["train"], what=species)


def make_draw(s: Settings, samples: Samples, head: str | None) -> Callable[[int], np.ndarray]:
    """Return the order of an epoch: weighted on `head`, shuffled where it cannot carry weights."""
    weights, classes = class_weights(s, samples, head)
    if len(weights) == 1:
        return lambda epoch: sampling.shuffled(len(samples), s.SEED, epoch)
    return sampling.ClassWeightedSampler(classes, weights, seed=s.SEED).draw


def class_weights(s: Settings, samples: Samples, head: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Return a draw's weight of each class of `head`, and each sample's class."""
    head = None if s.SAMPLER == "shuffle" else head
    return sampling.head_weights(samples, head, s.SAMPLER_ALPHA, s.WEIGHT_CLIP)


def make_job(
    s: Settings,
    dataset: Dataset,
    model: _MultiHeadModel,
    parts: dict[str, Samples],
    head: str | None,
    run: runs.RunFolder,
) -> Job:
    """Gather what every pass needs; the network goes to the device."""
    preprocessing = input_rule(s.BACKBONE, s.IMAGE_SIZE_PX, s.RESIZE_RULE, s.NORMALIZE)
    network = Network.build(model, preprocessing, s.DEVICE, s.PRECISION, compiled=s.COMPILE)
    labels, (weights, classes) = parts["train"].labels, class_weights(s, parts["train"], head)
    num_images = sum(map(len, parts.values()))
    other = {"gender": s.GENDER_WEIGHT_ALPHA}
    weight_alphas = {h: other.get(h, s.CLASS_WEIGHT_ALPHA) for h in model.head_sizes}
    gammas = {"with_color": s.FOCAL_GAMMA_COLOR, "without_color": s.FOCAL_GAMMA_IMBAL}
    of_classes, loss = recipe.heads_loss(
        sampling.shown_counts(labels, model.head_sizes),
        recipe.focal_gammas(model.head_sizes, **gammas),
        network.device,
        weight_alphas=weight_alphas if s.CLASS_WEIGHTS == "inverse" else None,
        weight_clip=s.WEIGHT_CLIP,
        label_smoothing=s.LABEL_SMOOTHING,
        logit_adjustment=s.LOGIT_ADJUSTMENT,
        shown=sampling.shown_counts(labels, model.head_sizes, weights[classes]),
    )
    return Job(
        network=network,
        num_classes=model.head_sizes,
        loss=loss,
        class_weights=of_classes,
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
    vocabularies: dict[str, tuple[str, ...]],
    progress: Progress,
    stop: runs.StopRequest,
) -> int:
    """Calibrate <species>_best.pt, measure it on the test split and on all photos."""
    from petface.calibration import calibrate_heads, headline_metrics, rows_to_pool

    best = checkpoints.load(run.best)
    job.network.model.load_state_dict(best["model"])
    seen = {
        name: evaluate(job, part, name, keep_answers=name != "train", stop=stop.asked)
        for name, part in parts.items()
    }
    if not all(seen.values()):
        return stop.leave("in the last passes")
    if not distributed.is_main():
        return 0
    fitted, measured = calibrate_heads(seen["val"].answers, seen["test"].answers, s.WANTED_ACCURACY)
    pool = rows_to_pool(seen["val"].answers, fitted)
    checkpoints.save(run.best, {**best, "calibration": fitted, "pool": pool})
    test = seen["test"].confusions
    every = {head: sum(seen[name].confusions[head] for name in SPLITS) for head in vocabularies}
    figures: dict[str, Any] = {
        "epochs": len(progress.history),
        "train_minutes": sum(row["train_s"] for row in progress.history) / 60,
        "test_images": seen["test"].num_images,
        "num_unreadable": len(job.failures.messages),
    }
    for head in vocabularies:
        known = parts["train"].labels[head], parts["test"].labels[head]
        figures |= specialist.head_figures(head, seen["val"].confusions[head], test[head], *known)
    figures |= {**headline_metrics(measured), "checkpoint": str(run.best)}
    matrices = {"test": test, "all": every}
    specialist.write_specialist_report(run.path, vocabularies, matrices, s.TOP_SUPPORT)
    run.write_metrics(progress.history)  # again: a kill may have come just before the last time
    job.failures.write()
    run.finish(figures, {"calibration": measured})
    return 0


if __name__ == "__main__":
    run_script(main)
