"""Gradients of several processes, summed while they appear."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from petface import distributed

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
