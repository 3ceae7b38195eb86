"""The benchmark's arithmetic, its yardsticks and one quick part of it."""

from __future__ import annotations

import csv
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from petface.training import epoch as engine
from petface.training.augment import BASE, NONE, TAIL, augment_batch
from tools import bench, bench_training
from tools.bench_data import make_photos
from tools.bench_parts import Part, _pixel_data
from tools.bench_plain import v2_chain
from tools.hardware import hardware_name

CPU = torch.device("cpu")
GENOA = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC 9354 32-Core Processor
processor\t: 1
model name\t: AMD EPYC 9354 32-Core Processor
"""
XEON = """vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
"""


@pytest.mark.parametrize(
    "text, wanted",
    [
        (GENOA, "amd-epyc-9354-zen4"),
        (
            GENOA.replace("family\t: 25", "family\t: 26").replace(": 17", ": 2"),
            "amd-epyc-9354-zen5",
        ),
        (GENOA.replace(": 17", ": 1"), "amd-epyc-9354-zen3"),
        (XEON, "intel-xeon-platinum-8481c"),
    ],
)
def test_the_hardware_has_a_name_for_files(text, wanted):
    name = hardware_name(CPU, text)
    assert re.sub(r"^cpu-\d+core-", "", name) == wanted
    assert re.fullmatch(r"cpu-\d+core-[a-z0-9-]+", hardware_name(CPU))


def test_contenders_take_turns_and_ratios_are_of_the_same_round(monkeypatch):
    calls, now = [], iter([0.0, 9.0, 10.0, 12.0, 12.0, 13.0, 20.0, 24.0, 30.0, 32.0])
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(now))

    def contender(name):
        return lambda: calls.append(name) or 8

    part = Part("p", {"a": contender("a"), "b": contender("b")})
    rows = bench.measure(part, 2, CPU)
    assert calls == ["a", "b"] * 3
    assert [row.rates for row in rows] == [[4.0, 2.0], [8.0, 4.0]]  # the first round is left out
    assert rows[0].ratio(rows[1].rates) == 0.5 and rows[0].ratio(None) is None


def test_photos_are_read_back_and_are_no_flat_noise(tmp_path):
    tree = make_photos(tmp_path, 24, 64)
    assert len(tree.catalog) == 24 and tree.catalog.classes == ("cat", "dog", "hamster")
    sizes = [path.stat().st_size for path in tree.paths]
    assert 3_000 < np.mean(sizes) < 12_000  # 12,288 bytes of pixels
    blob = tree.paths[0].read_bytes()
    rows = np.frombuffer(bench.bench_parts.zlib.decompress(_pixel_data(blob)), np.uint8)
    assert len(rows) == 64 * (64 * 3 + 1)
    assert tree.samples(np.arange(24)).is_tail.sum() == 8


@pytest.mark.parametrize("regime", [NONE, BASE, TAIL])
def test_the_yardstick_augments_as_strongly_as_we_do(regime):
    picture = Image.fromarray(np.full((64, 64, 3), 255, np.uint8))
    torch.manual_seed(0)
    found = torch.stack([v2_chain(regime, 64)(picture) for _ in range(60)])
    assert found.shape == (60, 3, 64, 64) and found.dtype == torch.float32
    white = torch.full((60, 3, 64, 64), 255, dtype=torch.uint8)
    wanted = augment_batch(
        white, torch.ones(60, dtype=torch.bool), NONE, regime, torch.Generator().manual_seed(0)
    )
    assert abs(float((found == 0).float().mean() - (wanted == 0).float().mean())) < 0.05
    assert float(found.mean()) == pytest.approx(float(wanted.mean()), abs=0.08)


def test_every_way_of_training_runs_and_counts_its_images(tmp_path):
    tree = make_photos(tmp_path, 24, 32)
    source = bench_training.FileImages(tree.catalog, tree.rule)
    with bench.redirect_stderr(bench.io.StringIO()):
        ours = bench_training.epoch_of(tree, source, CPU, 8, "fast", validate=True)
        assert ours() == ours() == 24
    assert bench_training.bare_steps(tree, CPU, 8)() == 24
    assert bench_training.specialist(tree, CPU, 8, "layer4")() == 8
    assert bench_training.specialist(tree, CPU, 8, "all", "fp32")() == 8
    assert bench_training.answering(tree, CPU, 8)() == 8
    train, val = bench_training.parts_of(tree, True)
    assert sorted([*train, *val]) == list(range(24)) and len(val) == 4


def test_a_quick_part_prints_its_table_and_writes_a_csv(tmp_path, monkeypatch, capsys):
    out = tmp_path / "bench.csv"
    flags = ["--quick", "--only", "pack", "--rounds", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["bench", *flags, "--folder", str(tmp_path)])
    bench.main()
    printed = capsys.readouterr().out
    with out.open(newline="") as handle:
        rows = {row["what"]: row for row in csv.DictReader(handle)}
    assert set(rows) == {"array in memory", "pack, raw", "pack, zlib", "files"}
    assert float(rows["pack, raw"]["times_yardstick"]) > 3
    assert rows["files"]["times_yardstick"] == "1.000" and "x " in printed
    assert {path.name for path in tmp_path.iterdir()} == {"bench.csv"}  # the photos are gone


@pytest.mark.parametrize(("stages", "num_frozen"), [("all", 0), ("layer4", 1)])
def test_a_specialists_step_goes_backward(tmp_path, monkeypatch, stages, num_frozen):
    """Every parameter that is trained has a gradient when the optimizer is to move it."""
    seen = []
    monkeypatch.setattr(engine, "_update", lambda _, optimizer, __: seen.append(optimizer))
    tree = make_photos(tmp_path, 2, 32)
    assert bench_training.specialist(tree, CPU, 2, stages)() == 2
    trained = [p for group in seen[0].param_groups for p in group["params"]]
    assert trained and all(p.grad is not None and p.grad.any() for p in trained)
    whole = bench_training.specialist(tree, CPU, 2, "all")
    whole()
    num_all = sum(len(group["params"]) for group in seen[1].param_groups)
    assert (len(trained) < num_all) == bool(num_frozen)
