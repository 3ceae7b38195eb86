"""A million photos: processor time and memory of summing up and writing the matrices, one core."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from petface.evaluation.details import DETAILS_FILE, MODELS, PER_IMAGE

NUM_PHOTOS = 1_000_000
_MEASURE = r"""
import json, re, sys, time
from pathlib import Path
from petface import files
from petface.evaluation.details import SUMMARY, read_evaluation
from petface.evaluation.figures import write_confusions
from petface.evaluation.summary import summarise
folder, began = Path(sys.argv[1]), time.process_time()
evaluation = read_evaluation(folder)
files.write_json(folder / SUMMARY, summarise(evaluation))
write_confusions(evaluation.heads, folder / "confusion")
# not ru_maxrss, which begins with the peak of the process that started this one
peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**20
print(json.dumps({"seconds": time.process_time() - began, "peak_gib": peak}))
"""


@pytest.mark.slow  # a minute or two
def test_a_million_photos_take_two_minutes_and_three_gigabytes(folder, photos, tmp_path):
    """The photos of the made evaluation again and again, each time of other animals."""
    times = -(-NUM_PHOTOS // len(photos))
    rows = pd.read_csv(folder / PER_IMAGE, dtype=str, keep_default_na=False)
    many = pd.concat([rows] * times, ignore_index=True)
    turn = np.repeat(np.arange(times), len(rows))
    many["record"] = np.char.mod("%05d-", turn) + many["record"]
    many.to_csv(tmp_path / PER_IMAGE, index=False)
    np.save(tmp_path / DETAILS_FILE, np.tile(np.load(folder / DETAILS_FILE), times))
    shutil.copy(folder / MODELS, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tmp_path)], capture_output=True, text=True, check=True
    )
    measured = json.loads(done.stdout.splitlines()[-1])
    print(measured)
    assert measured["seconds"] < 120 and measured["peak_gib"] < 3
    assert len(list((tmp_path / "confusion").glob("*.csv"))) > 5
