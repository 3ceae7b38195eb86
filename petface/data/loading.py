"""Load image files as uint8 batches on the device, decoded ahead, with labels and masks."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from petface import distributed, files
from petface.data import images
from petface.data.catalog import Catalog
from petface.data.images import ImageError, MissingError, Preprocessing
from petface.devices import num_cores, to_device
from petface.errors import UserError

OK, UNREADABLE, TOO_LARGE = 0, 1, 2  # the status of an image, one byte each
STATUS_NAMES = ("ok", "unreadable", "too_large")

Item = TypeVar("Item")

_NO_ROOM = re.compile(r"shared memory|unable to (resize|allocate|mmap|open) |No space left")

_DEPTH = 3  # slices decoded ahead per worker
_num_deaths = 0  # of workers since this process began
_waiting: list[tuple[ImageReader, DataLoader, list[Any]]] = []  # the workers of the last pass


@dataclass(frozen=True, eq=False)
class Samples:
    """The images of a pass over the data, with their labels (-1 unknown) and regime."""

    images: np.ndarray  # (M,) int64 into the catalog
    labels: dict[str, np.ndarray]  # each (M,) int64
    is_tail: np.ndarray  # (M,) bool: strong augmentation

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch of readable images; `failures` lists the unreadable ones."""

    step: int
    positions: np.ndarray  # (B,) int64 into the samples
    images: Tensor  # (B, 3, H, W) uint8, on the device
    labels: dict[str, Tensor]  # each (B,) int64, on the device
    is_tail: Tensor  # (B,) bool, on the CPU
    failures: list[tuple[int, str]] = field(default_factory=list)  # (catalog place, message)
    # Known weight per head of the common batch, if this is one process's share of it.
    totals: dict[str, Tensor] = field(default_factory=dict)
    draws: Any = None  # what was drawn for them ahead; its `uploads` lie on the device


@dataclass(frozen=True, eq=False)
class Decoded:
    """A decoded slice of the catalog: one array per preprocessing, the status of every image."""

    arrays: tuple[Tensor, ...]  # each (number of ok images, size, size, 3) uint8
    status: np.ndarray  # (n,) uint8
    failures: list[tuple[int, str]]


class ImageReader(Protocol):
    """A reader of the pixels of catalog images: `FileImages` or a pack."""

    catalog: Catalog
    decodes: bool  # whether worker processes are worthwhile

    def read(self, indices: np.ndarray) -> Decoded:
        """Read the images at `indices` (n,) of the catalog."""


class FileImages:
    """Images read from their files, decoded once, then resized for each of `rules`."""

    decodes = True

    def __init__(self, catalog: Catalog, *rules: Preprocessing) -> None:
        self.catalog, self.rules = catalog, rules

    def read(self, indices: np.ndarray) -> Decoded:
        """Decode the images at `indices` (n,) of the catalog."""
        arrays = [np.empty((len(indices), r.size_px, r.size_px, 3), np.uint8) for r in self.rules]
        status = np.full(len(indices), OK, np.uint8)
        failures: list[tuple[int, str]] = []
        for place, index in enumerate(indices.tolist()):
            try:
                pixels = decode_listed(self.catalog, index)
            except ImageError as error:
                status[place] = STATUS_NAMES.index(error.reason)
                failures.append((index, str(error)))
                continue
            for array, rule in zip(arrays, self.rules, strict=True):
                resized = images.resize(pixels, rule.size_px, rule.resize)
                array[place - len(failures)] = resized
        num_ok = len(indices) - len(failures)
        return Decoded(tuple(torch.from_numpy(a[:num_ok]) for a in arrays), status, failures)


def decode_listed(catalog: Catalog, index: int) -> np.ndarray:
    """Decode an image of a catalog as `images.decode` does.

    A missing file raises `ImageError` if its neighbours in the catalog still exist. Otherwise the
    drive, mount or folder is gone, which raises `MachineError`.
    """
    path = catalog.path(index)
    try:
        return images.decode(path)
    except MissingError:
        check_place(catalog, index)
        return images.decode(path)  # it may have come back


def check_place(catalog: Catalog, index: int) -> None:
    """Raise `MachineError` if more than one image file is missing: its class folder, the target
    folder of its link, or its neighbours in the catalog.
    """
    path = Path(catalog.path(index))

    def check() -> None:
        target = Path(os.path.realpath(path)).parent
        folders = [target.parent, target] if path.is_symlink() else [target.parent]
        is_gone = not all(folder.is_dir() and any(folder.iterdir()) for folder in folders)
        powers = range(len(catalog).bit_length())
        others = [index + far for power in powers for far in (1 << power, -1 << power)]
        others = [place for place in others if 0 <= place < len(catalog)]
        is_gone |= bool(others) and not any(Path(catalog.path(p)).exists() for p in others)
        if is_gone:
            raise OSError(errno.ENODEV, "gone with its neighbours (drive, mount or folder)")

    files.patiently(check, path)


def read_ahead(
    source: ImageReader, slices: Sequence[np.ndarray], num_workers: int
) -> Generator[Decoded, None, None]:
    """Yield `source.read(s)` for each slice in order, decoding ahead of the consumer.

    With `num_workers` 0, one thread of this process decodes; otherwise that many processes. A
    source that does not decode is always read in one thread. A worker dies when memory runs out,
    /dev/shm is too small for its output, or it is killed. Then half as many workers, and finally a
    thread, resume at the first missing item. Later calls start with that number. The items stay
    the same. Exceptions of `source.read` are raised here.
    """
    global _num_deaths
    num_done = 0
    while source.decodes and (num := num_workers >> _num_deaths) > 0:
        try:
            for item in _from_processes(source, slices[num_done:], num):
                if isinstance(item, UserError):
                    raise item
                num_done += 1
                yield item
            return
        except (RuntimeError, OSError, EOFError) as error:
            for part in (error, error.__cause__, error.__context__):
                if part is not None:  # its frames hold the loader and thus the other workers
                    traceback.clear_frames(part.__traceback__)
            # torch begins an error that it forwards from a worker's own work with "Caught".
            if str(error).startswith("Caught ") and not _NO_ROOM.search(str(error)):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
        _num_deaths += 1
        left = num_workers >> _num_deaths
        how = f"{left} workers continue" if left else "a thread of this process continues"
        print(
            f"a loading process failed ({reason.removeprefix('RuntimeError: ')}); {how}, slower, "
            "with the same result. If it happens again: lower NUM_WORKERS, free memory, or enlarge "
            "/dev/shm (in a container: --shm-size)",
            file=sys.stderr,
        )
    yield from in_thread((source.read(part) for part in slices[num_done:]), _DEPTH)


def _from_processes(
    source: ImageReader, slices: Sequence[np.ndarray], most: int
) -> Iterator[Decoded | UserError]:
    """Yield what workers read; those of a pass that ended wait for the next over its source."""
    num = min(most, len(slices))
    if num == 0:
        return
    of, loader, order = _waiting.pop() if _waiting else (None, None, [])
    if loader is None or of is not source or not num <= loader.num_workers <= most:
        loader, order = None, []  # the workers of another end before these begin
        loader = DataLoader(
            _Slices(source),
            batch_size=None,
            sampler=order,
            num_workers=num,
            prefetch_factor=_DEPTH,
            worker_init_fn=_leave_signals_to_parent,
            persistent_workers=True,
            generator=torch.Generator(),  # or each worker's seed moves on torch's own
        )
    order[:] = slices
    # torch's SIGCHLD handler raises a worker's death anywhere in this process, even in a weight
    # update. Without it, the next request for an item notices the death within 5 s.
    before = signal.getsignal(signal.SIGCHLD)
    items = iter(loader)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    yield from items
    _waiting[:] = [(source, loader, order)]


class _Slices(Dataset):
    """The dataset of a DataLoader whose item at a slice is what it decodes to."""

    def __init__(self, source: ImageReader) -> None:
        self.source = source

    def __getitem__(self, part: np.ndarray) -> Decoded | UserError:
        try:
            item = self.source.read(part)
        except UserError as error:  # torch would raise it with a traceback as its message
            return error
        # Here a full /dev/shm raises an error. Otherwise the queue to the parent would drop the
        # item, and the parent would wait for it forever.
        for tensor in item.arrays:
            tensor.share_memory_()
        return item


def _leave_signals_to_parent(_number: int) -> None:
    """Ignore terminal signals that reach every process; the parent finishes its step first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # else a forked worker lives on


def in_thread(items: Generator[Item, None, None], depth: int) -> Iterator[Item]:
    """Yield `items` in order, produced in one thread up to `depth` ahead of the consumer.

    Exceptions of `items` are raised here. The thread ends when the consumer leaves early.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="decode") as pool:
        ahead = deque(pool.submit(next, items, None) for _ in range(depth + 1))  # one in the making
        try:
            while (item := ahead.popleft().result()) is not None:
                ahead.append(pool.submit(next, items, None))
                yield item
        finally:
            for future in ahead:
                future.cancel()
            pool.submit(items.close)


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
    draw: Callable[[Batch], Any] | None = None,
) -> Iterator[Batch]:
    """Yield device batches of `samples` in `order` (n,), starting at `first_step`.

    Batches hold at most `batch_size` images, evened out so that no batch is tiny. `cut` replaces
    `even_slices`. On a CUDA device the next batch is uploaded during the computation on this one;
    `draw` makes its `draws` there, too.
    """
    slices = (cut or even_slices)(order, batch_size)[first_step:]

    def made() -> Iterator[Batch]:
        decoded = read_ahead(source, [samples.images[part] for part in slices], num_workers)
        for step, (part, item) in enumerate(zip(slices, decoded, strict=True), start=first_step):
            positions = part[item.status == OK]
            # (B, 3, H, W), channels_last in memory
            pixels = to_device(item.arrays[0].permute(0, 3, 1, 2), device)
            own = {
                name: label[positions].astype(np.int64) for name, label in samples.labels.items()
            }
            labels = {name: to_device(torch.from_numpy(v), device) for name, v in own.items()}
            is_tail = torch.from_numpy(samples.is_tail[positions])
            batch = Batch(step, positions, pixels, labels, is_tail, item.failures)
            yield replace(batch, draws=draw(batch)) if draw else batch

    def tensors_of(batch: Batch) -> Sequence[Tensor]:
        return batch.images, *batch.labels.values(), *getattr(batch.draws, "uploads", ())

    yield from ahead(made(), device, tensors_of)


def uploaded(
    source: ImageReader, slices: Sequence[np.ndarray], num_workers: int, device: torch.device
) -> Generator[Decoded, None, None]:
    """Yield what `read_ahead` does with the pixels on the device."""
    read = read_ahead(source, slices, num_workers)
    made = (replace(d, arrays=tuple(to_device(a, device) for a in d.arrays)) for d in read)
    return ahead(made, device, lambda item: item.arrays)


def ahead(
    made: Iterator[Item], device: torch.device, tensors_of: Callable[[Item], Sequence[Tensor]]
) -> Generator[Item, None, None]:
    """Yield `made`, which uploads; on a CUDA device in a thread and on a stream of its own."""
    if device.type != "cuda":
        yield from made
        return
    stream = torch.cuda.Stream(device)

    def uploads() -> Generator[tuple[Item, torch.cuda.Event], None, None]:
        while True:
            with torch.cuda.stream(stream):
                item = next(made, None)
                if item is None:
                    return
                arrived = torch.cuda.Event()  # completes with the upload
                arrived.record(stream)
            yield item, arrived

    for item, arrived in in_thread(uploads(), 1):
        here = torch.cuda.current_stream(device)
        here.wait_event(arrived)
        for tensor in tensors_of(item):
            tensor.record_stream(here)  # its memory is not reused before `here` is done
        yield item


def even_slices(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut (n,) into the fewest slices of at most `batch_size`, with sizes equal to within one."""
    return np.array_split(order, -(-len(order) // batch_size)) if len(order) else []


def own_share(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut (n,) into the common batches of all processes; return this process's share of each.

    A common batch holds up to `batch_size` images per process; a share may be empty.
    """
    rank, world_size = distributed.rank(), distributed.world_size()
    whole = even_slices(order, batch_size * world_size)
    return [np.array_split(part, world_size)[rank] for part in whole]


def own_batches(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut (n,) as a single process does; return every W-th batch, which is this process's turn."""
    return even_slices(order, batch_size)[distributed.rank() :: distributed.world_size()]


def worker_count(wanted: int) -> int:
    """Resolve -1: 0 on up to 4 cores, where a thread is as fast, else one per core up to 64."""
    if wanted >= 0:
        return wanted
    cores = num_cores() // distributed.local_world_size()
    return 0 if cores <= 4 else min(64, cores)
