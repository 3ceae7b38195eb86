"""Look for a learning rate: train some steps at a rising one, see where the loss falls and breaks.

    python -m tools.find_lr configs/stage1/tinypets.toml
    python -m tools.find_lr configs/stage2/realpets.toml SPECIES=cat PHASE_STAGES=all,all

The rate rises from LOW to HIGH by the same factor every step (Smith, "Cyclical Learning Rates",
arXiv 1506.01186), with the preset's data, network, augmentation, mixing and losses, in stage 2
with what its first phase trains. Stops where the loss is four times its lowest. Prints the rate of
the steepest fall, which is a good LR for one cosine, and a tenth of the rate where the loss was
lowest, which is the careful one; keeps lr_finder.csv and lr_finder.png in OUT.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from petface.errors import SettingsError, UserError, run_script

# isort: split
import numpy as np
import pandas as pd
import torch

from petface import files
from petface.data.dataset import choose_species, load_dataset
from petface.data.loading import Samples
from petface.drawing import figure_maker, save_png, tidy
from petface.models.architecture import Architecture, build_classifier
from petface.models.first_weights import initialise
from petface.models.multi_head import _MultiHeadModel, unfreeze
from petface.settings import Positive, PositiveFloat, Settings, read_settings
from petface.training import runs
from petface.training.augment import mixing, regimes
from petface.training.epoch import MAX_BAD_STEPS, Progress, train_epoch
from petface.training.evaluate import Job
from petface.training.recipe import make_optimizer
from petface.training.schedule import EarlyStopping
from tools.sweep import SCRIPTS, only_trainer

# ---- The test ----
LOW: PositiveFloat = 1e-6
HIGH: PositiveFloat = 1.0
STEPS: Positive = 100
OUT: str = "runs/lr_finder"

MIN_STEPS = 20
_SMOOTHING = 0.9  # of the loss, an exponential average
_BROKEN = 4.0  # times the lowest smoothed loss


def main() -> None:
    asked = read_settings(
        sys.modules[__name__], positional=("PRESET", "a preset, then NAME=value for the trainer")
    )
    trainer = only_trainer(asked.positional)
    if asked.LOW >= asked.HIGH:
        raise SettingsError(f"LOW {asked.LOW} is not below HIGH {asked.HIGH}")
    if asked.STEPS < MIN_STEPS:
        raise SettingsError(f"STEPS must be at least {MIN_STEPS}, not {asked.STEPS}")
    s = trainer.settings()
    make = specialist_job if trainer.script == SCRIPTS["stage2"] else species_job
    with tempfile.TemporaryDirectory() as folder:
        job, samples, order = make(trainer.module, s, runs.RunFolder(Path(folder)))
        rates, losses = rise(job, samples, order, s, asked.LOW, asked.HIGH, asked.STEPS)
    if len(losses) < MIN_STEPS // 2:
        raise UserError(
            f"the loss broke after {len(losses)} steps: lower LOW (now {asked.LOW}), or look at "
            "the data and WEIGHTS"
        )
    if min(losses) == max(losses):
        raise UserError(
            f"the loss is {losses[0]:g} at every rate, as it is where there is one class alone: no "
            "rate can be suggested"
        )
    smooth = smoothed(losses)
    steepest, careful = suggestions(rates, smooth)
    out = Path(asked.OUT)
    rows = [
        (f"{rate:.3e}", f"{loss:.5f}", f"{mean:.5f}")
        for rate, loss, mean in zip(rates, losses, smooth, strict=True)
    ]
    files.write_csv(out / "lr_finder.csv", ("learning_rate", "loss", "smoothed"), rows)
    draw(out / "lr_finder.png", rates, losses, smooth, steepest)
    print(f"steps: {len(losses)}\nsteepest: {steepest:.1e}\ncareful: {careful:.1e}\nfolder: {out}")


def species_job(module: Any, s: Settings, run: runs.RunFolder) -> tuple[Job, Samples, np.ndarray]:
    """Gather stage 1's job, its train part and the order of an epoch."""
    dataset = _dataset(s)
    parts, classes = module.split_into_samples(s, dataset), dataset.catalog.classes
    torch.manual_seed(s.SEED)
    model = build_classifier(_architecture(s), len(classes))
    initialise(model, s.WEIGHTS, s.PRETRAINED, {"species": classes})
    unfreeze(model, module.phases_of(s)[0].stages)
    train = parts["train"]
    sampler = module.make_sampler(s, train, len(classes))
    job = module.make_job(s, dataset, model, parts, sampler, run)
    return job, train, module.make_draw(s, sampler)(0)


def specialist_job(
    module: Any, s: Settings, run: runs.RunFolder
) -> tuple[Job, Samples, np.ndarray]:
    """Gather the job of the first species that stage 2 would train, in its first phase."""
    dataset = _dataset(s)
    species = choose_species(dataset, s.SPECIES, s.ANNOTATIONS_ROOT)[0][0]
    heads = dataset.annotations[species].heads
    first = next((h for h in module.PRIMARY_ATTR_PRIORITY[:-1] if h in heads), None)
    parts = module.split_into_samples(s, dataset, species, heads, first)
    torch.manual_seed(s.SEED)
    sizes = {head: len(names) for head, names in heads.items()}
    model = _MultiHeadModel(sizes, _architecture(s))
    initialise(model, s.WEIGHTS, s.PRETRAINED, heads, species)
    job = module.make_job(s, dataset, model, parts, first, run)
    unfreeze(model, module.phases_of(s)[0].stages)
    print(f"species: {species}")
    return job, parts["train"], module.make_draw(s, parts["train"], first)(0)


def _architecture(s: Settings) -> Architecture:
    return Architecture(s.BACKBONE, s.ATTENTION, s.HEAD_HIDDEN, s.DROPOUT, s.BODIES)


def _dataset(s: Settings) -> Any:
    return load_dataset(
        s.IMAGES_ROOT, s.ANNOTATIONS_ROOT, splits_file=s.SPLITS_FILE, seed=s.SPLIT_SEED
    )


def rise(
    job: Job,
    samples: Samples,
    order: np.ndarray,
    s: Settings,
    low: float,
    high: float,
    num_steps: int,
) -> tuple[list[float], list[float]]:
    """Train at rates from `low` to `high`; return the rate and the loss of each step.

    Ends early where the loss broke.
    """
    rates, losses = list[float](), list[float]()
    optimizer = make_optimizer(
        job.network.model, low, weight_decay=s.WEIGHT_DECAY, body_lr_factor=s.BODY_LR_FACTOR
    )
    progress = Progress(optimizer, job.network.grad_scaler(), EarlyStopping(0))
    images, total = 0, 0.0

    def rate(t: float) -> float:  # t = steps done / num_steps
        return low * (high / low) ** (t * num_steps / (num_steps - 1))

    def is_broken() -> bool:
        nonlocal images, total
        state = progress.epoch
        if state.num_images > images:
            rates.append(rate((state.step - 1) / num_steps))
            losses.append((state.loss_sum - total) / (state.num_images - images))
            images, total = state.num_images, state.loss_sum
        smooth = smoothed(losses)
        # fp16's scaler skips some steps before it finds its scale: only a row of them is a break
        return state.num_bad_in_a_row == MAX_BAD_STEPS - 1 or (
            len(smooth) > 1 and smooth[-1] > _BROKEN * min(smooth)
        )

    train_epoch(
        job,
        progress,
        samples,
        np.resize(order, num_steps * job.batch_size),
        regimes.regimes_of(s.BASE_AUGMENT, s.TAIL_AUGMENT),
        seed=s.SEED,
        rate=rate,
        mixing=mixing.Mixing(s.MIX, s.MIX_PROBABILITY, s.MIX_ALPHA, s.MIX_ADAPTS).after([]),
        losses_every=1,
        stop=is_broken,
    )
    return rates, losses


def smoothed(losses: list[float]) -> list[float]:
    """Return the exponential average of each step, corrected for its beginning."""
    return pd.Series(losses, dtype=float).ewm(alpha=1 - _SMOOTHING).mean().tolist()


def suggestions(rates: list[float], smooth: list[float]) -> tuple[float, float]:
    """Return the rate of the steepest fall over the logarithm of the rate, before the lowest loss,
    and a tenth of the rate of the lowest.

    The slope at a step is that of a line through the tenth of all steps before it and the tenth
    after it: single batches are noise.
    """
    x, y = np.log(rates), np.asarray(smooth)
    half = max(2, len(x) // 10)
    around = [slice(k - half, k + half + 1) for k in range(half, len(x) - half)]
    slopes = [np.polyfit(x[near], y[near], 1)[0] for near in around]
    lowest = int(np.argmin(y[half:])) + half
    before = slopes[: max(1, lowest - half + 1)]
    return rates[half + int(np.argmin(before))], rates[lowest] / 10


def draw(
    path: Path, rates: list[float], losses: list[float], smooth: list[float], steepest: float
) -> None:
    """Draw the loss over the rate into a PNG; a line where matplotlib is missing."""
    make_figure = figure_maker(path)
    if make_figure is None:
        return
    figure = make_figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, ".", alpha=0.4, label="loss of a batch")
    axes.plot(rates, smooth, label="smoothed")
    axes.axvline(steepest, color="0.6", linestyle="--", label=f"steepest fall, {steepest:.1e}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
    axes.set_ylim(top=2 * smooth[0])
    tidy(axes)
    axes.legend(frameon=False, fontsize=8)
    save_png(figure, path, 120)


if __name__ == "__main__":
    run_script(main)
