"""Mix the images of a batch in pairs (mixup, CutMix), and the loss over labels that may be unknown.

Both give each image a partner from the same batch and a share: how much of the result is the image
itself. The labels of the partners are `labels[mixed.partner]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class Mixed:
    """A mixed batch: images (B, C, H, W), partner (B,) int64 and share (B,) float32, on their
    device.
    """

    images: Tensor
    partner: Tensor
    share: Tensor


def mixup(images: Tensor, alpha: float, generator: torch.Generator) -> Mixed:
    """Blend each of (B, C, H, W) float images with a partner: share * own + (1 - share) * partner.

    The share is Beta(alpha, alpha), drawn per image by `generator` (on the CPU), float arithmetic
    in the images' dtype. Zhang et al., "mixup", arXiv 1710.09412.
    """
    partner, share = (t.to(images.device) for t in _draw_pairs(len(images), alpha, generator))
    own = share.to(images.dtype).view(-1, 1, 1, 1)
    return Mixed(torch.lerp(images[partner], images, own), partner, share)


def cutmix(images: Tensor, alpha: float, generator: torch.Generator) -> Mixed:
    """Replace a rectangle of each of (B, C, H, W) images by the same place of its partner.

    The rectangle has the image's shape, 1 - Beta(alpha, alpha) of its area, a uniform centre and is
    cut at the border; the share counts the pixels that were kept. Any dtype. Yun et al., "CutMix",
    arXiv 1905.04899.
    """
    num_images, _, height, width = images.shape
    partner, wanted = _draw_pairs(num_images, alpha, generator)
    centres = torch.rand((2, num_images), generator=generator)
    inside = []
    for centre, side in zip(centres, (height, width), strict=True):
        half = (1 - wanted).sqrt() * side / 2
        begin = (centre * side - half).round().clamp(0, side).view(-1, 1)
        end = (centre * side + half).round().clamp(0, side).view(-1, 1)
        place = torch.arange(side).view(1, -1)
        inside.append((place >= begin) & (place < end))
    lines, columns = inside
    replaced = lines.sum(1) * columns.sum(1)
    share = 1 - replaced.float() / (height * width)
    lines, columns, partner, share = (t.to(images.device) for t in (lines, columns, partner, share))
    is_partner = (lines.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1)
    return Mixed(torch.where(is_partner, images[partner], images), partner, share)


def mixed_cross_entropy(
    logits: Tensor, labels: Tensor, mixed: Mixed, label_smoothing: float = 0.0
) -> Tensor:
    """Average the cross-entropy over both labels of each pair, weighted by their shares.

    logits (B, K), labels (B,) int64 with -1 for unknown. Of a pair with one unknown label the known
    part counts alone, with its share; the sum is divided by the shares of all known labels, and is
    0 with a zero gradient where nothing is known. float32 scalar, no waiting for the device.
    """
    log_p = logits.float().log_softmax(1)
    total, weight = log_p.new_zeros(()), log_p.new_zeros(())
    for target, share in ((labels, mixed.share), (labels[mixed.partner], 1 - mixed.share)):
        known = target >= 0
        loss = F.nll_loss(log_p, target, ignore_index=-1, reduction="none")
        if label_smoothing:
            loss = (1 - label_smoothing) * loss - label_smoothing * log_p.mean(1)
        total = total + torch.where(known, share * loss, 0.0).sum()
        weight = weight + torch.where(known, share, 0.0).sum()
    return total / torch.where(weight > 0, weight, 1.0)


def _draw_pairs(num: int, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a partner for each of `num` images, a permutation, and shares from Beta(alpha, alpha).

    torch's Beta takes no generator: numpy's is seeded by it.
    """
    partner = torch.randperm(num, generator=generator)
    seed = int(torch.randint(1 << 62, (), generator=generator))
    share = np.random.default_rng(seed).beta(alpha, alpha, num).astype(np.float32)
    return partner, torch.from_numpy(share)
