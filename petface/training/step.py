"""A training step that several processes take together: who has how many images, one sum of all.

The losses of the processes' shares sum to the loss of the common batch, so their gradients do too:
the sum is what one process would have found, up to rounding and to BatchNorm, which sees the images
of its own process. Its running statistics are averaged over all images, so that every process has
the same weights and statistics after every step.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from petface import distributed
from petface.data.loading import Batch, Samples
from petface.devices import Compiled, constant, is_out_of_memory, to_device
from petface.errors import UserError
from petface.models.network import Outputs
from petface.training.augment.mixing import Mixed
from petface.training.evaluate import Job
from petface.training.losses import known_weight
from petface.training.recipe import Loss

# Of the norms that move: tables, and where they are kept, by type.
_Pairs = list[tuple[list[Tensor], list[Tensor]]]
_statistics: WeakKeyDictionary[nn.Module, tuple[list[_BatchNorm], _Pairs]] = WeakKeyDictionary()
_NUM_SUMS = 4  # messages a step
_norms: WeakKeyDictionary[nn.Module, list[_BatchNorm]] = WeakKeyDictionary()


def batchnorms(model: nn.Module) -> list[_BatchNorm]:
    """List the BatchNorms whose statistics move."""
    if (norms := _norms.get(model)) is None:  # looking through a network takes a host long
        _norms[model] = norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    return [norm for norm in norms if norm.training]


class GradientSum:
    """Sums gradients over all processes while the backward pass still runs.

    They become views of a few buffers, the last layers' first, each of which travels as soon as it
    is whole. BatchNorm's statistics and the loss are in the last. PyTorch's own
    `DistributedDataParallel` cannot begin again where a backward pass ran out of memory, nor leave
    a process without images.
    """

    def __init__(self, model: nn.Module) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad][::-1]
        ends = np.cumsum([parameter.numel() for parameter in parameters])
        which = (ends - 1) * _NUM_SUMS // ends[-1]
        self._groups = [
            [parameter for parameter, of in zip(parameters, which, strict=True) if of == number]
            for number in np.unique(which)
        ]
        tables = [(norm.running_mean, norm.running_var) for norm in batchnorms(model)]
        self._statistics = [table for pair in tables for table in pair if table is not None]
        last = [*self._groups[-1], *self._statistics, parameters[0].new_zeros(())]  # the loss
        self._buffers = [*map(_buffer, self._groups[:-1]), _buffer(last)]
        self._waits: list[Callable[[], None]] = []  # for the sums on their way
        self._missing: list[int] = []  # gradients of each group
        self.hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._note, number))
            for number, group in enumerate(self._groups)
            for parameter in group
        ]

    def begin(self, num_passes: int) -> None:
        """Expect every gradient from so many backward passes.

        A sum that an attempt before this one began is that of whole gradients: it stays.
        """
        self._missing = [num_passes * len(group) for group in self._groups]

    def _note(self, number: int, _: Tensor) -> None:
        self._missing[number] -= 1
        while len(self._waits) < len(self._groups) - 1 and not self._missing[len(self._waits)]:
            self._send()

    @torch.no_grad()
    def _send(self, *others: Tensor) -> None:
        number = len(self._waits)
        group, (buffer, views) = self._groups[number], self._buffers[number]
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in group]  # no images
        torch._foreach_copy_(views, [*found, *others])
        self._waits.append(distributed.begin_sum(buffer))

    @torch.no_grad()
    def finish(self, loss: Tensor, share: float) -> None:
        """Sum gradients and loss in place; average statistics, of which this one has `share`."""
        others = [*self._statistics, loss]
        if self._statistics:
            torch._foreach_mul_(self._statistics, share)
        while len(self._waits) < len(self._groups) - 1:
            self._send()
        self._send(*others)
        for wait in self._waits:
            wait()
        self._waits.clear()
        for group, (_, views) in zip(self._groups, self._buffers, strict=True):
            for parameter, view in zip(group, views, strict=False):
                parameter.grad = view
        torch._foreach_copy_(others, views[-len(others) :])


def _buffer(tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Make a buffer as large as tensors, and the view for each; they begin every 16 bytes."""
    begins = [0, *accumulate(-(-tensor.numel() // 4) * 4 for tensor in tensors)]
    buffer = tensors[0].new_zeros(begins.pop())
    places = zip(tensors, begins, strict=True)
    return buffer, [buffer.as_strided(t.size(), t.stride(), begin) for t, begin in places]


@contextmanager
def summing(model: nn.Module) -> Iterator[GradientSum | None]:
    """Give what sums the gradients of the block's steps; None for a process alone."""
    sums = GradientSum(model) if distributed.world_size() > 1 else None
    try:
        yield sums
    finally:
        for hook in sums.hooks if sums else ():
            hook.remove()


@dataclass(frozen=True)
class Share:
    """What this process has of a common batch: alone, all of it."""

    first: int  # readable images on the processes before this one
    num_own: int
    num_images: int  # readable images on all
    failures: list[tuple[int, str]]  # of all: (catalog place, message)


def shared(job: Job, samples: Samples, own: Iterable[Batch]) -> Iterator[tuple[Batch, Share]]:
    """Yield this process's batches of `samples`, and who has how many images of each step.

    Several processes tell each other a batch ahead, so that none waits for the answers. What they
    know of a head's labels is told, too: each has its share of one mean.
    """
    if distributed.world_size() == 1:
        for batch in own:
            num = len(batch.positions)
            yield batch, Share(0, num, num, batch.failures)
        return
    weights = {head: w if w is None else w.cpu() for head, w in job.class_weights.items()}
    asked: deque[tuple[Batch, Callable[[], list[list[float]]]]] = deque()
    for batch in own:
        known = [
            float(known_weight(torch.from_numpy(of[batch.positions]), weights.get(head)))
            for head, of in samples.labels.items()
        ]
        counts = len(batch.positions), len(batch.failures)
        asked.append((batch, distributed.begin_gather(*counts, *known)))
        if len(asked) > 1:
            yield _told(*asked.popleft())
    if asked:
        yield _told(*asked.popleft())


def _told(batch: Batch, answers: Callable[[], list[list[float]]]) -> tuple[Batch, Share]:
    numbers = np.array(answers())
    readable, bad = numbers[:, :2].astype(int).T
    failures = batch.failures
    if bad.any():
        lists = distributed.broadcast_object(distributed.gather_objects(batch.failures))
        failures = [failure for one in lists for failure in one]
    totals = to_device(torch.from_numpy(numbers[:, 2:].sum(0)).float(), batch.images.device)
    batch = replace(batch, totals=dict(zip(batch.labels, totals, strict=True)))
    first = int(readable[: distributed.rank()].sum())
    return batch, Share(first, len(batch.positions), int(readable.sum()), failures)


def backward(
    job: Job,
    batch: Batch,
    x: Tensor,
    mixed: Mixed | None,
    scaler: torch.amp.GradScaler,
    num_parts: int,
    sums: GradientSum | None = None,
) -> tuple[Tensor, int]:
    """Set the parameters' `grad` to the gradients of this process's images.

    Returns this process's part of the loss and the number of parts that were needed. With `mixed`,
    `x` are mixed images: each answers for its partner's labels too.

    What does not fit into the device's memory at once goes through in twice as many parts. Their
    sum is the same but for BatchNorm, which sees a part at a time. Of the attempt that failed
    nothing is left, neither in BatchNorm's statistics nor in the generators that dropout draws
    from.
    """
    is_recorded = x.is_cuda and torch.cuda.is_current_stream_capturing()
    undo = None if is_recorded else _undo(job)
    while True:
        if not batch.totals and (mixed or num_parts > 1):  # else the loss finds its own
            totals = {h: known_weight(v, job.class_weights.get(h)) for h, v in batch.labels.items()}
            batch = replace(batch, totals=totals)
        try:
            return _in_parts(job, batch, x, mixed, scaler, num_parts, sums), num_parts
        except (RuntimeError, MemoryError) as error:
            if undo is None or not is_out_of_memory(error):
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0]
        undo()  # here, where the error no longer holds what the attempt had computed
        if len(x) // (2 * num_parts) < 2:
            raise UserError(
                f"not enough memory on {job.network.device} for {-(-len(x) // num_parts)} images "
                f"at once ({reason}); lower IMAGE_SIZE_PX, or free the device"
            )
        num_parts *= 2
        print(
            f"out of memory: batches of {len(x)} go through in {num_parts} parts from now on, and "
            "their gradients are summed before each update",
            file=sys.stderr,
        )


def _undo(job: Job) -> Callable[[], None]:
    """Return what undoes an attempt at the gradients that begins now."""
    model, device = job.network.model, job.network.device
    norms = batchnorms(model)
    known = _statistics.get(model)
    if known is None or known[0] != norms:
        tables = [buffer for norm in norms for buffer in norm.buffers()]
        kinds = [[b for b in tables if b.is_floating_point() is kind] for kind in (True, False)]
        pairs = [(kind, [torch.empty_like(b) for b in kind]) for kind in kinds if kind]
        known = _statistics[model] = norms, pairs
    pairs = known[1]
    of_cpu = torch.get_rng_state()
    of_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def undo() -> None:
        for parameter in model.parameters():
            parameter.grad = None
        for own, kept in pairs:
            torch._foreach_copy_(own, kept)
        torch.set_rng_state(of_cpu)
        if of_device is not None:
            torch.cuda.set_rng_state(of_device, device)
            torch.cuda.empty_cache()

    for own, kept in pairs:  # one launch for each type
        torch._foreach_copy_(kept, own)
    return undo


@contextmanager
def _one_image(model: nn.Module) -> Iterator[None]:
    """Let BatchNorms that see one value per channel, a 1x1 map, normalise it as in evaluation.

    One value has no variance; torch refuses it. Larger maps of one image are normalised as ever.
    """
    norms = batchnorms(model)

    def look(norm: _BatchNorm, inputs: tuple[Tensor]) -> None:
        norm.training = inputs[0].numel() > inputs[0].shape[1]

    handles = [norm.register_forward_pre_hook(look) for norm in norms]
    try:
        yield
    finally:
        for norm, handle in zip(norms, handles, strict=True):
            handle.remove()
            norm.training = True


@contextmanager
def _counted_together(model: nn.Module) -> Iterator[None]:
    """Let the counters of all BatchNorms be raised in one launch, not in one for each."""
    tables = [norm._buffers for norm in batchnorms(model)]  # a module's own setting is slow
    counters = [table["num_batches_tracked"] for table in tables]
    for table in tables:
        table["num_batches_tracked"] = None
    try:
        yield
    finally:
        for table, counter in zip(tables, counters, strict=True):
            table["num_batches_tracked"] = counter
    if counted := [counter for counter in counters if counter is not None]:
        torch._foreach_add_(counted, 1)


def _in_parts(
    job: Job,
    batch: Batch,
    x: Tensor,
    mixed: Mixed | None,
    scaler: torch.amp.GradScaler,
    num: int,
    sums: GradientSum | None,
) -> Tensor:
    # The totals hold for both: the partners are the same images in another order.
    batches, one = [batch], constant((1.0,), job.network.device)
    scale, shares = scaler.scale(one), one
    if mixed is not None:
        partners = {head: label[mixed.partner] for head, label in batch.labels.items()}
        batches.append(replace(batch, labels=partners))
        shares = to_device(torch.tensor([mixed.share, 1 - mixed.share]), one.device)
    values = []
    num = min(num, max(1, len(x) // 2))  # a small last batch: two images at least in each part
    if sums is not None:
        sums.begin(num)
    ends = [-(-len(x) * k // num) for k in range(num + 1)]
    for begin, end in pairwise(ends):
        if begin < end:
            is_one, is_whole = end - begin == 1, num == 1
            with (_one_image if is_one else _counted_together)(job.network.model):
                outputs = job.network.forward(x if is_whole else x[begin:end])
            own = batches
            if not is_whole:
                labels = [{h: v[begin:end] for h, v in each.labels.items()} for each in batches]
                own = [replace(batch, labels=part) for part in labels]
            found = tuple(output.detach() for output in outputs)
            gradients, value = _differentiate(job.loss, found, own, shares, scale)
            torch.autograd.backward(outputs, gradients)
            values.append(value)
    return sum(values[1:], values[0]) if values else one[0] * 0


@Compiled
def _differentiate(
    loss: Loss, outputs: Outputs, batches: Sequence[Batch], shares: Tensor, scale: Tensor
) -> tuple[Outputs, Tensor]:
    """Return the gradients of the outputs, times `scale`, and the loss: its share of each batch."""

    def scaled(outputs: Outputs) -> tuple[Tensor, Tensor]:
        losses = [sum(loss(outputs, batch)) for batch in batches]
        value = sum(share * of for share, of in zip(shares, losses, strict=True))
        return value * scale[0], value

    return torch.func.grad(scaled, has_aux=True)(outputs)
