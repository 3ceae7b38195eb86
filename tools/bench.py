"""Measure training and evaluation beside their limits and beside plain scripts.

    python -m tools.bench                          # all parts, about 15 minutes on two cores
    python -m tools.bench --quick                  # a minute: a look, no figures to quote
    python -m tools.bench --gpu                    # on a GPU: more photos, beside goals in img/s

Prints tables and writes results/bench_<hardware>.csv (with --quick or --only: only with --out).
Contenders of a part take turns after a warm-up round that does not count. A rate is the median over
the rounds. A ratio is the median of the rounds' own ratios: drift of the machine cancels out. All
photos are made up; networks have random weights, whose speed is that of trained ones.
"""

from __future__ import annotations

import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

from petface.errors import SettingsError, run_script

# isort: split
import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

import inference_engine
from petface import files
from petface.data.catalog import Catalog
from petface.data.images import Preprocessing
from petface.data.loading import FileImages, ImageReader, Samples, worker_count
from petface.data.pack import image_source
from petface.data.sources.petface import scan
from petface.devices import choose_device, choose_precision, num_cores
from petface.models import checkpoints
from petface.models.architecture import PLAIN, build_classifier
from petface.models.multi_head import ChinchillaMultiHeadResNet18
from petface.models.network import Network
from petface.progress import progress
from petface.settings import NonNegative, read_settings
from petface.training import epoch, evaluate, losses
from petface.training.augment.exact import augment
from petface.training.augment.regimes import MILD, NONE, STRONG, AugmentRegime, draw_parameters
from petface.training.runs import FailureLog, RunFolder
from petface.training.schedule import EarlyStopping
from tools.hardware import hardware_name

# ---- What is measured ----
ONLY: tuple[Literal["epochs", "host", "evaluation"], ...] = ()  # parts; () = all
DEVICE: str = "auto"  # auto, cpu, cuda, cuda:1
ROUNDS: NonNegative = 0  # that count; 0 = 5, with --quick 2
OUT: str = ""  # CSV to write; "" = results/bench_<hardware>.csv where all is measured in full

SPECIES = ("cat", "dog", "hamster")  # the last is the minority
PHOTOS_PER_RECORD = 4
MAX_DRAWN = 1536  # photos; more are links to these
GOALS = {  # img/s on one H200 with 16 cores: calculated from its limits, never measured
    ("epochs, 224 px", "ours, from a pack"): 14_000,
    ("evaluation, whole", "pack, without the start"): 30_000,
    ("main thread", "steps of 64, a network that costs nothing"): 64_000,  # 1 ms a step
}
HEADER = ("part", "what", "images_per_s", "slowest_round", "fastest_round", "limit", "of_limit",
          "yardstick", "times_yardstick", "rounds", "threads", "device", "precision")  # fmt: skip

Run = Callable[[], int | tuple[int, float]]  # does its work once; images, or these and seconds


@dataclass(frozen=True)
class Part:
    """Contenders by name; `limit` and `yardstick` name two of them, or nothing."""

    name: str
    contenders: dict[str, Run]
    limit: str = ""
    yardstick: str = ""


@dataclass(frozen=True)
class Tree:
    """A folder of made-up photos of one size, read as the trainers read it."""

    folder: Path
    catalog: Catalog
    rule: Preprocessing

    def samples(self, places: np.ndarray) -> Samples:
        """Return the images at `places` with their species."""
        label = self.catalog.class_index[places].astype(np.int64)
        return Samples(places, {"species": label}, label == len(SPECIES) - 1)

    def train_and_val(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the places to train on and the sixth to validate on."""
        places = np.arange(len(self.catalog))
        return places[places % 6 != 5], places[places % 6 == 5]

    def pack(self) -> ImageReader:
        """Open the pack of these photos, made at the first call."""
        with redirect_stdout(None), redirect_stderr(io.StringIO()):
            return image_source(self.catalog, "auto", self.rule)


def make_photos(folder: Path, num: int, size_px: int) -> Tree:
    """Write `num` PNG photos: noise with the spectrum, and about the file size, of photos."""
    draw = np.random.default_rng(0)
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(size_px)] * 2))
    amplitude = np.maximum(frequency, 1 / size_px) ** -1.3
    drawn = list[Path]()
    for number in range(num):
        record, photo = divmod(number, PHOTOS_PER_RECORD)
        place = folder / "images" / SPECIES[record % len(SPECIES)] / f"{record:06d}"
        place.mkdir(parents=True, exist_ok=True)
        path = place / f"{photo:02d}.png"
        if number >= MAX_DRAWN:
            path.hardlink_to(drawn[number % MAX_DRAWN])
            continue
        noise = np.fft.fft2(draw.normal(size=(4, size_px, size_px))) * amplitude
        grey, *own = np.fft.ifft2(noise).real / size_px**0.5
        pixels = np.stack([grey + 0.4 * plane for plane in own], axis=2)
        pixels = 128 + 55 * (pixels - pixels.mean()) / pixels.std()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
        drawn.append(path)
    return Tree(folder, scan(folder / "images").catalog, Preprocessing(size_px))


# ---- The yardstick: what one writes with torchvision when speed is no subject ----


def v2_chain(regime: AugmentRegime, size_px: int) -> v2.Compose:
    """Build torchvision's transforms of a regime: PIL image -> (3, H, W) float32 in [0, 1]."""
    r, resize = regime, v2.Resize((size_px, size_px))
    to_float = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    if regime == NONE:  # a validation loop does not draw what changes nothing
        return v2.Compose([resize, *to_float])
    shift, zoom = (r.translate_frac, r.translate_frac), (r.scale_min, r.scale_max)
    bilinear, area = InterpolationMode.BILINEAR, r.erase_area_max_frac
    return v2.Compose([
        resize,
        v2.RandomHorizontalFlip(r.flip_p),
        v2.RandomAffine(r.rotate_deg, shift, zoom, interpolation=bilinear),
        v2.ColorJitter(r.brightness, r.contrast, r.saturation, r.hue),
        *to_float,
        *([v2.RandomErasing(r.erase_p, (area / 10, area))] if r.erase_p else []),
    ])  # fmt: skip


def plain_script(tree: Tree, device: torch.device, batch_size: int) -> Run:
    """Build the plain loop: fp32, NCHW, plain AdamW, a worker of a DataLoader for each core."""
    torch.manual_seed(0)
    model = build_classifier(PLAIN, len(SPECIES)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images = tree.folder / "images"
    train, val = (
        DataLoader(
            Subset(ImageFolder(images, v2_chain(regime, tree.rule.size_px)), places),
            batch_size,
            shuffle=regime is MILD,
            num_workers=num_cores(),
            persistent_workers=True,
            pin_memory=device.type == "cuda",
        )
        for places, regime in zip(tree.train_and_val(), (MILD, NONE), strict=True)
    )

    def run() -> int:
        model.train()
        for pixels, labels in train:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(pixels.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            loss.item()
        model.eval()
        with torch.no_grad():
            for pixels, labels in val:
                (model(pixels.to(device)).argmax(1) == labels.to(device)).sum().item()
        return len(tree.catalog)

    return run


def epochs(folder: Path, device: torch.device, quick: bool) -> Iterator[Part]:
    """Whole epochs of stage 1 with validation on a sixth of the photos."""
    for size_px, num in ((224, 192), (64, 1536)):
        num = num // 4 if quick else num * (16 if device.type == "cuda" else 1)
        batch = 16 if quick else 256 if device.type == "cuda" else 64
        tree = make_photos(folder / str(size_px), num, size_px)
        contenders = {
            "ours, from files": our_epoch(tree, FileImages(tree.catalog, tree.rule), device, batch),
            "ours, from a pack": our_epoch(tree, tree.pack(), device, batch),
            "bare steps on one batch in memory": bare_steps(tree, device, batch),
            "plain torchvision script": plain_script(tree, device, batch),
        }
        yield Part(f"epochs, {size_px} px", contenders, *list(contenders)[-2:])


def host(folder: Path, device: torch.device, quick: bool) -> Iterator[Part]:
    """Processor time of the main thread; without a GPU it draws and augments, too."""
    tree = make_photos(folder, 240 if quick else 7680, 8)
    nothing = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, len(SPECIES)))
    train = our_epoch(tree, tree.pack(), device, 64, nothing)

    def run() -> tuple[int, float]:
        begin, num = time.thread_time(), train()
        return num, time.thread_time() - begin

    yield Part("main thread", {"steps of 64, a network that costs nothing": run})


def network_and_optimizer(
    tree: Tree, device: torch.device, model: nn.Module | None = None
) -> tuple[Network, torch.optim.AdamW]:
    """Build what the trainers train by default, or for another model."""
    torch.manual_seed(0)
    model = model or build_classifier(PLAIN, len(SPECIES))
    network = Network.build(model, tree.rule, str(device), "auto")
    return network, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)


def our_epoch(
    tree: Tree,
    source: ImageReader,
    device: torch.device,
    batch_size: int,
    model: nn.Module | None = None,
) -> Run:
    """Train and validate with the trainers' own functions on all cores; `model` trains alone."""
    network, optimizer = network_and_optimizer(tree, device, model)
    job = evaluate.Job(
        network=network,
        num_classes={"species": len(SPECIES)},
        loss=lambda out, b: [losses.masked_focal_loss(out[0], b.labels["species"], 0.0)],
        source=source,
        batch_size=batch_size,
        num_workers=worker_count(-1),
        failures=FailureLog(RunFolder(tree.folder), tree.catalog, len(tree.catalog), 0.0),
    )
    state = epoch.Progress(optimizer, network.grad_scaler(), EarlyStopping(0, mode="max"))
    train, val = (tree.samples(places) for places in tree.train_and_val())

    def run() -> int:
        state.epoch = state.epoch.next_epoch()
        order = np.random.default_rng(state.epoch.epoch).permutation(len(train))
        epoch.train_epoch(job, state, train, order, (MILD, STRONG), seed=0, rate=lambda _: 1e-4)
        if model is not None:
            return len(train)
        evaluate.evaluate(job, val, "validate")
        return len(tree.catalog)

    return run


def bare_steps(tree: Tree, device: torch.device, batch_size: int) -> Run:
    """Augment, forward, backward and update on one batch in memory, with nothing around it."""
    images_of = FileImages(tree.catalog, tree.rule).read(np.arange(batch_size)).arrays[0]
    pixels = images_of.permute(0, 3, 1, 2).to(device)
    samples = tree.samples(np.arange(batch_size))
    label = torch.from_numpy(samples.labels["species"]).to(device)
    is_tail, generator = torch.from_numpy(samples.is_tail), torch.Generator()
    network, optimizer = network_and_optimizer(tree, device)
    scaler = network.grad_scaler()
    network.model.train()

    def run() -> int:
        for _ in range(len(tree.catalog) // batch_size):
            x = augment(pixels, draw_parameters(is_tail, MILD, STRONG, generator))
            loss = nn.functional.cross_entropy(network(x)[0].float(), label)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return len(tree.catalog) // batch_size * batch_size

    return run


def evaluation(folder: Path, device: torch.device, quick: bool) -> Iterator[Part]:
    """`evaluate_full_dataset`, whole, beside a loop over single photos with both networks."""
    num = 48 if quick else 384 * (64 if device.type == "cuda" else 1)
    tree, eighth = make_photos(folder, num, 224), make_photos(folder / "eighth", num // 8, 224)
    annotations = folder / "annotations"
    rows = [(f"{n:06d}", f"B{n % 20}", "FM"[n % 2]) for n in range(len(tree.catalog))]
    for species in SPECIES:
        files.write_csv(annotations / f"{species}.csv", ("Name", "Breed", "Gender"), rows)
    first, heads = (network.to(device) for network in write_networks(tree))

    def whole(pack: str, precision: str, of: Tree = tree) -> int:
        with redirect_stdout(None):
            inference_engine.evaluate_full_dataset(
                of.folder / "images",
                annotations,
                stage1_checkpoint=folder / "best.pt",
                stage2_folder=folder / "stage2",
                out_dir=folder / "evaluation",
                device=str(device),
                precision=precision,
                pack=pack,
                force=True,
            )
        return len(of.catalog)

    def without_start() -> tuple[int, float]:
        begin, few = time.perf_counter(), whole("auto", "auto", eighth)
        middle, num = time.perf_counter(), whole("auto", "auto")
        return num - few, time.perf_counter() - 2 * middle + begin

    photos = ImageFolder(folder / "images", v2_chain(NONE, 224))

    def loop() -> int:
        with torch.no_grad():
            for pixels, _ in islice(photos, 384):
                x = pixels[None].to(device)
                first(x).softmax(1).max(1)
                [head.softmax(1).max(1) for head in heads(x)]
        return min(len(photos), 384)

    contenders = {
        "PNG files, fp32": partial(whole, "", "fp32"),
        "PNG files": partial(whole, "", "auto"),
        "pack": partial(whole, "auto", "auto"),
        "pack, without the start": without_start,
        "loop over single photos": loop,
    }
    tree.pack(), eighth.pack()  # made beforehand
    yield Part("evaluation, whole", contenders, "", "loop over single photos")


def write_networks(tree: Tree) -> tuple[nn.Module, nn.Module]:
    """Write random checkpoints whose stage 1 always answers the first species; return both."""
    torch.manual_seed(0)
    first = build_classifier(PLAIN, len(SPECIES)).eval()
    first.fc.bias.data[0] += 1000.0
    names = {"breed": [f"B{n}" for n in range(20)], "gender": ["F", "M"]}
    heads = ChinchillaMultiHeadResNet18({head: len(found) for head, found in names.items()}).eval()
    rule, species = {"preprocessing": tree.rule.to_dict()}, SPECIES[0]
    classes = {name: index for index, name in enumerate(SPECIES)}
    stage1 = {"model": first.state_dict(), "class_to_index": classes, **rule}
    stage2 = {"model": heads.state_dict(), "species": species, "head_vocabs": names, **rule}
    checkpoints.save(tree.folder / "best.pt", stage1)
    checkpoints.save(tree.folder / "stage2" / species / f"{species}_best.pt", stage2)
    return first, heads


PARTS = {"epochs": epochs, "host": host, "evaluation": evaluation}


def measure(part: Part, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Return images/s of each round: contenders take turns, after a round that does not count."""
    rates: dict[str, list[float]] = {name: [] for name in part.contenders}
    turns = [(number, name) for number in range(rounds + 1) for name in part.contenders]
    for number, name in progress(turns, desc=part.name, unit="turn", leave=False):
        start = time.perf_counter()
        with redirect_stderr(io.StringIO()):  # progress bars
            done = part.contenders[name]()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number:
            num, seconds = done if isinstance(done, tuple) else (done, time.perf_counter() - start)
            rates[name].append(num / seconds)
    return rates


def ratio(rates: dict[str, list[float]], name: str, other: str) -> str:
    """Format the median of the rounds' ratios of one contender to another; "" without one."""
    if other not in rates:
        return ""
    ratios = [a / b for a, b in zip(rates[name], rates[other], strict=True)]
    return f"{statistics.median(ratios):.3f}"


def show(part: Part, rates: dict[str, list[float]], device: torch.device) -> list[list[object]]:
    """Print a part's table and return the rows of the CSV."""
    print(f"\n{part.name}")
    print(f"  {'':40s} {'img/s':>10s} {'of limit':>9s} {'yardstick x':>12s} {'goal':>8}")
    rows: list[list[object]] = []
    machine = num_cores(), device.type, str(choose_precision("auto", device))
    for name, found in rates.items():
        share, times = ratio(rates, name, part.limit), ratio(rates, name, part.yardstick)
        speeds = [statistics.median(found), min(found), max(found)]
        goal = GOALS.get((part.name, name), "") if device.type == "cuda" else ""
        line = f"  {name:40s} {speeds[0]:10,.1f} {share:>9s} {times:>12s} {goal:>8}"
        print(line.rstrip(), flush=True)
        row = [part.name, name, *(f"{speed:.1f}" for speed in speeds)]
        rows.append([*row, part.limit, share, part.yardstick, times, len(found), *machine])
    return rows


def main() -> None:
    switches = {"quick": "small, few rounds: a minute", "gpu": "refuse to run without a GPU"}
    s = read_settings(sys.modules[__name__], switches=switches)
    is_quick = "quick" in s.switches
    device = choose_device(s.DEVICE)
    if "gpu" in s.switches and device.type != "cuda":
        raise SettingsError(f"--gpu needs a CUDA device; DEVICE = {s.DEVICE!r} is {device} here")
    torch.set_num_threads(num_cores())
    hardware, rounds = hardware_name(device), s.ROUNDS or (2 if is_quick else 5)
    out = s.OUT or ("" if is_quick or s.ONLY else f"results/bench_{hardware}.csv")
    print(f"{hardware}, torch {torch.__version__}, {num_cores()} cores, {rounds} rounds")
    start, rows = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        for name in s.ONLY or PARTS:
            for part in PARTS[name](Path(folder) / name, device, is_quick):
                rows += show(part, measure(part, rounds, device), device)
    if device.type == "cuda":
        print(f"\nGPU memory at most: {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB")
    if out:
        files.write_csv(out, HEADER, rows)
        print(f"\nwritten: {out}")
    print(f"minutes: {(time.perf_counter() - start) / 60:.1f}")


if __name__ == "__main__":
    run_script(main)
