"""Measure training and evaluation beside plain scripts.

    python -m tools.bench                          # all parts, 15 to 40 minutes on two cores
    python -m tools.bench --quick                  # a minute: a look, no figures to quote
    python -m tools.bench --gpu                    # on a GPU: more photos, beside goals in img/s

Prints tables and writes results/bench_<hardware>.csv (with --quick or --only: only with --out).
Contenders of a part take turns after a warm-up round that does not count. A rate is the median over
the rounds. A ratio to the yardstick, a part's last, is the median of the rounds' own ratios: drift
of the machine cancels out. Photos are made up; random weights are as fast as trained ones.
"""

from __future__ import annotations

import io
import platform
import re
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

from petface.errors import SettingsError, run_script  # isort: split

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

import inference_engine
from petface import files
from petface.data import images, loading, pack
from petface.data.catalog import Catalog
from petface.data.sources.petface import scan
from petface.devices import choose_device, choose_precision, num_cores
from petface.models import checkpoints, network
from petface.models.architecture import PLAIN, ChinchillaMultiHeadResNet18, build_classifier
from petface.progress import progress
from petface.settings import NonNegative, read_settings
from petface.training import epoch, evaluate, losses, runs, schedule
from petface.training.augment.regimes import MILD, NONE, STRONG, AugmentRegime

# ---- What is measured ----
ONLY: tuple[Literal["epochs", "host", "evaluation"], ...] = ()  # parts; () = all
DEVICE: str = "auto"  # auto, cpu, cuda, cuda:1
ROUNDS: NonNegative = 0  # that count; 0 = 5, with --quick 2
OUT: str = ""  # CSV to write; "" = results/bench_<hardware>.csv where all is measured in full

SPECIES = ("cat", "dog", "hamster")  # the last is the minority
MAX_DRAWN = 1536  # photos; more are links to these
GOALS = {  # img/s on one H200 with 16 cores: calculated from its limits, never measured
    ("epochs, 224 px", "ours, from a pack"): 14_000,
    ("evaluation, whole", "pack, without the start"): 30_000,
    ("main thread", "steps of 64, a network that costs nothing"): 64_000,  # 1 ms a step
}
HEADER = ("part", "what", "images_per_s", "slowest_round", "fastest_round", "yardstick",
          "times_yardstick", "rounds", "threads", "device", "precision")  # fmt: skip

Run = Callable[[], int | tuple[int, float]]  # does its work once; images, or these and seconds
Part = tuple[str, dict[str, Run]]  # its name, its contenders


@dataclass(frozen=True)
class Tree:
    """A folder of made-up photos of one size, read as the trainers read it."""

    folder: Path
    catalog: Catalog
    rule: images.Preprocessing

    def train_and_val(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the places to train on, and every sixth to validate on."""
        places = np.arange(len(self.catalog))
        return places[places % 6 != 5], places[places % 6 == 5]


def make_photos(folder: Path, num: int, size_px: int) -> Tree:
    """Write `num` PNG photos: noise with the spectrum, and about the file size, of photos."""
    draw = np.random.default_rng(0)
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(size_px)] * 2))
    amplitude = np.maximum(frequency, 1 / size_px) ** -1.3
    drawn = list[Path]()
    for number in range(num):
        record = number // 4
        path = folder / f"images/{SPECIES[record % 3]}/{record:06d}/{number % 4:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number >= MAX_DRAWN:
            path.hardlink_to(drawn[number % MAX_DRAWN])
            continue
        noise = np.fft.fft2(draw.normal(size=(4, size_px, size_px))) * amplitude
        grey, *own = np.fft.ifft2(noise).real / size_px**0.5
        pixels = np.stack([grey + 0.4 * plane for plane in own], axis=2)
        pixels = 128 + 55 * (pixels - pixels.mean()) / pixels.std()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
        drawn.append(path)
    return Tree(folder, scan(folder / "images").catalog, images.Preprocessing(size_px))


# ---- The yardstick: what one writes with torchvision when speed is no subject ----


def v2_chain(regime: AugmentRegime, size_px: int) -> v2.Compose:
    """Build a regime that erases nothing: PIL image -> (3, H, W) float32 in [0, 1]."""
    r, chain = regime, [v2.Resize((size_px, size_px))]
    if r != NONE:  # a validation loop does not draw what changes nothing
        shift, zoom = (r.translate_frac, r.translate_frac), (r.scale_min, r.scale_max)
        bilinear = InterpolationMode.BILINEAR
        chain.append(v2.RandomHorizontalFlip(r.flip_p))
        chain.append(v2.RandomAffine(r.rotate_deg, shift, zoom, interpolation=bilinear))
        chain.append(v2.ColorJitter(r.brightness, r.contrast, r.saturation, r.hue))
    chain += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    return v2.Compose(chain)


def plain_script(tree: Tree, device: torch.device, batch_size: int) -> Run:
    """Build the plain loop: fp32, NCHW, plain AdamW, a worker of a DataLoader for each core."""
    torch.manual_seed(0)
    model = build_classifier(PLAIN, len(SPECIES)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    how = {"num_workers": num_cores(), "persistent_workers": True}
    how["pin_memory"] = device.type == "cuda"
    loaders = []
    for places, regime in zip(tree.train_and_val(), (MILD, NONE), strict=True):
        photos = ImageFolder(tree.folder / "images", v2_chain(regime, tree.rule.size_px))
        own = Subset(photos, places)
        loaders.append(DataLoader(own, batch_size, shuffle=regime is MILD, **how))
    train, val = loaders

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
            "ours, from files": our_epoch(tree, "", device, batch),
            "ours, from a pack": our_epoch(tree, "auto", device, batch),
            "plain torchvision script": plain_script(tree, device, batch),
        }
        yield f"epochs, {size_px} px", contenders


def host(folder: Path, device: torch.device, quick: bool) -> Iterator[Part]:
    """Processor time of the main thread; without a GPU it draws and augments, too."""
    tree = make_photos(folder, 240 if quick else 7680, 8)
    nothing = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, len(SPECIES)))
    train = our_epoch(tree, "auto", device, 64, nothing)

    def run() -> tuple[int, float]:
        begin, num = time.thread_time(), train()
        return num, time.thread_time() - begin

    yield "main thread", {"steps of 64, a network that costs nothing": run}


def our_epoch(
    tree: Tree, packed: str, device: torch.device, batch_size: int, model: nn.Module | None = None
) -> Run:
    """Train and validate with the trainers' own functions on all cores; `model` trains alone."""
    own = model or build_classifier(PLAIN, len(SPECIES))
    built = network.Network.build(own, tree.rule, str(device), "auto")
    optimizer = torch.optim.AdamW(own.parameters(), lr=1e-4, fused=True)
    job = evaluate.Job(
        network=built,
        num_classes={"species": len(SPECIES)},
        loss=lambda out, b: [losses.masked_focal_loss(out[0], b.labels["species"], 0.0)],
        source=pack.image_source(tree.catalog, packed, tree.rule),
        batch_size=batch_size,
        num_workers=loading.worker_count(-1),
        failures=runs.FailureLog(runs.RunFolder(tree.folder), tree.catalog, len(tree.catalog), 0.0),
    )
    state = epoch.Progress(optimizer, built.grad_scaler(), schedule.EarlyStopping(0, mode="max"))
    label = tree.catalog.class_index.astype(np.int64)
    train, val = (
        loading.Samples(places, {"species": label[places]}, label[places] == len(SPECIES) - 1)
        for places in tree.train_and_val()
    )

    def run() -> int:
        state.epoch = state.epoch.next_epoch()
        order = np.random.default_rng(state.epoch.epoch).permutation(len(train))
        epoch.train_epoch(job, state, train, order, (MILD, STRONG), seed=0, rate=lambda _: 1e-4)
        if model is not None:
            return len(train)
        evaluate.evaluate(job, val, "validate")
        return len(tree.catalog)

    return run


def evaluation(folder: Path, device: torch.device, quick: bool) -> Iterator[Part]:
    """`evaluate_full_dataset`, whole, beside a loop over single photos with both networks."""
    num, side = (24, 64) if quick else (384 * (64 if device.type == "cuda" else 1), 224)
    tree, eighth = make_photos(folder, num, side), make_photos(folder / "eighth", num // 8, side)
    rows = [(f"{n:06d}", f"B{n % 20}", "FM"[n % 2]) for n in range(len(tree.catalog))]
    for species in SPECIES:
        files.write_csv(folder / f"annotations/{species}.csv", ("Name", "Breed", "Gender"), rows)
    torch.manual_seed(0)
    first = build_classifier(PLAIN, len(SPECIES)).eval()
    first.fc.bias.data[0] += 1000.0  # it always answers the first species
    heads = ChinchillaMultiHeadResNet18({"breed": 20, "gender": 2}).eval()
    rule = {"preprocessing": tree.rule.to_dict()}
    classes = {name: index for index, name in enumerate(SPECIES)}
    stage1 = {"model": first.state_dict(), "class_to_index": classes, **rule}
    names = {"breed": [f"B{n}" for n in range(20)], "gender": ["F", "M"]}
    stage2 = {"model": heads.state_dict(), "species": "cat", "head_vocabs": names, **rule}
    how = {"stage1_checkpoint": folder / "best.pt", "stage2_folder": folder / "stage2"}
    checkpoints.save(how["stage1_checkpoint"], stage1)
    checkpoints.save(how["stage2_folder"] / "cat/cat_best.pt", stage2)
    how |= {"out_dir": folder / "evaluation", "device": str(device), "force": True}
    first.to(device), heads.to(device)

    def whole(pack: str, precision: str, of: Tree = tree) -> int:
        roots = of.folder / "images", folder / "annotations"
        with redirect_stdout(None):
            inference_engine.evaluate_full_dataset(*roots, precision=precision, pack=pack, **how)
        return len(of.catalog)

    def without_start() -> tuple[int, float]:
        begin, few = time.perf_counter(), whole("auto", "auto", eighth)
        middle, num = time.perf_counter(), whole("auto", "auto")
        return num - few, time.perf_counter() - 2 * middle + begin

    photos = ImageFolder(folder / "images", v2_chain(NONE, side))

    def loop() -> int:
        with torch.no_grad():
            for pixels, _ in islice(photos, 384):
                x = pixels[None].to(device)
                first(x).softmax(1).max(1)
                [head.softmax(1).max(1) for head in heads(x)]
        return min(len(photos), 384)

    contenders: dict[str, Run] = {
        "PNG files, fp32": partial(whole, "", "fp32"),
        "PNG files": partial(whole, "", "auto"),
        "pack": partial(whole, "auto", "auto"),
        "pack, without the start": without_start,
        "loop over single photos": loop,
    }
    yield "evaluation, whole", contenders


PARTS = {"epochs": epochs, "host": host, "evaluation": evaluation}


def measure(part: Part, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Return images/s of each round: contenders take turns, after a round that does not count."""
    name_of_part, contenders = part
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    turns = [(number, name) for number in range(rounds + 1) for name in contenders]
    for number, name in progress(turns, desc=name_of_part, unit="turn", leave=False):
        start = time.perf_counter()
        with redirect_stderr(io.StringIO()):  # progress bars
            done = contenders[name]()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number:
            num, seconds = done if isinstance(done, tuple) else (done, time.perf_counter() - start)
            rates[name].append(num / seconds)
    return rates


def show(part: str, rates: dict[str, list[float]], device: torch.device) -> list[list[object]]:
    """Print a part's table and return the rows of the CSV."""
    print(f"\n{part}\n  {'':40s} {'img/s':>10s} {'yardstick x':>12s} {'goal':>8}")
    rows, yardstick = list[list[object]](), [*rates][-1]
    for name, found in rates.items():
        speeds = [np.median(found), min(found), max(found)]
        times = f"{np.median(np.divide(found, rates[yardstick])):.3f}"
        goal = GOALS.get((part, name), "") if device.type == "cuda" else ""
        print(f"  {name:40s} {speeds[0]:10,.1f} {times:>12s} {goal:>8}".rstrip(), flush=True)
        row = [part, name, *(f"{speed:.1f}" for speed in speeds), yardstick, times, len(found)]
        rows.append([*row, num_cores(), device.type, str(choose_precision("auto", device))])
    return rows


def hardware_name(device: torch.device, cpuinfo: str = "") -> str:
    """Return "gpu-<name>" or "cpu-<cores>core-<name>[-<microarchitecture>]" in [a-z0-9-].

    `cpuinfo` is the text of /proc/cpuinfo, read from there if it is empty. A virtual machine often
    hides the product's number, not AMD's family and model, named as in Linux' cpu/amd.c.
    """
    if device.type == "cuda":
        kind, name, zen = "gpu", torch.cuda.get_device_name(device), ""
    else:
        path, kind = Path("/proc/cpuinfo"), f"cpu-{num_cores()}core"
        text = cpuinfo or (path.read_text(encoding="utf-8") if path.exists() else "")
        facts = dict(re.findall(r"^(\w[\w ]*?)\s*: (.*)$", text, re.MULTILINE)[::-1])
        name, model = facts.get("model name", platform.machine()), int(facts.get("model", 0))
        zen = {  # no other maker has these families
            "23": "zen1" if model < 0x30 else "zen2",
            "25": "zen4" if 0x10 <= model <= 0x1F or 0x60 <= model <= 0xAF else "zen3",
            "26": "zen5",
        }.get(facts.get("cpu family", ""), "")
    name = re.sub(r"\(r\)|\(tm\)|\bcpu\b|\bprocessor\b|@.*|\d+-core", " ", name.lower())
    slug = re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    return "-".join(filter(None, [kind, slug, zen]))


def main() -> None:
    switches = {"quick": "small, few rounds: a minute", "gpu": "refuse to run without a GPU"}
    s = read_settings(sys.modules[__name__], switches=switches)
    is_quick, device = "quick" in s.switches, choose_device(s.DEVICE)
    if "gpu" in s.switches and device.type != "cuda":
        raise SettingsError(f"--gpu needs a CUDA device; DEVICE = {s.DEVICE!r} is {device} here")
    torch.set_num_threads(num_cores())
    hardware, rounds = hardware_name(device), s.ROUNDS or (2 if is_quick else 5)
    out = s.OUT or ("" if is_quick or s.ONLY else f"results/bench_{hardware}.csv")
    print(f"{hardware}, torch {torch.__version__}, {num_cores()} cores, {rounds} rounds")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in s.ONLY or PARTS:
            for part in PARTS[name](Path(folder) / name, device, is_quick):
                rows += show(part[0], measure(part, rounds, device), device)
    if device.type == "cuda":
        print(f"\nGPU memory at most: {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB")
    if out:
        files.write_csv(out, HEADER, rows)
        print(f"\nwritten: {out}")


if __name__ == "__main__":
    run_script(main)
