"""The benchmark's arithmetic, its yardstick, and one quick part of it."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from petface.training.augment.exact import augment
from petface.training.augment.regimes import MILD, NONE, draw_parameters
from tests.naive import rows_of
from tools import bench

CPU = torch.device("cpu")
GENOA = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC 9354 32-Core Processor
processor\t: 1
model name\t: AMD EPYC 9354 32-Core Processor
"""
XEON = GENOA.replace(": 25", ": 6").replace("AMD EPYC 9354 32-Core Processor", "{}").format(
    *["Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"] * 2
)  # fmt: skip


@pytest.mark.parametrize(
    "text, wanted",
    [
        (GENOA, "amd-epyc-9354-zen4"),
        (GENOA.replace("family\t: 25", "family\t: 26"), "amd-epyc-9354-zen5"),
        (GENOA.replace(": 17", ": 1"), "amd-epyc-9354-zen3"),
        (XEON, "intel-xeon-platinum-8481c"),
    ],
)
def test_the_hardware_has_a_name_for_files(text, wanted):
    name = bench.hardware_name(CPU, text)
    assert re.sub(r"^cpu-\d+core-", "", name) == wanted
    assert re.fullmatch(r"cpu-\d+core-[a-z0-9-]+", bench.hardware_name(CPU))


def test_contenders_take_turns_and_ratios_are_of_the_same_round(monkeypatch, capsys):
    calls, now = [], iter([0.0, 9.0, 10.0, 12.0, 12.0, 13.0, 20.0, 24.0, 30.0, 32.0])
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(now))
    contenders = {name: lambda name=name: calls.append(name) or 8 for name in "ab"}
    rates = bench.measure(("p", contenders), 2, CPU)
    assert calls == ["a", "b"] * 3
    assert rates == {"a": [4.0, 2.0], "b": [8.0, 4.0]}  # the first round is left out
    row = dict(zip(bench.HEADER, bench.show("p", rates, CPU)[0], strict=True))
    assert (row["yardstick"], row["times_yardstick"], row["slowest_round"]) == ("b", "0.500", "2.0")
    assert " 0.500\n" in capsys.readouterr().out


@pytest.mark.parametrize("regime", [NONE, MILD])
def test_the_yardstick_augments_as_strongly_as_we_do(regime):
    picture = Image.fromarray(np.full((64, 64, 3), 255, np.uint8))
    torch.manual_seed(0)
    found = torch.stack([bench.v2_chain(regime, 64)(picture) for _ in range(60)])
    assert found.shape == (60, 3, 64, 64) and found.dtype == torch.float32
    white = torch.full((60, 3, 64, 64), 255, dtype=torch.uint8)
    is_tail, generator = torch.ones(60, dtype=torch.bool), torch.Generator().manual_seed(0)
    wanted = augment(white, draw_parameters(is_tail, NONE, regime, generator))
    assert abs(float((found == 0).float().mean() - (wanted == 0).float().mean())) < 0.05
    assert float(found.mean()) == pytest.approx(float(wanted.mean()), abs=0.08)


@pytest.mark.parametrize("way", ["", "auto", "plain"])
def test_every_way_of_training_runs_and_counts_its_images(tmp_path, way):
    tree = bench.make_photos(tmp_path, 24, 32)
    run = bench.our_epoch(tree, way, CPU, 8) if way != "plain" else bench.plain_script(tree, CPU, 8)
    with bench.redirect_stderr(bench.io.StringIO()):
        assert run() == 24
    train, val = tree.train_and_val()
    assert sorted([*train, *val]) == list(range(24)) and len(val) == 4


def test_the_main_thread_is_timed_without_what_others_do(tmp_path, monkeypatch):
    ((part, contenders),) = bench.host(tmp_path, CPU, quick=True)
    ((name, run),) = contenders.items()
    now = iter([3.0, 5.0])
    monkeypatch.setattr(bench.time, "thread_time", lambda: next(now))
    assert run() == (200, 2.0) and (part, name) in bench.GOALS


@pytest.mark.slow
def test_a_quick_part_prints_its_table_and_writes_a_csv(tmp_path, monkeypatch, capsys):
    out = tmp_path / "bench.csv"
    flags = ["--quick", "--only", "evaluation", "--rounds", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["bench", *flags])
    monkeypatch.setattr(bench.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(bench, "measure", lambda part, rounds, _: {
        name: [float(np.max(run()))] * rounds for name, run in part[1].items()
    })  # fmt: skip
    bench.main()
    printed = capsys.readouterr().out
    rows = {row["what"]: row for row in rows_of(out)}
    assert rows.pop("pack, without the start")["images_per_s"] == "21.0"  # 24 but for 3
    assert set(rows) == {"PNG files, fp32", "PNG files", "pack", "loop over single photos"}
    assert all(row["times_yardstick"] == "1.000" for row in rows.values()) and " 1.000\n" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"bench.csv"}  # the photos are gone
