"""Measure every part of training beside its limit and beside what one usually writes.

    python -m tools.bench                          # all parts, about 20 minutes on two cores
    python -m tools.bench --quick                  # about a minute: a look, no figures to quote
    python -m tools.bench --only decode steps      # some parts; --list names them

Prints a table and writes results/bench_<hardware>.csv (with --quick or --only: only with --out).
Contenders of a part take turns, a round each, after a round that does not count; a figure is the
median of the rounds. A ratio is the median of the rounds' own ratios, so that a machine whose speed
drifts does not bend it. All photos are made up. What is not installed is said and left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from petface import files
from petface.devices import choose_device, choose_precision, num_cores
from petface.errors import UserError, run_script
from petface.settings import read_flags
from tools import bench_parts, bench_training
from tools.bench_parts import Part
from tools.hardware import hardware_name

PARTS: dict[str, Callable[[Path, torch.device, bool], Iterator[Part]]] = {
    "decode": bench_parts.decode,
    "pack": bench_parts.pack,
    "augmentation": bench_parts.augmentation,
    "samples": bench_parts.samples,
    "steps": bench_training.steps,
    "stage2": bench_training.stage2,
    "epochs": bench_training.epochs,
    "startup": bench_parts.startup,
}
HEADER = (
    "part", "what", "images_per_s", "slowest_round", "fastest_round",
    "limit", "of_limit", "yardstick", "times_yardstick", "rounds", "threads", "device", "precision",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One contender of a part: images per second of each round."""

    part: Part
    name: str
    rates: list[float]

    def ratio(self, others: list[float] | None) -> float | None:
        """Give the median of the rounds' ratios to another contender's."""
        if not others:
            return None
        return statistics.median(a / b for a, b in zip(self.rates, others, strict=True))


def measure(part: Part, rounds: int, device: torch.device) -> list[Row]:
    """Let the contenders take turns: one round of warming up, then `rounds` that count."""
    rates: dict[str, list[float]] = {name: [] for name in part.contenders}
    before = torch.get_num_threads()
    torch.set_num_threads(part.threads)
    try:
        for number in range(rounds + 1):
            for name, run in part.contenders.items():
                _wait(device)
                start = time.perf_counter()
                with redirect_stderr(io.StringIO()):  # progress bars
                    num_images = run()
                _wait(device)
                if number:
                    rates[name].append(num_images / (time.perf_counter() - start))
    finally:
        torch.set_num_threads(before)
    return [Row(part, name, found) for name, found in rates.items()]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def show(part: Part, rows: list[Row]) -> None:
    """Print a part's table."""
    rates = {row.name: row.rates for row in rows}
    unit = "thread" if part.threads == 1 else "threads"
    print(f"\n{part.name} ({part.threads} {unit})")
    print(f"  {'':46s} {'img/s':>10s} {'of limit':>9s} {'yardstick':>10s}")
    for row in rows:
        share, times = row.ratio(rates.get(part.limit)), row.ratio(rates.get(part.yardstick))
        is_limit, is_yardstick = row.name == part.limit, row.name == part.yardstick
        left = "limit" if is_limit else "" if share is None else f"{share:.0%}"
        right = "= 1" if is_yardstick else "" if times is None else f"x {times:.2f}"
        print(f"  {row.name:46s} {statistics.median(row.rates):10,.0f} {left:>9s} {right:>10s}")
    for note in part.notes:
        print(f"  {note}")
    sys.stdout.flush()


def cells(row: Row, rates: dict[str, list[float]], device: torch.device) -> list[object]:
    """Give a row of the CSV."""
    part = row.part
    share, times = row.ratio(rates.get(part.limit)), row.ratio(rates.get(part.yardstick))
    return [
        part.name,
        row.name,
        *(f"{v:.1f}" for v in (statistics.median(row.rates), min(row.rates), max(row.rates))),
        part.limit,
        "" if share is None else f"{share:.3f}",
        part.yardstick,
        "" if times is None else f"{times:.3f}",
        len(row.rates),
        part.threads,
        device.type,
        str(choose_precision("auto", device)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small and few rounds, a minute")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="; ".join(PARTS))
    parser.add_argument("--list", action="store_true", help="name the parts and leave")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--rounds", type=int, default=0, help="0: 5, with --quick 2")
    parser.add_argument("--threads", type=int, default=0, help="of the network; 0: all cores")
    parser.add_argument("--folder", type=Path, help="for the made-up photos; default: temporary")
    parser.add_argument("--out", type=Path, help="CSV to write")
    arguments = read_flags(parser)
    if arguments.list:
        print("\n".join([*PARTS, "evaluation"]))
        return
    if unknown := set(arguments.only) - {*PARTS, "evaluation"}:
        raise UserError(f"--only {', '.join(sorted(unknown))}: known are {', '.join(PARTS)}")
    device = choose_device(arguments.device)
    rounds = arguments.rounds or (2 if arguments.quick else 5)
    out = arguments.out
    if out is None and not (arguments.quick or arguments.only):
        out = Path("results") / f"bench_{hardware_name(device)}.csv"
    print(
        f"{hardware_name(device)}, torch {torch.__version__}, {num_cores()} cores, {rounds} rounds"
    )
    start, table = time.perf_counter(), []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for name, make in PARTS.items():
            if arguments.only and name not in arguments.only:
                continue
            for part in make(Path(folder) / name, device, arguments.quick):
                if arguments.threads and part.threads > 1:
                    part = replace(part, threads=arguments.threads)
                rows = measure(part, rounds, device)
                show(part, rows)
                rates = {row.name: row.rates for row in rows}
                table += [cells(row, rates, device) for row in rows]
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 2**30
        print(f"\nGPU memory of this process at most: {peak:.2f} GiB")
    if not arguments.only or "evaluation" in arguments.only:
        evaluation(arguments.quick)
    if out is not None:
        files.write_csv(out, HEADER, table)
        print(f"\nwritten: {out}")
    print(f"minutes: {(time.perf_counter() - start) / 60:.1f}")


def evaluation(quick: bool) -> None:
    """Run the evaluation's own measurement, where it is there."""
    if importlib.util.find_spec("tools.bench_evaluation") is None:
        print("\nevaluation: tools/bench_evaluation.py is not there")
        return
    with tempfile.TemporaryDirectory() as folder:  # of a quick look no file stays
        small = ["--photos", "64", "--rounds", "2", "--out", folder] if quick else []
        command = [sys.executable, "-m", "tools.bench_evaluation", *small]
        print(f"\nevaluation: {' '.join(command[1:])}", flush=True)
        if (code := subprocess.run(command, check=False).returncode) != 0:
            print(f"evaluation: left with code {code}")


if __name__ == "__main__":
    run_script(main)
