"""Disks and file systems that fail below Python: the real scripts under a preloaded library."""

from __future__ import annotations

import errno
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import naive, scripts
from tests.conftest import TINY_STAGE1
from tests.sameness import assert_same

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")]
OPEN_TWICE = ("stage1", "stage2", "audit")  # they look for identical files first
FAULTS = [("EIO", 1), ("EIO", 0), ("ESTALE", 0), ("EMFILE", 0), ("ETIMEDOUT", 1), ("EACCES", 0),
          ("ESTALE", 1)]  # fmt: skip  # and whether in the middle of a file
FINISHED = {"final.json", "petface_eval_summary.json", "a.csv", "a.bin", "audit.json",
            "label_errors.csv"}  # fmt: skip


@pytest.fixture(scope="module")
def run(tree, stage1_run, stage2_flags, model_flags, evaluation_flags, module_folder):
    """Run a program that writes into a folder; with faults, below a disk that has them."""
    library = module_folder / "failing_disk.so"
    source = Path(__file__).with_name("failing_disk.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)

    def go(program: str, out: Path, **faults: object) -> scripts.Result:
        runs = ["--runs-root", out.parent, "--run-name", out.name]
        photos, judge = ["--images-root", tree.images], "tools/find_label_errors.py"
        stage1 = ["--checkpoint", stage1_run.folder / "best.pt", "--device", "cpu"]
        name, *arguments = {
            "stage1": [scripts.STAGE1, *tree.flags, *TINY_STAGE1, *runs],
            "stage2": [scripts.STAGE2, *stage2_flags, *runs, "--species", "cat"],
            "evaluate": [scripts.INFERENCE, *evaluation_flags, "--out-dir", out],
            "predict": [scripts.INFERENCE, "predict", tree.images, *model_flags,
                        "--out", out / "a.csv"],
            "pack": [scripts.PACK, *photos, "--image-size-px", 32, "--out", out / "a.bin"],
            "audit": ["tools/audit.py", *tree.flags, "--workers", 0, "--out", out],
            "label_errors": [judge, *tree.flags, *stage1, "--num-workers", 0, "--out", out],
        }[program]  # fmt: skip
        below = {"LD_PRELOAD": library, **faults} if faults else {}
        done = subprocess.run(
            [sys.executable, scripts.REPOSITORY / name, *map(str, arguments)],
            env={**os.environ, **scripts.ENVIRONMENT, **{k: str(v) for k, v in below.items()}},
            capture_output=True, text=True, timeout=scripts.PATIENCE_S,
        )  # fmt: skip
        return scripts.Result(done.returncode, done.stdout, done.stderr)

    return go


@pytest.fixture(scope="module")
def straight(run, module_folder):
    """Give the folder of an undisturbed run of a program, made once."""
    done = functools.cache(lambda program: run(program, module_folder / program).checked())
    return lambda program: done(program) and module_folder / program


@pytest.mark.parametrize("program", [*OPEN_TWICE, "evaluate", "predict", "pack", "label_errors"])
def test_a_photo_that_the_disk_does_not_give_stops_a_program_that_then_goes_on(
    run, straight, tree, program, tmp_path
):
    """Each fault in turn, in one folder; then the same command ends as if nothing had been."""
    place = next(
        f"cat/{record}/00.png"
        for (species, record), split in naive.splits(tree.root).items()
        if (species, split) == ("cat", "train") and record not in ("000003", "000007")
    )
    for number, (name, in_middle) in enumerate(FAULTS):
        done = run(
            program, tmp_path / "out", FAULT_NAME=place, FAULT_ERRNO=getattr(errno, name),
            FAULT_FIRST=1 + number % (2 if program in OPEN_TWICE else 1), FAULT_MIDDLE=in_middle,
        )  # fmt: skip
        scripts.assert_refused(done, place, name, "same command")
        assert not FINISHED & {path.name for path in (tmp_path / "out").rglob("*")}, name
    run(program, tmp_path / "out").checked()
    assert_same(straight(program), tmp_path / "out")


@pytest.mark.parametrize("program", ["stage1", "evaluate", "predict", "pack"])
@pytest.mark.parametrize("name", ["ENOLCK", "ENOSYS"])
def test_a_file_system_without_locks_costs_one_warning(run, straight, program, name, tmp_path):
    done = run(program, tmp_path / "out", FAULT_FLOCK=getattr(errno, name)).checked()
    assert done.err.count("cannot be locked") == 1 and os.strerror(getattr(errno, name)) in done.err
    assert_same(straight(program), tmp_path / "out")
