"""A training step that several processes take together: who has how many images, one sum of all.

The losses of the processes' shares sum to the loss of the common batch, so their gradients do too:
the sum is what one process would have found, up to rounding and to BatchNorm, which sees the images
of its own process. Its running statistics are averaged over all images, so that every process has
the same weights and statistics after every step.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from petface import distributed
from petface.data.loading import Batch
from petface.errors import UserError
from petface.training.augment.exact import augment
from petface.training.augment.mixing import Mixed
from petface.training.augment.regimes import AugmentRegime, draw_parameters
from petface.training.evaluate import Job
from petface.training.losses import known_weight


@dataclass(frozen=True)
class Share:
    """What this process has of a common batch: alone, all of it."""

    first: int  # readable images on the processes before this one
    num_own: int
    num_images: int  # readable images on all
    failures: list[tuple[int, str]]  # of all: (catalog place, message)


def share_of(batch: Batch) -> Share:
    """Count with the other processes who has how many images of this step."""
    num_own = len(batch.positions)
    counts = distributed.gather_numbers(num_own, len(batch.failures))
    readable = [count[0] for count in counts]
    failures = batch.failures
    if len(counts) > 1 and any(count[1] for count in counts):
        lists = distributed.broadcast_object(distributed.gather_objects(batch.failures))
        failures = [failure for one in lists for failure in one]
    return Share(sum(readable[: distributed.rank()]), num_own, sum(readable), failures)


def augment_share(
    batch: Batch,
    share: Share,
    regimes: tuple[AugmentRegime, AugmentRegime],
    generator: torch.Generator,
) -> Tensor:
    """Augment (B, 3, H, W) uint8 as the common batch would be.

    Every image has its parameters whoever has it.
    """
    own = slice(share.first, share.first + share.num_own)
    is_tail = torch.zeros(share.num_images, dtype=torch.bool)
    is_tail[own] = batch.is_tail
    return augment(batch.images, draw_parameters(is_tail, *regimes, generator)[own])


def backward(
    job: Job,
    batch: Batch,
    x: Tensor,
    mixed: Mixed | None,
    scaler: torch.amp.GradScaler,
    num_parts: int,
) -> tuple[Tensor, int]:
    """Set the parameters' `grad` to the gradients of this process's images.

    Returns this process's part of the loss and the number of parts that were needed. With `mixed`,
    `x` are mixed images: each answers for its partner's labels too.

    What does not fit into the device's memory at once goes through in twice as many parts. Their
    sum is the same but for BatchNorm, which sees a part at a time.
    """
    totals = {
        head: known_weight(labels, job.class_weights.get(head)).reshape(1)
        for head, labels in batch.labels.items()
    }
    distributed.sum_in_place(list(totals.values()))
    batch = replace(batch, totals={head: total[0] for head, total in totals.items()})
    before = torch.get_rng_state()
    while True:
        try:
            return _in_parts(job, batch, x, mixed, scaler, num_parts), num_parts
        except torch.OutOfMemoryError as error:
            reason = str(error).splitlines()[0]
        for parameter in job.network.model.parameters():
            parameter.grad = None
        torch.set_rng_state(before)
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


def _in_parts(
    job: Job,
    batch: Batch,
    x: Tensor,
    mixed: Mixed | None,
    scaler: torch.amp.GradScaler,
    num: int,
) -> Tensor:
    # The totals hold for both: the partners are the same images in another order.
    targets = [(1.0, batch.labels)]
    if mixed is not None:
        targets = [(mixed.share, batch.labels)]
        targets += [(1 - mixed.share, mixed.partner_labels(batch.labels))]
    value = torch.zeros((), device=job.network.device)
    for rows in np.array_split(np.arange(len(x)), num):
        if len(rows):
            part = slice(rows[0], rows[-1] + 1)
            outputs = job.network(x[part])
            of_part = torch.zeros((), device=job.network.device)
            for weight, table in targets:
                labels = {head: label[part] for head, label in table.items()}
                of_part = of_part + weight * job.loss(outputs, replace(batch, labels=labels))
            scaler.scale(of_part).backward()
            value += of_part.detach()
    return value


def combine(
    model: nn.Module, parameters: Sequence[nn.Parameter], loss: Tensor, share: Share
) -> None:
    """Sum gradients and loss over all processes, in place; average what BatchNorm has counted."""
    if distributed.world_size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:  # this process had no image
            parameter.grad = torch.zeros_like(parameter)
    statistics = [
        statistic
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
        for statistic in (module.running_mean, module.running_var)
        if statistic is not None
    ]
    for statistic in statistics:
        statistic.mul_(share.num_own / share.num_images)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    distributed.sum_in_place([*gradients, *statistics, loss])
