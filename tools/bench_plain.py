"""The yardsticks: what one writes with torch and torchvision when speed is not the subject.

Transforms of `torchvision.transforms.v2`, one PIL image at a time, in the workers of a DataLoader;
fp32, (B, C, H, W) in memory, plain AdamW. Strengths, sizes, images and network are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

from petface.training.augment import AugmentRegime


def v2_chain(regime: AugmentRegime, size_px: int) -> v2.Compose:
    """Give torchvision's transforms of a regime: PIL image -> (3, H, W) float32 in [0, 1]."""
    r, steps = regime, [v2.Resize((size_px, size_px))]
    if r.flip_p:
        steps.append(v2.RandomHorizontalFlip(r.flip_p))
    if r.rotate_deg:
        shift, zoom = (r.translate_frac, r.translate_frac), (r.scale_min, r.scale_max)
        bilinear = InterpolationMode.BILINEAR
        steps.append(v2.RandomAffine(r.rotate_deg, shift, zoom, interpolation=bilinear))
    if r.brightness:
        steps.append(v2.ColorJitter(r.brightness, r.contrast, r.saturation, r.hue))
    steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    if r.erase_p:
        area = (r.erase_area_max_frac / 10, r.erase_area_max_frac)
        steps.append(v2.RandomErasing(r.erase_p, area))
    return v2.Compose(steps)


class Photos(Dataset):
    """Files with a class each, decoded and transformed one by one."""

    def __init__(
        self, paths: list[Path], labels: list[int], transform: Callable[[Image.Image], Tensor]
    ) -> None:
        self.paths, self.labels, self.transform = paths, labels, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        with Image.open(self.paths[place]) as image:
            return self.transform(image.convert("RGB")), self.labels[place]


def plain_loader(dataset: Photos, batch_size: int, num_workers: int, *, train: bool) -> DataLoader:
    """Load with workers that live on from epoch to epoch."""
    return DataLoader(
        dataset,
        batch_size,
        shuffle=train,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def plain_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader, device: torch.device
) -> int:
    """Train an epoch as tutorials do; give the number of images."""
    model.train()
    num_images, loss_sum = 0, 0.0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(images)
        num_images += len(images)
    return num_images


def plain_validation(model: nn.Module, loader: DataLoader, device: torch.device) -> int:
    """Measure the accuracy as tutorials do; give the number of images."""
    model.eval()
    num_right = num_images = 0
    with torch.no_grad():
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            num_right += (model(images).argmax(1) == labels).sum().item()
            num_images += len(images)
    return num_images
