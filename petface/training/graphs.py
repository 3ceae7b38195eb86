"""Whole training steps of a GPU as one launch each: CUDA graphs for the usual sizes of a batch.

As PyTorch's notes say (docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs). Tested with a
stand-in that repeats every operation on the same memory; never run on a GPU.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from petface.data.loading import Batch

Step = Callable[[Batch], tuple[Tensor, Tensor]]  # gives its loss, and whether it was finite
_NUM_WARM = 3  # steps of a size that run as ever, before one is recorded
_MOST = 2  # sizes of the batches of an epoch


class StepGraphs:
    """The steps that were recorded, by the size of their batch.

    The first steps of a size run as ever, on a stream of their own: that warms up what must not
    begin in a recording. A recording computes nothing, so that there is no state to restore.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._optimizer, self._stream = optimizer, torch.cuda.Stream(device)
        self._rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self._num_seen: Counter[Any] = Counter()
        self._recorded: dict[Any, tuple[torch.cuda.CUDAGraph, Batch, tuple[Tensor, Tensor]]] = {}
        self._pool: Any = None  # one for all: steps follow each other
        self._most = _MOST

    def take(self, batch: Batch, step: Step) -> tuple[Tensor, Tensor]:
        """Take a step, as one launch where one of this size was recorded.

        It must depend on pixels, labels and the table of the draws alone. What is returned is
        written anew by later steps.
        """
        key = len(batch.images), batch.draws.table.has_blur
        self._num_seen[key] += 1
        if self._num_seen[key] <= _NUM_WARM:
            here = torch.cuda.current_stream(batch.images.device)
            self._stream.wait_stream(here)
            with torch.cuda.stream(self._stream):
                found = step(batch)
            here.wait_stream(self._stream)
            return found
        if key not in self._recorded and len(self._recorded) < self._most:
            self._record(key, batch, step)
        if key not in self._recorded:
            return step(batch)
        graph, own, found = self._recorded[key]
        for to, source in zip(_inputs(own), _inputs(batch), strict=True):
            to.copy_(source)
        for rate, group in zip(self._rates, self._optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        graph.replay()
        return found

    def _record(self, key: Any, batch: Batch, step: Step) -> None:
        groups, graph = self._optimizer.param_groups, torch.cuda.CUDAGraph()
        before = [group["lr"] for group in groups]
        table = replace(batch.draws.table, rows=batch.draws.table.rows.clone())
        own = replace(
            batch,
            images=batch.images.clone(),
            labels={head: label.clone() for head, label in batch.labels.items()},
            draws=replace(batch.draws, table=table),
        )
        for group, rate in zip(groups, self._rates, strict=True):
            group.update(lr=rate, capturable=True)  # a number would stay as it is now
        try:  # uploads go on in their thread
            with torch.cuda.graph(graph, self._pool, self._stream, "thread_local"):
                found = step(own)
            self._recorded[key], self._pool = (graph, own, found), graph.pool()
        except RuntimeError as error:  # such as too little memory for a second set of everything
            self._most = len(self._recorded)
            self._optimizer.zero_grad(set_to_none=True)
            reason = (str(error) or type(error).__name__).splitlines()[0]
            print(f"steps are not recorded ({reason}): slower, the same result", file=sys.stderr)
        finally:
            for group, lr in zip(groups, before, strict=True):
                group.update(lr=lr, capturable=False)


def _inputs(batch: Batch) -> list[Tensor]:
    return [batch.images, batch.draws.table.rows, *batch.labels.values()]
