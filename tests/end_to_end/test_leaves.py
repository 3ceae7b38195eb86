"""Each leaf can be deleted: without it the scripts still train, evaluate and predict."""

import json
import shutil
import subprocess
import sys

import pytest

from tests import naive, scripts
from tests.conftest import TINY

LEAVES = ("report", "analysis", "identity", "export", "serving")
# One interpreter for all scripts, since loading torch takes longer than they do.
RUN = """
import importlib.util, json, runpy, sys
assert importlib.util.find_spec("petface").origin.startswith(sys.argv[1])
assert importlib.util.find_spec("petface." + sys.argv[2]) is None
for sys.argv in json.loads(sys.argv[3]):
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        assert not end.code, (sys.argv, end.code)
"""


@pytest.mark.parametrize(
    "leaf", [LEAVES[0], *(pytest.param(leaf, marks=pytest.mark.slow) for leaf in LEAVES[1:])]
)
def test_the_scripts_need_no_leaf(leaf, tree, tmp_path):
    copied, runs, photo = tmp_path / "repository", tmp_path / "runs", "cat/000000/00.png"
    shutil.copytree(
        scripts.REPOSITORY / "petface",
        copied / "petface",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    shutil.rmtree(copied / "petface" / leaf)
    names = (scripts.STAGE1, scripts.STAGE2, scripts.INFERENCE)
    for name in names:
        shutil.copy(scripts.REPOSITORY / name, copied)
    data = [*tree.flags, "--num-workers", 0, "--device", "cpu"]
    training = [*data, *TINY, "--runs-root", runs]
    models = ["--stage1-checkpoint", runs / "one/best.pt", "--stage2-folder", runs / "two"]
    commands = [
        [names[0], *training, "--run-name", "one", "--epochs", 1],
        [names[1], *training, "--run-name", "two", "--species", "cat", "--phase-epochs", 1, 1,
         "--weights", "none", "--pretrained", "none"],
        [names[2], "evaluate", *data, *models, "--out-dir", runs / "evaluation"],
        [names[2], "predict", tree.images / photo, *models, "--out", runs / "photos.csv"],
        [names[2], tree.images / photo, *models, "--device", "cpu", "--json"],
    ]  # fmt: skip
    words = json.dumps([[str(word) for word in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", RUN, copied, leaf, words], cwd=copied, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((runs / "evaluation/petface_eval_summary.json").read_text())
    assert summary["num_images"] == sum(path.is_file() for path in tree.images.rglob("*"))
    (row,) = naive.rows_of(runs / "photos.csv")
    assert row["species_pred"] and row["status"] in ("ok", "no_specialist")
    assert json.loads(done.stdout.splitlines()[-1])
    is_said = any("report" in line and "not " in line for line in done.stdout.splitlines())
    assert is_said == (leaf == "report"), done.stdout
