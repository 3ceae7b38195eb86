"""What `tools.bench` measures before the network: decoding, packs, augmentation, starting up."""

from __future__ import annotations

import importlib
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image

from petface.data import images
from petface.data.loading import FileImages, ImageReader
from petface.training.augment import BASE, TAIL, AugmentMode, augment_batch
from tools import measure_scan
from tools.bench_data import make_photos
from tools.bench_plain import v2_chain

BATCH = 64


@dataclass(frozen=True)
class Part:
    """Contenders by name, each doing its work once and giving the number of images.

    `limit` and `yardstick` name two of them, or nothing.
    """

    name: str
    contenders: dict[str, Callable[[], int]]
    limit: str = ""
    yardstick: str = ""
    threads: int = 1
    notes: list[str] = field(default_factory=list)


def decode(folder: Path, device: torch.device, quick: bool) -> Iterator[Part]:
    """PNG bytes to RGB: ours beside other decoders."""
    del device
    tree = make_photos(folder, 32 if quick else 256, 224)
    blobs = [path.read_bytes() for path in tree.paths]
    streams = [_pixel_data(blob) for blob in blobs]
    decoders: dict[str, Callable[[bytes], object]] = {"ours": images.decode}
    notes = []
    decoders["torchvision.io"] = lambda blob: torchvision.io.decode_image(
        torch.frombuffer(bytearray(blob), dtype=torch.uint8)
    )
    for module, call in (
        (
            "cv2",
            lambda m, blob: m.imdecode(np.frombuffer(blob, np.uint8), m.IMREAD_COLOR)[..., ::-1],
        ),
        ("imagecodecs", lambda m, blob: m.spng_decode(blob)),
        ("pyspng", lambda m, blob: m.load(blob)),
    ):
        try:
            loaded = importlib.import_module(module)
        except ImportError:
            notes.append(f"{module}: not installed")
            continue
        decoders[module] = lambda blob, call=call, loaded=loaded: call(loaded, blob)
    for name, function in decoders.items():
        found = np.asarray(function(blobs[0]))
        found = found.transpose(1, 2, 0) if found.shape[0] == 3 else found
        if not np.array_equal(found, images.decode(blobs[0])):
            notes.append(f"{name}: other pixels than Pillow's")
    contenders = {name: _over(function, blobs) for name, function in decoders.items()}
    contenders["inflating alone (zlib)"] = _over(zlib.decompress, streams)
    contenders["Pillow, as one writes it"] = _over(_pillow, tree.paths)
    size = sum(map(len, blobs)) / len(blobs) / 1000
    notes.append(f"224 px, {size:.0f} KB a file")
    yield Part(
        "decode PNG", contenders, "inflating alone (zlib)", "Pillow, as one writes it", 1, notes
    )


def pack(folder: Path, device: torch.device, quick: bool) -> Iterator[Part]:
    """Images in random order, batches of 64: from a pack, beside the files."""
    del device
    tree = make_photos(folder, 128 if quick else 512, 224)
    order = np.random.default_rng(0).permutation(len(tree.catalog))
    everything = np.stack([images.decode(path) for path in tree.paths])
    contenders: dict[str, Callable[[], int]] = {
        "array in memory": lambda: sum(len(everything[part]) for part in _batches(order)),
        "pack, raw": _reading(tree.pack("none"), order),
        "pack, zlib": _reading(tree.pack("zlib"), order),
        "files": _reading(FileImages(tree.catalog, tree.rule), order),
    }
    yield Part("read images, 224 px", contenders, "array in memory", "files")


def augmentation(folder: Path, device: torch.device, quick: bool) -> Iterator[Part]:
    """Decoded images to network input, one core: ours in batches beside torchvision per image."""
    for size_px, num in ((224, 64), (64, 512)):
        tree = make_photos(folder / str(size_px), num // 4 if quick else num, size_px)
        pixels = torch.from_numpy(np.stack([images.decode(path) for path in tree.paths]))
        pictures = [Image.fromarray(image) for image in pixels.numpy()]
        on_device = pixels.permute(0, 3, 1, 2).to(device)
        for name, regime in (("base", BASE), ("tail", TAIL)):
            contenders: dict[str, Callable[[], int]] = {}
            notes = []
            for mode in ("exact", "fast"):
                contenders[f"ours, {mode}"] = _augmenting(on_device, name == "tail", mode)
            chain = v2_chain(regime, size_px)
            contenders["torchvision v2, PIL images"] = _over(chain, pictures)
            if name == "base":
                try:
                    timm = _timm_chain(size_px)
                    contenders["timm: crop, flip, colours without hue"] = _over(timm, pictures)
                except ImportError:
                    notes.append("timm: not installed")
            contenders["bytes to float alone"] = _to_float(on_device)
            title = f"augmentation, {name}, {size_px} px"
            limit, yardstick = "bytes to float alone", "torchvision v2, PIL images"
            yield Part(title, contenders, limit, yardstick, 1, notes)


def samples(folder: Path, device: torch.device, quick: bool) -> Iterator[Part]:
    """From what lies on the disk to augmented batches, one core, base regime at 224 px."""
    tree = make_photos(folder, 64 if quick else 256, 224)
    order = np.random.default_rng(0).permutation(len(tree.catalog))
    chain = v2_chain(BASE, 224)

    def plain() -> int:
        for part in _batches(order):
            torch.stack([chain(_pillow_image(tree.paths[i])) for i in part]).to(device)
        return len(order)

    contenders = {"files + torchvision v2": plain}
    sources: dict[str, ImageReader] = {
        "files": FileImages(tree.catalog, tree.rule),
        "pack": tree.pack(),
        "zlib pack": tree.pack("zlib"),
    }
    for name, source in sources.items():
        for mode in ("exact", "fast"):
            contenders[f"{name}, {mode}"] = _sampling(source, order, device, mode)
    yield Part("file to sample, base, 224 px", contenders, "", "files + torchvision v2")


def startup(folder: Path, device: torch.device, quick: bool) -> Iterator[Part]:
    """Listing a tree as large as PetFace in a fresh process, imports included."""
    del device
    num = 20_000 if quick else 1_012_934
    measure_scan.make_tree(folder, num)
    listing = (
        "import sys, torchvision; torchvision.datasets.ImageFolder(sys.argv[1], allow_empty=True)"
    )
    code = measure_scan._MEASURE
    contenders: dict[str, Callable[[], int]] = {
        "ours: scan": _process(num, code, "scan", str(folder)),
        "ours: scan, labels, split": _process(num, code, "load_dataset", str(folder)),
        "torchvision ImageFolder": _process(num, listing, str(folder / "images")),
    }
    notes = [f"{num:,} images; seconds = images / rate"]
    yield Part("start-up", contenders, "", "torchvision ImageFolder", 1, notes)


def _over(function: Callable[..., object], items: list) -> Callable[[], int]:
    def run() -> int:
        for item in items:
            function(item)
        return len(items)

    return run


def _batches(order: np.ndarray) -> list[np.ndarray]:
    return [order[i : i + BATCH] for i in range(0, len(order), BATCH)]


def _reading(source: ImageReader, order: np.ndarray) -> Callable[[], int]:
    return lambda: sum(len(source.read(part).arrays[0]) for part in _batches(order))


def _augmenting(pixels: torch.Tensor, is_tail: bool, mode: AugmentMode) -> Callable[[], int]:
    generator, rows = torch.Generator().manual_seed(0), torch.full((len(pixels),), is_tail)

    def run() -> int:
        for part in zip(pixels.split(BATCH), rows.split(BATCH), strict=True):
            augment_batch(*part, BASE, TAIL, generator, mode=mode)
        return len(pixels)

    return run


def _to_float(pixels: torch.Tensor) -> Callable[[], int]:
    def run() -> int:
        for part in pixels.split(BATCH):
            part.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        return len(pixels)

    return run


def _sampling(
    source: ImageReader, order: np.ndarray, device: torch.device, mode: AugmentMode
) -> Callable[[], int]:
    generator = torch.Generator().manual_seed(0)

    def run() -> int:
        for part in _batches(order):
            pixels = source.read(part).arrays[0].permute(0, 3, 1, 2).to(device)
            is_tail = torch.zeros(len(part), dtype=torch.bool)
            augment_batch(pixels, is_tail, BASE, TAIL, generator, mode=mode)
        return len(order)

    return run


def _process(num: int, code: str, *arguments: str) -> Callable[[], int]:
    def run() -> int:
        command = [sys.executable, "-c", code, *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return num

    return run


def _pillow_image(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _pillow(path: Path) -> np.ndarray:
    return np.asarray(_pillow_image(path))


def _pixel_data(blob: bytes) -> bytes:
    """Join the pixel chunks of a PNG file."""
    place, found = 8, []
    while place < len(blob):
        length = int.from_bytes(blob[place : place + 4], "big")
        if blob[place + 4 : place + 8] == b"IDAT":
            found.append(blob[place + 8 : place + 8 + length])
        place += 12 + length
    return b"".join(found)


def _timm_chain(size_px: int) -> Callable[[Image.Image], object]:
    from timm.data import create_transform

    b = BASE
    jitter = (b.brightness, b.contrast, b.saturation)
    return create_transform(
        size_px, is_training=True, color_jitter=jitter, interpolation="bilinear", auto_augment=None
    )
