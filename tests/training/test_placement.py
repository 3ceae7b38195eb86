"""Both stages on a pretended GPU: everything runs where it should, and a step never waits."""

from __future__ import annotations

import traceback
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

from petface import devices, distributed
from petface.data.images import STATISTICS, Preprocessing
from petface.data.loading import Batch, Decoded, Samples
from petface.devices import Precision
from petface.models.architecture import PLAIN, Architecture, _MultiHeadModel, build_classifier
from petface.models.embedding import EmbeddingModel
from petface.models.network import Network
from petface.training import step
from petface.training.augment import exact
from petface.training.augment.mixing import Mixing
from petface.training.augment.regimes import draw_parameters, regimes_of
from petface.training.epoch import NO_MIXING, Progress, train_epoch
from petface.training.evaluate import Job, evaluate
from petface.training.graphs import StepGraphs
from petface.training.phases import make_optimizer
from petface.training.recipe import WeightAverage, heads_loss, margin_loss
from petface.training.schedule import EarlyStopping
from tests import pretended_gpu as pretended
from tests.pretended_gpu import pretended_gpu

SIZE, BATCH, STEPS = 32, 4, 2
SPECIES, HEADS = {"species": 3}, {"breed": 5, "color": 4, "gender": 2}
ANIMALS = {"animals": 6}


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
    epochs=(STEPS * BATCH,), graphs=False,
):  # fmt: skip
    """Train a step to make the optimizer's state, then `STEPS` that count."""
    torch.manual_seed(0)
    is_one = sizes is SPECIES
    model = build_classifier(architecture, 3) if is_one else _MultiHeadModel(sizes, architecture)
    if sizes is ANIMALS:
        model = EmbeddingModel(8, 6, architecture)
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
    if sizes is ANIMALS:
        loss = margin_loss("animals", "arcface", 0.3, 16.0)
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
    progress.graphs = StepGraphs(optimizer, network.device) if graphs else None
    rng = np.random.default_rng(1)

    def epoch(num):
        labels = {h: rng.integers(-1, k, num) for h, k in sizes.items()}
        samples = Samples(np.arange(num), labels, np.arange(num) % 2 == 0)
        order, regimes = np.arange(num), regimes_of("mild", "strong")
        how = {"seed": 0, "rate": lambda t: 2.0 ** -(9 + t // 0.5), "mixing": mixing}
        how["stop"] = lambda: after_step(progress)
        assert train_epoch(job, progress, samples, order, regimes, **how)
        progress.epoch = progress.epoch.next_epoch()
        return samples

    epoch(BATCH * distributed.world_size())
    gpu.clear()
    samples = [epoch(num * distributed.world_size()) for num in epochs][-1]
    return SimpleNamespace(job=job, progress=progress, samples=samples)


BOTH = Mixing("both", 1.0)
TWO = Architecture("resnet18", "se", 8, 0.1, 2)


@pytest.mark.parametrize(
    ("sizes", "options", "most"),
    [
        (SPECIES, {"precision": "fp32"}, 164),
        (SPECIES, {}, 208),
        (SPECIES, {"precision": "fp16"}, 217),
        (SPECIES, {"clip": 1.0, "decay": 0.9}, 218),
        (SPECIES, {"architecture": TWO}, 445),
        (ANIMALS, {}, 248),
        (HEADS, {}, 242),
        (HEADS, {"mixing": BOTH, "normalise": True, "decay": 0.9}, 273),
    ],
)
def test_a_training_step_never_waits(sizes, options, most):
    with pretended_gpu() as gpu:
        state = trained(gpu, sizes, **options).progress.epoch
        assert not gpu.waits and not gpu.pageable
        assert sum(gpu.launches.values()) <= most * STEPS, sum(gpu.launches.values()) / STEPS
    assert state.epoch == 2


@pytest.mark.parametrize(
    ("sizes", "epochs", "num", "options"),
    [
        (SPECIES, (12,), 1, {"precision": "fp16", "clip": 1.0, "decay": 0.9}),
        (HEADS, (9, 10, 8), 3, {"architecture": Architecture(dropout=0.5), "normalise": True}),
    ],
)
def test_a_recorded_step_is_one_launch_and_learns_the_same(sizes, epochs, num, options):
    """Batches of 4 | 3 3 3 | 4 3 3 | 4 4: from the fourth of a size on; rate and dropout change."""
    found = []
    for graphs in (False, True):
        with pretended_gpu() as gpu:
            run = trained(gpu, sizes, **options, epochs=epochs, graphs=graphs)
            found.append((run.progress.epoch, run.progress.optimizer.state_dict()))
            found[-1] += ({k: v.inner for k, v in run.job.network.model.state_dict().items()},)
            assert not gpu.waits and not gpu.pageable
            assert gpu.launches["graph"] == num * graphs
    (state, optimizer, model), (graphed_state, graphed_optimizer, graphed_model) = found
    assert state == replace(graphed_state, seconds=state.seconds)
    assert optimizer["param_groups"] == graphed_optimizer["param_groups"]
    for name, tensor in model.items():
        assert torch.equal(graphed_model[name], tensor), name


def test_what_cannot_be_recorded_is_launched_one_by_one(capfd):
    """Mixed batches are not tried, a failure ends the trying."""
    with pretended_gpu() as gpu, mock.patch.object(pretended._Graph, "note") as note:
        note.side_effect = torch.OutOfMemoryError("CUDA out of memory")
        trained(gpu, HEADS, mixing=BOTH, graphs=True, epochs=(16,))
        assert not note.called
        run = trained(gpu, HEADS, graphs=True, epochs=(16,))
        assert note.call_count == 1 and not gpu.launches["graph"]
    assert capfd.readouterr().err.count("steps are not recorded (CUDA out of memory)") == 1
    assert run.progress.optimizer.param_groups[0]["lr"] == 2.0**-12


def test_what_a_step_draws_is_made_and_sent_where_its_images_are():
    """That is the thread that uploads; the main thread pins nothing."""
    with pretended_gpu() as gpu:
        pin, pinned_by = gpu.pin, []

        def noted(tensor):
            pinned_by.append({frame.name for frame in traceback.extract_stack()})
            return pin(tensor)

        gpu.pin = noted
        trained(gpu, HEADS, architecture=TWO)
    ahead = [names for names in pinned_by if "train_epoch" in names]
    assert len(ahead) == (1 + STEPS) * (2 + len(HEADS)) + 2  # the losses of two epochs are kept
    assert sum("made" in names for names in ahead) == len(ahead) - 2


def test_several_processes_sum_gradients_in_few_kernels_during_the_backward_pass(monkeypatch):
    def begin_sum(numbers):
        sums.append((numbers.numel(), torch._C._current_graph_task_id() >= 0))
        return lambda: None

    launches = []
    for num in (1, 2):
        sums = []
        monkeypatch.setattr(distributed, "world_size", lambda num=num: num)
        monkeypatch.setattr(distributed, "begin_gather", lambda *own: lambda: [own] * 2)
        monkeypatch.setattr(distributed, "begin_sum", begin_sum)
        with pretended_gpu() as gpu:
            model = trained(gpu, HEADS).job.network.model
            assert sum(gpu.waits.values()) <= len(HEADS), "class weights, once an epoch"
        assert not gpu.pageable
        launches.append(sum(gpu.launches.values()) / STEPS)
    assert launches[1] - launches[0] <= 6 + 5 / STEPS  # buffers, once an epoch
    assert [is_early for _, is_early in sums] == [True, True, True, False] * (1 + STEPS)
    assert sum(numel for numel, _ in sums[:3]) > sum(p.numel() for p in model.parameters()) / 2


def test_what_cannot_be_compiled_runs_as_it_is_and_says_so_once(monkeypatch, capfd):
    with pretended_gpu() as gpu, monkeypatch.context() as patch:
        patch.setattr(torch, "compile", mock.Mock(side_effect=RuntimeError("no compiler")))
        plain = trained(gpu, HEADS).progress.epoch
        assert not gpu.waits and not gpu.pageable
    said = capfd.readouterr().err
    for name in ("on_gpu", "differentiate"):
        assert said.count(f"{name} is not compiled (no compiler): slower, the same result") == 1
    with pretended_gpu() as gpu:
        assert trained(gpu, HEADS).progress.epoch == plain


@pytest.mark.slow
def test_the_compiler_takes_augmentation_and_losses_at_every_size_of_a_batch():
    """It is torch's for the CPU: where a GPU is pretended, nothing is compiled."""
    cpu, rule = torch.device("cpu"), Preprocessing(SIZE, "stretch", *STATISTICS["imagenet"])
    network = Network(torch.nn.Conv2d(3, 3, 1), rule, cpu, Precision(None))
    counts = {head: np.arange(1, num + 1) for head, num in HEADS.items()}
    options = {"weight_alphas": dict.fromkeys(HEADS, 1.0), "label_smoothing": 0.1}
    _, loss = heads_loss(counts, dict.fromkeys(HEADS, 2.0), cpu, **options)
    torch.compiler.assume_constant_result(devices.constant)
    augmented, differentiated = (
        torch.compile(compiled.function, fullgraph=True)
        for compiled in (exact._on_gpu, step._differentiate)
    )
    for num in (8, 7, 9):
        pixels = torch.from_numpy(Pixels().read(np.arange(num)).arrays[0].numpy())
        images, is_tail = pixels.permute(0, 3, 1, 2), torch.arange(num) % 2 == 0
        p = draw_parameters(is_tail, *regimes_of("strong", "crop", 0.5), torch.Generator())
        found = augmented(images, exact.Table.of(p, SIZE, SIZE, cpu).rows, network.prepare, True)
        wanted = exact.augment(images, p, network.prepare)
        torch.testing.assert_close(found, wanted, atol=2e-4 / 0.22, rtol=0)
        labels = {head: torch.arange(num) % (k + 1) - 1 for head, k in HEADS.items()}
        batches = [Batch(num, np.arange(num), images, labels, is_tail)] * 2
        values = loss, tuple(torch.randn(num, k) for k in HEADS.values()), batches
        values += torch.tensor([0.3, 0.7]), torch.ones(1)
        torch.testing.assert_close(
            differentiated(*values), step._differentiate.function(*values), atol=1e-6, rtol=1e-5
        )


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
