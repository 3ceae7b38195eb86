"""Both stages on a pretended GPU: everything runs where it should, and a step never waits."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from petface.data.images import STATISTICS, Preprocessing
from petface.data.loading import Decoded, Samples
from petface.models.architecture import PLAIN, Architecture, build_classifier
from petface.models.multi_head import _MultiHeadModel
from petface.models.network import Network
from petface.training.augment.mixing import Mixing
from petface.training.augment.regimes import regimes_of
from petface.training.epoch import NO_MIXING, Progress, train_epoch
from petface.training.evaluate import Job, evaluate
from petface.training.recipe import WeightAverage, heads_loss, make_optimizer
from petface.training.schedule import EarlyStopping
from tests.pretended_gpu import pretended_gpu

SIZE, BATCH, STEPS = 32, 4, 2
SPECIES, HEADS = {"species": 3}, {"breed": 5, "color": 4, "gender": 2}


class Pixels:
    """Made-up pixels without a file."""

    decodes, catalog = False, None

    def read(self, places: np.ndarray) -> Decoded:
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 255, (len(places), SIZE, SIZE, 3), dtype=np.uint8)
        return Decoded((torch.from_numpy(pixels),), np.zeros(len(places), np.uint8), [])


def trained(
    gpu, sizes, precision="bf16", architecture=PLAIN, *,
    clip=0.0, decay=0.0, mixing=NO_MIXING, normalise=False, after_step=lambda _: False,
):  # fmt: skip
    """Train a step to make the optimizer's state, then `STEPS` that count."""
    torch.manual_seed(0)
    is_one = sizes is SPECIES
    model = build_classifier(architecture, 3) if is_one else _MultiHeadModel(sizes, architecture)
    rule = Preprocessing(SIZE, "stretch", *STATISTICS["imagenet" if normalise else "none"])
    network = Network.build(model, rule, "cuda", precision)
    counts = {head: np.arange(1, num + 1) for head, num in sizes.items()}
    weights, loss = heads_loss(
        counts,
        dict.fromkeys(sizes, 0.0 if is_one else 2.0),
        network.device,
        weight_alphas=None if is_one else dict.fromkeys(sizes, 1.0),
        label_smoothing=0.1 if mixing.kind != "none" else 0.0,
    )
    job = Job(
        network=network,
        num_classes=sizes,
        loss=loss,
        class_weights=weights,
        source=Pixels(),
        batch_size=BATCH,
        num_workers=0,
        failures=SimpleNamespace(add=lambda _: None),
        clip_norm=clip,
    )
    optimizer = make_optimizer(model, 1e-3, weight_decay=0.01)
    progress = Progress(optimizer, network.grad_scaler(), EarlyStopping(0, mode="max"))
    progress.average = WeightAverage(model, decay) if decay else None
    rng = np.random.default_rng(1)

    def epoch(num):
        labels = {h: rng.integers(-1, k, num) for h, k in sizes.items()}
        samples = Samples(np.arange(num), labels, np.arange(num) % 2 == 0)
        order, regimes = np.arange(num), regimes_of("mild", "strong")
        how = {"seed": 0, "rate": lambda _: 1e-3, "mixing": mixing}
        how["stop"] = lambda: after_step(progress)
        assert train_epoch(job, progress, samples, order, regimes, **how)
        progress.epoch = progress.epoch.next_epoch()
        return samples

    epoch(BATCH)
    gpu.clear()
    samples = epoch(BATCH * STEPS)
    return SimpleNamespace(job=job, progress=progress, samples=samples)


BOTH = Mixing("both", 1.0)
TWO = Architecture("resnet18", "se", 8, 0.1, 2)


@pytest.mark.parametrize(
    ("sizes", "options", "most"),
    [
        (SPECIES, {"precision": "fp32"}, 270),
        (SPECIES, {}, 315),
        (SPECIES, {"precision": "fp16"}, 330),
        (SPECIES, {"clip": 1.0, "decay": 0.9}, 330),
        (SPECIES, {"architecture": TWO}, 590),
        (HEADS, {}, 435),
        (HEADS, {"mixing": BOTH, "normalise": True, "decay": 0.9}, 680),
    ],
)
def test_a_training_step_never_waits(sizes, options, most):
    with pretended_gpu() as gpu:
        state = trained(gpu, sizes, **options).progress.epoch
        assert not gpu.waits and not gpu.pageable
        assert sum(gpu.launches.values()) <= most * STEPS
    assert state.epoch == 2


def test_what_is_saved_between_two_reads_of_the_losses_counts_all_steps():
    """As where a disk fails, and a stop comes, in the middle of an epoch."""
    saved = []
    with pretended_gpu() as gpu:
        trained(gpu, SPECIES, after_step=lambda p: saved.append(p.state_dict()["epoch_state"]))
    assert [state["num_images"] for state in saved] == [BATCH, BATCH, STEPS * BATCH]


def test_a_measured_batch_is_waited_for_once():
    for sizes in (SPECIES, HEADS):
        with pretended_gpu() as gpu:
            run = trained(gpu, sizes, decay=0.9)
            gpu.clear()
            seen = evaluate(run.progress.measured(run.job), run.samples, "validate")
            assert seen.num_images == BATCH * STEPS and np.isfinite(seen.loss)
            assert sum(gpu.waits.values()) == STEPS and not gpu.pageable, gpu.waits
