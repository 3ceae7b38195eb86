"""What a step draws, ahead of it: augmentation, partners to mix with, the seed of dropout."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from petface import distributed
from petface.data.loading import Batch
from petface.training.augment.exact import Table
from petface.training.augment.mixing import Mixed, Mixing, draw_mix
from petface.training.augment.regimes import AugmentRegime, draw_parameters
from petface.training.step import Share


@dataclass(frozen=True, eq=False)
class Draws:
    """What was drawn for the images of a step."""

    table: Table
    mix: partial[Mixed] | None
    dropout_seed: int

    @property
    def uploads(self) -> list[Tensor]:
        """The tensors on the device."""
        return [self.table.rows, *([self.mix.keywords["partner"]] if self.mix else [])]


@dataclass(frozen=True)
class Lots:
    """What the draws of an epoch's steps depend on."""

    seed: int
    epoch: int
    regimes: tuple[AugmentRegime, AugmentRegime]
    mixing: Mixing

    def draw(self, batch: Batch, share: Share | None = None) -> Draws:
        """Draw for a batch; with a share of a common one, what the common one would draw."""
        num, device = len(batch.images), batch.images.device
        share = share or Share(0, num, num, [])
        own = slice(share.first, share.first + num)
        is_tail = torch.zeros(share.num_images, dtype=torch.bool)
        is_tail[own] = batch.is_tail
        numbers = self.seed, self.epoch, batch.step
        generator = torch.Generator().manual_seed(step_seed(*numbers))
        parameters = draw_parameters(is_tail, *self.regimes, generator)[own]
        height, width = batch.images.shape[2:]
        return Draws(
            Table.of(parameters, height, width, device),
            draw_mix(num, self.mixing, generator, device),
            step_seed(*numbers, *distributed.place()),
        )


def step_seed(*numbers: int) -> int:
    """Mix numbers into one 63-bit seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed the generators that dropout draws from; `torch.manual_seed` takes longer for all."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
