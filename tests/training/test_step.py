"""Steps taken together: gradients, counts and figures against one process with all the images."""

import copy
import multiprocessing
import socket
import time
from dataclasses import replace
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from petface import distributed
from petface.data.images import Preprocessing
from petface.data.loading import Batch, Samples
from petface.devices import Precision
from petface.errors import UserError
from petface.models.network import Network
from petface.training import losses
from petface.training.augment.regimes import regimes_of
from petface.training.evaluate import evaluate
from petface.training.recipe import heads_loss
from petface.training.step import GradientSum, backward, shared
from tests import scripts
from tests.training.small import (
    CPU,
    HEADS,
    SHOWN,
    SIZE,
    Small,
    make_job,
    progress_of,
    same,
    samples_of,
    train,
)

STRONG = regimes_of("mild", "strong")


def job_of(images, folder, batch_size):
    torch.manual_seed(0)
    return make_job(images, folder, Small(is_plain=True), batch_size, 2.0, weighted=True)


def train_and_measure(images, folder, batch_size, num):
    """Head one is known in the first half of the images alone, head two in every third."""
    order = np.arange(num)  # so that the known labels of a head lie with few processes
    one, two = np.where(order < num // 2, order % 3, -1), np.where(order % 3 == 0, order % 2, -1)
    job, samples = job_of(images, folder, batch_size), samples_of(order, one, two)
    if batch_size > 1 and distributed.rank() == 1:
        out = torch.OutOfMemoryError("CUDA out of memory")  # when other sums are on their way
        job.network.model.body[0].weight.register_hook(fail_once(out))
    progress = progress_of(job, torch.optim.SGD(job.network.model.parameters(), lr=1.0, fused=True))
    assert train(job, progress, samples, order, STRONG, rate=0.3, seed=3)
    seen = evaluate(job, samples, "all", keep_answers=True)
    model = {k: v.numpy() for k, v in job.network.model.state_dict().items()}
    fresh = evaluate(job_of(images, folder, batch_size), samples, "all", keep_answers=True)
    failures = list(job.failures.messages)
    return model, (progress.epoch.loss_sum, progress.epoch.num_images), seen, fresh, failures


def fail_once(error):
    left = [error]

    def fail(*_):
        if left and left[0] is not None:
            raise left.pop()

    return fail


def _work(hooks, pipe, function, arguments):
    for hook in filter(None, hooks):
        hook()
    distributed.start("cpu")
    pipe.send(function(*arguments))


def together(world_size, function, *arguments, hook=None):
    """Call a function in several processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*scripts._PRELOADED])
    started = []
    with mock.patch.dict("os.environ", scripts.ENVIRONMENT):
        for rank in range(world_size):
            here, there = context.Pipe()
            hooks = scripts.Place(rank, world_size, port), hook
            process = context.Process(target=_work, args=(hooks, there, function, arguments))
            process.start()
            there.close()
            started.append((process, here))
    results = [here.recv() for _, here in started]
    for process, _ in started:
        process.join()
    return results


@pytest.mark.parametrize(("world_size", "batch_size", "num"), [(2, 4, 30), (3, 1, 7)])
def test_processes_together_are_one_process_with_all_images(
    tree, tmp_path, world_size, batch_size, num
):
    """Photos that cannot be read are among them; of 3 + 2 + 2 images one process gets none.
    One of two processes runs out of memory."""
    alone = train_and_measure(tree.images, tmp_path, batch_size * world_size, num)
    small = train_and_measure(tree.images, tmp_path, batch_size, num)
    model, (loss_sum, num_images), _, _, failures = alone
    first, *others = together(world_size, train_and_measure, tree.images, tmp_path, batch_size, num)
    for name, tensor in model.items():
        np.testing.assert_allclose(first[0][name], tensor, rtol=0, atol=1e-5)
        for other in others:
            assert np.array_equal(other[0][name], first[0][name])
    assert first[1] == (pytest.approx(loss_sum, rel=1e-6), num_images)
    for one in (first, *others):
        assert one[1] == first[1] and one[4] == failures
        seen, expected = one[3], small[3]  # the same weights and the same batches
        assert seen.loss == expected.loss
        for head, matrix in expected.confusions.items():
            assert np.array_equal(seen.confusions[head], matrix)
        assert (seen.num_images, seen.num_unreadable) == (
            expected.num_images,
            expected.num_unreadable,
        )
    assert all(other[3].answers == {} for other in others)
    for head, answers in small[3].answers.items():
        for found, expected in zip(first[3].answers[head], answers, strict=True):
            assert np.array_equal(found, expected)


def wait_in_vain(sleep_s):
    """Return what the first process says where the second does not answer."""
    if distributed.rank():
        return time.sleep(sleep_s)
    with pytest.raises(UserError) as said:
        distributed.begin_gather(1)()
    return str(said.value)


@pytest.mark.parametrize(("sleep_s", "reason"), [(0, "tcp"), (4, "timed out")])
def test_a_process_that_ends_or_hangs_is_told_in_one_line(sleep_s, reason):
    limit = partial(scripts.set_constant, "petface.distributed", "STEP_TIMEOUT", timedelta(0, 2))
    said, _ = together(2, wait_in_vain, sleep_s, hook=limit)
    assert "process 0 of 2 lost the others: one has ended or hangs" in said
    assert reason in said and "\n" not in said


def batch_of(num):
    draw = torch.Generator().manual_seed(1)
    labels = {"one": torch.arange(num) % 4 - 1, "two": torch.full((num,), -1)}
    labels["two"][-1] = 1
    x = torch.rand((num, 3, SIZE, SIZE), generator=draw)
    nothing = torch.empty(0)
    return Batch(0, np.arange(num), nothing, labels, torch.zeros(num, dtype=torch.bool)), x


def test_losses_of_parts_sum_to_the_loss_of_the_whole():
    """Against torch's own mean over the known targets."""
    draw = torch.Generator().manual_seed(2)
    logits = torch.randn((9, 3), generator=draw)
    target = torch.tensor([-1, 0, 2, -1, -1, -1, 1, 1, 0])
    for weights in (None, torch.tensor([0.2, 5.0, 1.0])):
        for smoothing in (0.0, 0.1):
            total = losses.known_weight(target, weights)
            parts = [
                losses.masked_focal_loss(logits[rows], target[rows], 0.0, weights, smoothing, total)
                for rows in (slice(0, 2), slice(2, 6), slice(3, 6), slice(6, 9))
            ]
            assert parts[2] == 0  # nothing known
            expected = F.cross_entropy(
                logits, target, weights, ignore_index=-1, label_smoothing=smoothing
            )
            torch.testing.assert_close(parts[0] + parts[1] + parts[3], expected)


def test_failures_on_one_process_alone_reach_all(monkeypatch):
    """Each batch is told while the one before is used; without a failure, by numbers alone."""
    told, sent, others = [], [], iter([(3, 1, 2.5, 0), (3, 0, 2.5, 0)])
    two = {"rank": lambda: 1, "world_size": lambda: 2, "broadcast_object": lambda own: own}
    two["gather_objects"] = lambda own: sent.append(own) or [[(7, "bad")], own]
    two["begin_gather"] = lambda *own: told.append(own) or partial(list, [next(others), own])
    for name, function in two.items():
        monkeypatch.setattr(distributed, name, function)
    batch, x = batch_of(2)
    samples = Samples(np.arange(2), {h: v.numpy() for h, v in batch.labels.items()}, batch.is_tail)
    job = SimpleNamespace(class_weights={"one": torch.tensor([0.5, 1, 1])})
    both = shared(job, samples, [replace(batch, images=x)] * 2)
    for failures in ([(7, "bad")], []):
        found, share = next(both)
        assert (share.first, share.num_own, share.num_images) == (3, 2, 5)
        assert share.failures == failures and told == [(2, 0, 0.5, 1.0)] * 2
        assert found.totals == {"one": 3.0, "two": 1.0}
    assert sent == [[]]


def test_gradients_are_summed_and_statistics_averaged_over_all_images(monkeypatch):
    """The other process has one image of four, and had the same to tell."""
    model, loss, first = Small(), torch.tensor(2.0), torch.ones(4, 3, 3, 3)
    model.body[1].running_mean.fill_(4.0)
    model.body[0].weight.grad = first.clone()
    monkeypatch.setattr(distributed, "begin_sum", lambda numbers: numbers.mul_(2).sum)
    GradientSum(model).finish(loss, 3 / 4)
    assert loss == 4 and torch.equal(model.body[0].weight.grad, first * 2)
    assert model.body[1].running_mean.tolist() == [4.0 * 3 / 4 * 2] * 4
    assert all(p.grad is not None for p in model.parameters())  # 0 where it had no image


class Cramped(Small):
    """Does not go forward with more than `most` images, nor backward with `most` itself."""

    def __init__(self, most):
        super().__init__(is_plain=True)
        self.most, self.sizes = most, []

    def forward(self, x):
        self.sizes.append(len(x))
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to\nallocate")
        one, two = super().forward(x)
        if len(x) == self.most:
            one.register_hook(self._refuse)
        return one, two

    def _refuse(self, _):
        raise torch.OutOfMemoryError("CUDA out of memory in backward")


def gradients_of(model, batch, x, num_parts=1, sums=None):
    """(value, number of parts) of a batch; its gradients are left in the model."""
    network = Network(model, Preprocessing(SIZE), CPU, Precision(None))
    class_weights, loss = heads_loss(SHOWN, dict.fromkeys(HEADS, 2.0), CPU)
    job = SimpleNamespace(network=network, loss=loss, class_weights=class_weights)
    return backward(job, batch, x, None, network.grad_scaler(), num_parts, sums)


def gradients(model, num):
    batch, x = batch_of(num)
    value, parts = gradients_of(model, batch, x)
    return float(value), parts, [p.grad for p in model.parameters()]


def test_what_does_not_fit_into_memory_goes_through_in_parts(capfd):
    torch.manual_seed(4)
    model, roomy = Cramped(most=5), Small(is_plain=True)
    roomy.load_state_dict(model.state_dict())
    value, parts, expected = gradients(roomy, 20)
    assert parts == 1
    found_value, parts, found = gradients(model, 20)
    assert parts == 8 and max(model.sizes[-8:]) == 3  # 20, 10, then 5 forward but not backward
    assert found_value == pytest.approx(value, rel=1e-6)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    assert "batches of 20 go through in 8 parts from now on" in capfd.readouterr().err
    with pytest.raises(UserError, match="not enough memory on cpu for 2 images at once"):
        gradients(Cramped(most=1), 8)


KINDS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    *map(
        RuntimeError,
        [
            "CUDA error: out of memory\nCUDA kernel errors might be",
            "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
            "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
            "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
            "Unable to find a valid cuDNN algorithm to run convolution",
            "GET was unable to find an engine to execute this computation",
            "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory",
            "DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes",
            "MPS backend out of memory (MPS allocated: 1 GB)",
        ],
    ),
]


def attempt(num_parts, error=None, place="backward"):
    """The gradients of 9 images, where the third use of a layer raises `error`, once."""
    torch.manual_seed(4)
    model, (batch, x), fail = Small(), batch_of(9), fail_once(error)
    if place == "backward":
        model.body[0].weight.register_hook(fail)  # the last gradient: all others are there
    else:
        model.two.register_forward_hook(fail)
    value, parts = gradients_of(model, batch, x, num_parts)
    grads = {name: p.grad for name, p in model.named_parameters()}
    drawn = {"drawn": torch.rand(3), "value": value, "parts": torch.tensor(parts)}
    return {**model.state_dict(), **{f"{name}.grad": grad for name, grad in grads.items()}, **drawn}


@pytest.mark.parametrize("error", KINDS, ids=lambda error: str(error)[:50])
@pytest.mark.parametrize("place", ["forward", "backward"])
def test_of_an_attempt_that_ran_out_of_memory_nothing_is_left(error, place):
    found, wanted = attempt(1, error, place), attempt(2)
    assert wanted["body.1.num_batches_tracked"] == 2
    assert same(found, wanted)


def test_a_sum_that_runs_out_of_memory_is_one_line(monkeypatch):
    """As where NCCL makes its buffers: in the middle of the backward pass."""
    error = RuntimeError("NCCL error: unhandled cuda error\nCuda failure 2 'out of memory'")
    monkeypatch.setattr(distributed, "begin_sum", mock.Mock(side_effect=error))
    model, (batch, x) = Small(), batch_of(4)
    with pytest.raises(UserError, match=r"not enough memory on cpu for .*\(NCCL error"):
        gradients_of(model, batch, x, sums=GradientSum(model))
    assert distributed.begin_sum.call_count == 2


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="size mismatch"):
        attempt(1, RuntimeError("size mismatch, got 3"))


def test_a_small_last_batch_goes_through_in_parts_of_two_at_least():
    model = Cramped(most=9)
    for num, sizes in ((5, [3, 2]), (1, [1]), (2, [2]), (64, [8] * 8)):
        batch, x = batch_of(num)
        assert gradients_of(model, batch, x, 8)[1] == 8
        assert model.sizes == sizes
        model.sizes.clear()


class Pooled(nn.Module):
    """BatchNorm on a map of 5x5, then on one of 1x1."""

    def __init__(self):
        super().__init__()
        self.wide, self.narrow = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        pooled = nn.functional.adaptive_max_pool2d(self.wide(x), 1)
        self.seen = self.narrow(pooled).flatten(1)
        return self.one(self.seen), self.two(self.seen)


def test_one_image_on_a_map_of_one_place_is_normalised_by_the_running_statistics():
    torch.manual_seed(0)
    model = Pooled()
    model.narrow.running_mean.fill_(0.5)
    before = copy.deepcopy(model)
    batch, x = batch_of(1)
    gradients_of(model, batch, x)
    plain = nn.functional.batch_norm(x, None, None, training=True).amax((2, 3))
    wanted = (plain - 0.5) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(model.seen, wanted)
    assert same(model.narrow.state_dict(), before.narrow.state_dict())
    assert not torch.equal(model.wide.running_mean, before.wide.running_mean)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert all(module.training for module in model.modules())
    batch, x = batch_of(2)
    gradients_of(model, batch, x)
    assert model.narrow.num_batches_tracked == 1  # two images as ever
