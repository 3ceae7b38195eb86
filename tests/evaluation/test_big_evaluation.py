"""A million photos: processor time and memory of summing up and writing the matrices, one core."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from petface import files
from petface.evaluation.details import (
    DETAILS,
    DETAILS_FILE,
    HEADS,
    MODELS,
    PER_IMAGE,
    PER_IMAGE_COLUMNS,
)

NUM_PHOTOS = 1_000_000
# Classes per head as in the largest data set of pet faces: cats and dogs with many breeds
SPECIES = [f"species {k:02d}" for k in range(13)]
NUM_CLASSES = {
    "breed": (60, 330, *[12] * 11),
    "color": (0,) * 12 + (6,),
    "color1": (9, 12, *[8] * 11),
    "color2": (9, 12, *[8] * 11),
    "gender": (2,) * 13,
}
_MEASURE = r"""
import json, re, sys, time
from pathlib import Path
from petface import files
from petface.evaluation.details import SUMMARY, read_evaluation
from petface.evaluation.confusions import write_confusions
from petface.evaluation.summary import summarise
from petface.evaluation.heads import read_heads
folder, began = Path(sys.argv[1]), time.process_time()
evaluation = read_evaluation(folder)
heads = read_heads(evaluation)
files.write_json(folder / SUMMARY, summarise(evaluation, 1000, heads))
write_confusions(heads, folder / "confusion")
# not ru_maxrss, which begins with the peak of the process that started this one
peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**20
print(json.dumps({"seconds": time.process_time() - began, "peak_gib": peak}))
"""


def make_big_evaluation(folder: Path, num: int) -> None:
    """Write an evaluation of `num` made-up photos, four or so an animal, by whole columns."""
    draw = np.random.default_rng(0)
    species = np.sort(draw.integers(0, len(SPECIES), num))
    animal = np.cumsum(draw.random(num) < 0.25)
    split = np.array(["train", "val", "test"])[draw.choice(3, animal[-1] + 1, p=[0.8, 0.1, 0.1])]
    names = np.array(SPECIES)
    rows = {column: np.full(num, "", object) for column in PER_IMAGE_COLUMNS}
    rows["image"] = np.char.add(np.char.mod("species/%06d/", animal), "00.png")
    rows |= {"species": names[species], "record": np.char.mod("%06d", animal)}
    rows |= {"split": split[animal], "status": np.full(num, "ok")}
    details = np.zeros(num, DETAILS)
    is_right = np.ones(num, bool)
    models: dict[str, dict[str, list[str]]] = {name: {} for name in SPECIES}
    for head in HEADS:
        own = np.array([13] * 13 if head == "species" else NUM_CLASSES[head])[species]
        truth = species if head == "species" else (animal * 7919) % np.maximum(own, 1)
        own = np.where(is_right, own, 0)
        guess = (truth + (draw.random(num) < 0.2) * draw.integers(0, 1000, num)) % np.maximum(
            own, 1
        )
        column = details[head]
        sure = (0.3 + 0.7 * draw.random(num)).astype(np.float32)
        column["top"] = (guess[:, None] + np.arange(5)) % np.maximum(own, 1)[:, None]
        column["top"][np.arange(5) >= own[:, None]] = -1
        column["top_prob"] = sure[:, None] * np.array([1, 0.1, 0.1, 0.1, 0.1], np.float32)
        column["top_prob"][np.arange(5) >= own[:, None]] = np.nan
        column["rank"] = np.where(own > 0, (truth - guess) % np.maximum(own, 1) + 1, 0)
        for name in ("nll", "brier", "raw_prob", "raw_nll", "raw_brier"):
            column[name] = np.where(own > 0, sure, np.nan)
        asked = own > 0
        label = names[truth] if head == "species" else np.char.mod("label %03d", truth)
        answer = names[guess] if head == "species" else np.char.mod("label %03d", guess)
        if head != "species":
            rows[f"{head}_true"] = label
            for k, name in enumerate(SPECIES):
                if NUM_CLASSES[head][k]:
                    models[name][head] = [f"label {c:03d}" for c in range(NUM_CLASSES[head][k])]
        rows[f"{head}_pred"] = np.where(asked, answer, "")
        rows[f"{head}_prob"] = np.where(asked, np.char.mod("%.6f", sure), "")
        rows[f"{head}_correct"] = np.where(asked, (guess == truth).astype(int).astype(str), "")
        if head == "species":
            is_right = guess == truth
    pd.DataFrame(rows)[list(PER_IMAGE_COLUMNS)].to_csv(folder / PER_IMAGE, index=False)
    np.save(folder / DETAILS_FILE, details)
    fitted = {"temperature": 1.0, "threshold": 0.8, "conformal_quantile": 0.9}
    specialists = {
        name: {"heads": heads, "calibration": dict.fromkeys(heads, fitted)}
        for name, heads in models.items()
    }
    stage1 = {"heads": {"species": SPECIES}, "calibration": {"species": fitted}}
    files.write_json(folder / MODELS, {"stage1": stage1, "specialists": specialists})


@pytest.mark.slow  # a minute or two
def test_a_million_photos_take_two_minutes_and_three_gigabytes(tmp_path: Path) -> None:
    make_big_evaluation(tmp_path, NUM_PHOTOS)
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tmp_path)], capture_output=True, text=True, check=True
    )
    measured = json.loads(done.stdout.splitlines()[-1])
    print(measured)
    assert measured["seconds"] < 120 and measured["peak_gib"] < 3
    assert len(list((tmp_path / "confusion").glob("*.csv"))) > 80
