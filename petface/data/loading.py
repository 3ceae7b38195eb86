"""From image files to batches on the device: decoded ahead, uint8, with labels and masks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from petface import distributed
from petface.data import images
from petface.data.ahead import in_thread, in_workers
from petface.data.catalog import Catalog
from petface.data.images import ImageError, Preprocessing
from petface.devices import num_cores

OK, UNREADABLE, TOO_LARGE = 0, 1, 2  # what became of an image, one byte each
STATUS_NAMES = ("ok", "unreadable", "too_large")


@dataclass(frozen=True, eq=False)
class Samples:
    """Which images a pass works on: places in the catalog, their labels (-1 unknown), their
    regime.
    """

    images: np.ndarray  # (M,) int64 into the catalog
    labels: dict[str, np.ndarray]  # each (M,) int64
    is_tail: np.ndarray  # (M,) bool: strong augmentation

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch of readable images; unreadable ones are left out and named in `failures`."""

    step: int
    positions: np.ndarray  # (B,) int64 into the samples
    images: Tensor  # (B, 3, H, W) uint8, on the device
    labels: dict[str, Tensor]  # each (B,) int64, on the device
    is_tail: Tensor  # (B,) bool, on the CPU
    failures: list[tuple[int, str]] = field(default_factory=list)  # (catalog place, message)
    totals: dict[str, Tensor] = field(default_factory=dict)  # known weight per head, if it is a
    # part of a larger batch: of the whole


@dataclass(frozen=True, eq=False)
class Decoded:
    """A slice of the catalog after decoding: one array per preprocessing, status of every image."""

    arrays: tuple[Tensor, ...]  # each (number of ok images, size, size, 3) uint8
    status: np.ndarray  # (n,) uint8
    failures: list[tuple[int, str]]


class ImageReader(Protocol):
    """What gives the pixels of catalog images: `FileImages`, or a pack."""

    catalog: Catalog
    decodes: bool  # worth worker processes

    def read(self, indices: np.ndarray) -> Decoded:
        """Give the images at `indices` (n,) of the catalog."""


class FileImages:
    """Images read from their files, decoded once and resized to each of `rules`."""

    decodes = True

    def __init__(self, catalog: Catalog, *rules: Preprocessing) -> None:
        self.catalog = catalog
        self.rules = rules

    def read(self, indices: np.ndarray) -> Decoded:
        """Decode the images at `indices` (n,) of the catalog."""
        arrays = [np.empty((len(indices), r.size_px, r.size_px, 3), np.uint8) for r in self.rules]
        status = np.zeros(len(indices), np.uint8)
        failures: list[tuple[int, str]] = []
        num_ok = 0
        for place, index in enumerate(indices.tolist()):
            try:
                pixels = images.decode(self.catalog.path(index))
            except ImageError as error:
                status[place] = STATUS_NAMES.index(error.reason)
                failures.append((index, str(error)))
                continue
            for array, rule in zip(arrays, self.rules, strict=True):
                array[num_ok] = images.resize(pixels, rule.size_px, rule.resize)
            num_ok += 1
        return Decoded(tuple(torch.from_numpy(a[:num_ok]) for a in arrays), status, failures)


def read_ahead(
    source: ImageReader, slices: Sequence[np.ndarray], num_workers: int, *, depth: int = 3
) -> Generator[Decoded, None, None]:
    """Yield `source.read(s)` for each slice in order, decoded ahead of the consumer.

    `num_workers` 0 decodes in one thread of this process, more in that many worker processes, see
    `ahead.in_workers`. What need not be decoded is always read in one thread.
    """
    if num_workers > 0 and source.decodes:
        yield from in_workers(source.read, slices, num_workers, depth, attrgetter("arrays"))
        return
    yield from in_thread((source.read(part) for part in slices), depth)


def batches(
    source: ImageReader,
    samples: Samples,
    order: np.ndarray,
    batch_size: int,
    device: torch.device,
    *,
    num_workers: int = 0,
    first_step: int = 0,
    cut: Callable[[np.ndarray, int], list[np.ndarray]] | None = None,
) -> Iterator[Batch]:
    """Yield device batches of `samples` in `order` (n,) from `first_step` on.

    Batches hold `batch_size` images or a few fewer: sizes are evened out, so that no batch is tiny.
    `cut` makes other slices than `even_slices`. To a CUDA device the next batch is uploaded
    while this one is computed on.
    """
    slices = (cut or even_slices)(order, batch_size)[first_step:]
    made = _make_batches(source, samples, slices, device, num_workers, first_step)
    if device.type != "cuda":
        yield from made
        return
    for batch, uploaded in in_thread(_on_stream(made, torch.cuda.Stream(device)), 1):
        here = torch.cuda.current_stream(device)
        here.wait_event(uploaded)
        for tensor in (batch.images, *batch.labels.values()):
            tensor.record_stream(here)  # its memory is not used again before `here` is through
        yield batch


def _on_stream(
    made: Iterator[Batch], stream: torch.cuda.Stream
) -> Iterator[tuple[Batch, torch.cuda.Event]]:
    """Make each batch on `stream`; the event is over when its upload is."""
    while True:
        with torch.cuda.stream(stream):
            batch = next(made, None)
            if batch is None:
                return
            uploaded = torch.cuda.Event()
            uploaded.record(stream)
        yield batch, uploaded


def _make_batches(
    source: ImageReader,
    samples: Samples,
    slices: Sequence[np.ndarray],
    device: torch.device,
    num_workers: int,
    first_step: int,
) -> Iterator[Batch]:
    decoded = read_ahead(source, [samples.images[part] for part in slices], num_workers)
    for step, (part, item) in enumerate(zip(slices, decoded, strict=True), start=first_step):
        positions = part[item.status == OK]
        pixels = item.arrays[0].permute(0, 3, 1, 2)  # (B, 3, H, W), channels_last in memory
        yield Batch(
            step,
            positions,
            to_device(pixels, device),
            {
                name: to_device(torch.from_numpy(label[positions].astype(np.int64)), device)
                for name, label in samples.labels.items()
            },
            torch.from_numpy(samples.is_tail[positions]),
            item.failures,
        )


def even_slices(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut (n,) into the fewest parts of at most `batch_size`, equal in size to within one."""
    return np.array_split(order, -(-len(order) // batch_size)) if len(order) else []


def own_share(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut (n,) into the batches of all processes together; give this one's share of each.

    A common batch holds `batch_size` images for every process. Shares of a batch are neighbours,
    differ by one image at most, and together are the batch; one may be empty.
    """
    rank, world_size = distributed.rank(), distributed.world_size()
    whole = even_slices(order, batch_size * world_size)
    return [np.array_split(part, world_size)[rank] for part in whole]


def own_batches(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut (n,) as one process does; give the batches whose turn is this process's."""
    return even_slices(order, batch_size)[distributed.rank() :: distributed.world_size()]


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Upload without waiting, where the device allows it."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def worker_count(wanted: int) -> int:
    """Resolve -1: none on small machines, where a thread does as well, else one per core up to
    16; processes of one machine share its cores.
    """
    if wanted >= 0:
        return wanted
    cores = num_cores() // distributed.local_world_size()
    return 0 if cores <= 4 else min(16, cores)
