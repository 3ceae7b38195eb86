"""What `tools.bench` measures with the network: steps, frozen bodies, whole epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from petface.data.loading import Decoded, FileImages, ImageReader, to_device, worker_count
from petface.devices import num_cores
from petface.models.architecture import PLAIN, build_classifier
from petface.models.multi_head import _MultiHeadModel, train_mode, unfreeze
from petface.models.network import Network
from petface.training import epoch as engine
from petface.training import losses
from petface.training.augment import BASE, NONE, TAIL, AugmentMode, augment_batch
from petface.training.runs import FailureLog, RunFolder
from petface.training.schedule import EarlyStopping
from tools.bench_data import SPECIES, Tree, make_photos
from tools.bench_parts import Part
from tools.bench_plain import Photos, plain_epoch, plain_loader, plain_validation, v2_chain

REGIMES = BASE, TAIL


class Constant:
    """Gives the same images whatever is asked for: reading costs nothing."""

    decodes = False

    def __init__(self, tree: Tree, num: int) -> None:
        self.catalog = tree.catalog
        self._pixels = tree.pack().read(np.arange(num)).arrays[0]

    def read(self, indices: np.ndarray) -> Decoded:
        pixels = self._pixels[: len(indices)]
        return Decoded((pixels,), np.zeros(len(indices), np.uint8), [])


def steps(folder: Path, device: torch.device, quick: bool) -> Iterator[Part]:
    """Stage 1's training step at 224 and 64 px: from files, from a pack, from nothing at all."""
    for size_px, num, batch in ((224, 128, 64), (64, 512, 64)):
        if quick:
            num, batch = num // 4, batch // 4
        if device.type == "cuda":
            num = num * 16
        tree = make_photos(folder / str(size_px), num, size_px)
        contenders: dict[str, Callable[[], int]] = {}
        sources: dict[str, ImageReader] = {
            "our epoch, from files": FileImages(tree.catalog, tree.rule),
            "our epoch, from a pack": tree.pack(),
            "our epoch, reading nothing": Constant(tree, batch),
        }
        for name, source in sources.items():
            contenders[name] = epoch_of(tree, source, device, batch, "exact")
        contenders["our epoch, from a pack, fast augmentation"] = epoch_of(
            tree, tree.pack(), device, batch, "fast"
        )
        contenders["bare steps on one batch in memory"] = bare_steps(tree, device, batch)
        contenders["plain torchvision script"] = plain(tree, device, batch)
        title = f"stage 1 training steps, {size_px} px, batch {batch}"
        limit, yardstick = "bare steps on one batch in memory", "plain torchvision script"
        yield Part(title, contenders, limit, yardstick, num_cores())


def stage2(folder: Path, device: torch.device, quick: bool) -> Iterator[Part]:
    """A specialist's steps on one batch in memory, by what of the body is trained."""
    for size_px, batch in ((224, 64), (64, 64)):
        batch = batch // 4 if quick else batch
        tree = make_photos(folder / str(size_px), batch, size_px)
        title = f"stage 2 steps, {size_px} px, batch {batch}"
        contenders = {
            "whole network": specialist(tree, device, batch, "all"),
            "phase 2: heads, layer4, layer3": specialist(tree, device, batch, "layer4+layer3"),
            "phase 1: heads, layer4": specialist(tree, device, batch, "layer4"),
            "heads alone": specialist(tree, device, batch, "heads"),
            "no training: answers alone": answering(tree, device, batch),
        }
        limit = "no training: answers alone"
        yield Part(title, contenders, limit, "whole network", num_cores())
        plainly = "whole network, fp32, plain AdamW"
        contenders = {
            name: contenders[name] for name in ("whole network", "phase 1: heads, layer4")
        }
        contenders[plainly] = specialist(tree, device, batch, "all", "fp32")
        yield Part(f"{title}, against fp32", contenders, "", plainly, num_cores())


def epochs(folder: Path, device: torch.device, quick: bool) -> Iterator[Part]:
    """Whole epochs at 64 px with validation on a sixth of the photos."""
    num, batch = (192, 32) if quick else (1536, 64)
    tree = make_photos(folder, num * 16 if device.type == "cuda" else num, 64)
    contenders: dict[str, Callable[[], int]] = {}
    for name, source, mode in (
        ("ours, from files", FileImages(tree.catalog, tree.rule), "exact"),
        ("ours, from a pack", tree.pack(), "exact"),
        ("ours, from a pack, fast augmentation", tree.pack(), "fast"),
    ):
        contenders[name] = epoch_of(tree, source, device, batch, mode, validate=True)
    contenders["plain torchvision script"] = plain(tree, device, batch, validate=True)
    yield Part("epochs, 64 px", contenders, "", "plain torchvision script", num_cores())


def parts_of(tree: Tree, validate: bool) -> tuple[np.ndarray, np.ndarray]:
    """Give the places of the photos to train on, and to validate on."""
    places = np.arange(len(tree.catalog))
    is_val = (places % 6 == 5) & validate
    return places[~is_val], places[is_val]


def epoch_of(
    tree: Tree,
    source: ImageReader,
    device: torch.device,
    batch_size: int,
    mode: AugmentMode,
    *,
    validate: bool = False,
) -> Callable[[], int]:
    """Train an epoch with the trainers' own function on all cores."""
    torch.manual_seed(0)
    model = build_classifier(PLAIN, len(SPECIES))
    job = engine.Job(
        network=Network.build(model, tree.rule, str(device), "auto"),
        num_classes={"species": len(SPECIES)},
        loss=lambda out, b: losses.masked_cross_entropy(out[0], b.labels["species"]),
        source=source,
        batch_size=batch_size,
        num_workers=worker_count(-1),
        failures=FailureLog(RunFolder(tree.folder), tree.catalog, len(tree.catalog), 0.0),
        augment_mode=mode,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    stopping = EarlyStopping(0, mode="max")
    progress = engine.Progress(optimizer, job.network.grad_scaler(), stopping)
    train, val = (tree.samples(places) for places in parts_of(tree, validate))

    def run() -> int:
        progress.epoch = progress.epoch.next_epoch()
        order = np.random.default_rng(progress.epoch.epoch).permutation(len(train))
        engine.train_epoch(job, progress, train, order, REGIMES, seed=0, rate=lambda _: 1e-4)
        if validate:
            engine.evaluate(job, val, "validate")
        return len(tree.catalog)

    return run


def bare_steps(tree: Tree, device: torch.device, batch_size: int) -> Callable[[], int]:
    """Augment, forward, backward and update on one batch in memory, with nothing around it."""
    batch = to_device(Constant(tree, batch_size)._pixels.permute(0, 3, 1, 2), device)
    samples = tree.samples(np.arange(batch_size))
    label = torch.from_numpy(samples.labels["species"]).to(device)
    is_tail, generator = torch.from_numpy(samples.is_tail), torch.Generator()
    torch.manual_seed(0)
    model = build_classifier(PLAIN, len(SPECIES))
    network = Network.build(model, tree.rule, str(device), "auto")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    scaler = network.grad_scaler()
    model.train()

    def run() -> int:
        for _ in range(len(tree.catalog) // batch_size):
            x = augment_batch(batch, is_tail, *REGIMES, generator)
            value = nn.functional.cross_entropy(network(x)[0].float(), label)
            optimizer.zero_grad()
            scaler.scale(value).backward()
            scaler.step(optimizer)
            scaler.update()
        return len(tree.catalog) // batch_size * batch_size

    return run


def plain(
    tree: Tree, device: torch.device, batch_size: int, *, validate: bool = False
) -> Callable[[], int]:
    """Train with the yardstick's script: as many workers as cores, kept alive."""
    torch.manual_seed(0)
    model = build_classifier(PLAIN, len(SPECIES)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    chains = (v2_chain(BASE, tree.size_px), v2_chain(NONE, tree.size_px))
    loaders = []
    for places, chain in zip(parts_of(tree, validate), chains, strict=True):
        if len(places):
            labels = tree.catalog.class_index[places].tolist()
            photos = Photos([tree.paths[i] for i in places], labels, chain)
            train = chain is chains[0]
            loaders.append(plain_loader(photos, batch_size, num_cores(), train=train))

    def run() -> int:
        num_images = plain_epoch(model, optimizer, loaders[0], device)
        if validate:
            num_images += plain_validation(model, loaders[1], device)
        return num_images

    return run


def specialist(
    tree: Tree, device: torch.device, batch_size: int, stages: str, precision: str = "auto"
) -> Callable[[], int]:
    """Train a specialist of three heads on one float batch, as the engine steps."""
    torch.manual_seed(0)
    sizes = {"breed": 40, "color": 12, "gender": 2}
    model = _MultiHeadModel(sizes)
    parameters = unfreeze(model, tuple(stages.split("+")))
    if precision == "fp32":  # the yardstick's way: plain layout, plain AdamW
        model.to(device)
        optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    network = Network.build(model, tree.rule, str(device), precision)
    if precision == "fp32":
        model.to(memory_format=torch.contiguous_format)
    else:
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    scaler = network.grad_scaler()
    x = torch.rand((batch_size, 3, tree.size_px, tree.size_px)).to(device)
    labels = {
        head: torch.randint(0, size, (batch_size,)).to(device) for head, size in sizes.items()
    }
    train_mode(model)

    def run() -> int:
        value = losses.specialist_loss(network(x), labels, dict.fromkeys(sizes), 2.0)
        scaler.scale(value).backward()
        engine._update(value, optimizer, scaler)
        return batch_size

    return run


def answering(tree: Tree, device: torch.device, batch_size: int) -> Callable[[], int]:
    """Pass a batch through a specialist without gradients."""
    network = Network.build(_MultiHeadModel({"breed": 40}).eval(), tree.rule, str(device), "auto")
    batch = torch.zeros((batch_size, 3, tree.size_px, tree.size_px), dtype=torch.uint8)

    def run() -> int:
        network.logits(batch.to(device))
        return batch_size

    return run
