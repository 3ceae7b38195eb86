"""Measure the two-stage evaluation against a loop over single photos.

    python -m tools.bench_evaluation                      # 512 made-up photos of 224 px
    python -m tools.bench_evaluation --stage1 runs/s1/best.pt --specialist runs/s2/cat_best.pt

The yardstick is the loop that one would write first: Pillow opens a photo, torchvision resizes and
converts it, two float32 networks answer it, the next photo. Ours runs from the PNG files and from a
pack, per engine and precision, with rows and details written; beside it stands the rate of the two
networks alone, on a batch in memory. All are run in turn, `--rounds` times; printed are medians and
the ratio to the yardstick, and results/evaluation_speed_<hardware>.csv holds them. Networks are
random where none are given: their speed is that of trained ones, their answers mean nothing.
On two cores of an AMD EPYC (Zen 4) it takes about ten minutes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision.transforms import Compose, Normalize, Resize, ToTensor
from tqdm import tqdm

from petface import files
from petface.data.dataset import Dataset, load_dataset
from petface.data.images import Preprocessing
from petface.data.loading import worker_count
from petface.data.packing import make_pack
from petface.data.sample import photos_of
from petface.errors import run_script
from petface.evaluation.details import DETAILS, PER_IMAGE_COLUMNS
from petface.evaluation.run import answer_slices, plan_slices, write_answers
from petface.inference.loading import Arithmetic, load_stage
from petface.models import checkpoints
from petface.models.multi_head import ChinchillaMultiHeadResNet18
from petface.models.network import Stage
from petface.resumable import ResumableRecords, ResumableTable
from petface.settings import read_flags
from tools.hardware import hardware_name

SPECIES = "cat"
ENGINES = (  # engine, precision, compiled
    ("torch", "fp32", False),
    ("torch", "bf16", False),
    ("torch", "bf16", True),
    ("openvino", "bf16", False),
    ("openvino", "int8", False),
)
_COLUMNS = ("what", "source", "img_per_s", "ratio_to_loop", "share_of_networks", "rounds", "photos")


@dataclass(frozen=True)
class Bench:
    """Photos of one species, a pack of them, and the checkpoints that answer them."""

    dataset: Dataset
    pack: str
    stage1: Path
    specialist: Path
    folder: Path


def bench_two_stage(
    bench: Bench, *, rounds: int = 5, batch_size: int = 64, loop_photos: int = 128
) -> list[dict[str, object]]:
    """Measure everything in turn, `rounds` times; give one row of `_COLUMNS` per measurement."""
    num = len(bench.dataset.catalog)
    measures: dict[tuple[str, str], Callable[[], float]] = {
        ("loop over single photos", "PNG"): single_photo_loop(bench, min(loop_photos, num))
    }
    for engine, precision, compiled in ENGINES:
        if engine == "openvino" and not (find_spec("openvino") and find_spec("nncf")):
            print("OpenVINO is left out: not installed")
            continue
        how = Arithmetic.choose("cpu", precision, engine, compiled, 0.0, 0.0)
        name = f"{engine} {precision}" + (" compiled" if compiled else "")
        stages = load(bench, how, None), load(bench, how, SPECIES)
        measures[name, "networks"] = networks_alone(bench, stages, batch_size)
        measures[name, "PNG"] = whole_loop(bench, stages, batch_size, "")
        measures[name, "pack"] = whole_loop(bench, stages, batch_size, bench.pack)
    rates: dict[tuple[str, str], list[float]] = {key: [] for key in measures}
    for turn in range(rounds + 1):  # the first warms up: compilers, page cache, memory pools
        for key, measure in measures.items():
            rate = measure()
            if turn:
                rates[key].append(rate)
    middle = {key: statistics.median(found) for key, found in rates.items()}
    loop = middle["loop over single photos", "PNG"]
    return [
        {
            "what": what,
            "source": source,
            "img_per_s": round(rate, 1),
            "ratio_to_loop": round(rate / loop, 2),
            "share_of_networks": round(rate / middle[what, "networks"], 3)
            if (what, "networks") in middle
            else "",
            "rounds": rounds,
            "photos": num,
        }
        for (what, source), rate in middle.items()
    ]


def load(bench: Bench, how: Arithmetic, species: str | None) -> Stage:
    """Load stage 1 (None) or the specialist."""
    path = bench.stage1 if species is None else bench.specialist
    return load_stage(
        path,
        species,
        how,
        checksum=files.sha256_of_file(path),
        identity={"dataset": bench.dataset.fingerprint()},
        folder=bench.folder / "openvino",
        photos_for=lambda rule: photos_of(bench.dataset, "", rule, species),
    )


def single_photo_loop(bench: Bench, num: int) -> Callable[[], float]:
    """Give the yardstick: photos answered one by one, in float32 as torchvision makes it."""
    first = checkpoints.read_stage1(bench.stage1)
    second = checkpoints.read_stage2(bench.specialist, SPECIES)
    rules = [first.preprocessing, second.preprocessing]
    chains = [
        Compose(
            [Resize((r.size_px, r.size_px)), ToTensor()]
            + ([Normalize(r.mean, r.std)] if r.mean else [])
        )
        for r in rules
    ]
    is_shared = rules[0] == rules[1]

    def measure() -> float:
        start = time.perf_counter()
        with torch.no_grad():
            for index in range(num):
                image = Image.open(bench.dataset.catalog.path(index)).convert("RGB")
                x = chains[0](image)[None]
                first.model(x).softmax(1).max(1)
                y = x if is_shared else chains[1](image)[None]
                for head in second.model(y):
                    head.softmax(1).max(1)
        return num / (time.perf_counter() - start)

    return measure


def networks_alone(
    bench: Bench, stages: tuple[Stage, Stage], batch_size: int
) -> Callable[[], float]:
    """Give the rate of both networks on one batch in memory, answered again and again."""
    num = len(bench.dataset.catalog)
    times = max(1, num // batch_size)
    batches = [
        torch.randint(0, 256, (batch_size, size, size, 3), dtype=torch.uint8)
        for size in (stage.network.preprocessing.size_px for stage in stages)
    ]

    def measure() -> float:
        start = time.perf_counter()
        for _ in range(times):
            for stage, batch in zip(stages, batches, strict=True):
                stage.network.answer_pixels(batch)
        return times * batch_size / (time.perf_counter() - start)

    return measure


def whole_loop(
    bench: Bench, stages: tuple[Stage, Stage], batch_size: int, pack: str
) -> Callable[[], float]:
    """Give the evaluation's rate from decoding to rows and details on disk, models loaded."""
    dataset, folder = bench.dataset, bench.folder / "rows"
    num = len(dataset.catalog)

    def measure() -> float:
        plan = plan_slices(dataset.catalog.class_index, batch_size)
        records = ResumableRecords(folder / "details.npy", DETAILS, num)
        with (
            ResumableTable(folder / "rows.csv", PER_IMAGE_COLUMNS, {}, force=True) as table,
            tqdm(total=num, disable=True) as bar,
        ):
            table.batches_kept([], 0)
            start = time.perf_counter()
            answers = answer_slices(
                dataset,
                stages[0],
                lambda _: stages[1],
                plan,
                num_workers=worker_count(-1),
                pack=pack,
            )
            write_answers(answers, records, table, 0, bar)
            return num / (time.perf_counter() - start)

    return measure


def make_bench(
    folder: Path, num: int, size_px: int, stage1: Path | None, specialist: Path | None
) -> Bench:
    """Make photos, annotations, a pack, and random checkpoints where none are given."""
    draw = np.random.default_rng(0)
    for number in range(num):
        path = folder / "images" / SPECIES / f"{number // 4:06d}" / f"{number % 4:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        _photo(draw, size_px).save(path)
    names = "\n".join(f"{n:06d},B{n % 20},C{n % 8},{'FM'[n % 2]}" for n in range(-(-num // 4)))
    (folder / "annotations").mkdir()
    (folder / "annotations" / f"{SPECIES}.csv").write_text(f"Name,Breed,Color1,Gender\n{names}\n")
    dataset = load_dataset(folder / "images", folder / "annotations")
    rule = Preprocessing(size_px)
    if stage1 is None:
        stage1 = folder / "best.pt"
        model = _settled(torchvision.models.resnet18(num_classes=13), dataset, rule)
        model.fc.bias.data[1] += 1000.0  # always the cat, so that stage 2 is asked about each photo
        classes = {("chimp", SPECIES)[n] if n < 2 else f"species {n}": n for n in range(13)}
        content = {"class_to_index": classes, "preprocessing": rule.to_dict()}
        checkpoints.save(stage1, {"model": model.state_dict(), **content})
    if specialist is None:
        specialist = folder / f"{SPECIES}_best.pt"
        sizes = {"breed": 20, "color1": 8, "gender": 2}
        model = _settled(ChinchillaMultiHeadResNet18(sizes), dataset, rule)
        names_of = {
            "breed": [f"B{n}" for n in range(20)],
            "color1": [f"C{n}" for n in range(8)],
            "gender": ["female", "male"],
        }
        content = {"species": SPECIES, "head_vocabs": names_of, "preprocessing": rule.to_dict()}
        checkpoints.save(specialist, {"model": model.state_dict(), **content})
    pack = folder / "pack.bin"
    make_pack(pack, dataset.catalog, checkpoints.read_stage1(stage1).preprocessing)
    return Bench(dataset, str(pack), stage1, specialist, folder)


def _photo(draw: np.random.Generator, size_px: int) -> Image.Image:
    """Draw soft shapes with a little noise: about the bytes a pixel of a photo as PNG."""
    small = draw.integers(0, 256, (12, 12, 3), np.uint8)
    soft = Image.fromarray(small).resize((size_px, size_px), Image.Resampling.BICUBIC)
    noise = draw.normal(0, 4, (size_px, size_px, 3))
    return Image.fromarray(np.clip(np.asarray(soft) + noise, 0, 255).astype(np.uint8))


def _settled(model: nn.Module, dataset: Dataset, rule: Preprocessing) -> nn.Module:
    """Give BatchNorm the statistics of some photos, as training would: no saturated features."""
    torch.manual_seed(0)
    x = photos_of(dataset, "", rule, None)("train", 32).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        for _ in range(20):
            model.train()(x)
    return model.eval()


def main() -> None:
    """Make everything in a temporary folder, measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, default=512, help="how many to make")
    parser.add_argument("--size-px", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--stage1", type=Path, help="a checkpoint, instead of random weights")
    parser.add_argument("--specialist", type=Path, help="one of cats, instead of random weights")
    parser.add_argument(
        "--hardware", default=hardware_name(torch.device("cpu")), help="the end of the file's name"
    )
    parser.add_argument("--out", type=Path, default=Path("results"))
    a = read_flags(parser)
    with tempfile.TemporaryDirectory() as folder:
        with redirect_stdout(None):
            bench = make_bench(Path(folder), a.photos, a.size_px, a.stage1, a.specialist)
        rows = bench_two_stage(bench, rounds=a.rounds, batch_size=a.batch_size)
    print(f"{'':24} {'source':9} {'img/s':>8} {'ratio':>6} {'of networks':>12}")
    for row in rows:
        what, source, rate, ratio, share, *_ = row.values()
        print(f"{what!s:24} {source!s:9} {rate!s:>8} {ratio!s:>6} {share!s:>12}")
    path = a.out / f"evaluation_speed_{a.hardware}.csv"
    files.write_csv(path, _COLUMNS, [[row[c] for c in _COLUMNS] for row in rows])
    print(f"written: {path}")


if __name__ == "__main__":
    run_script(main)
