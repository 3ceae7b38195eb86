"""An unknown constant, a wrong type or a value out of range ends a script with exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys

from petface.errors import run_script
from petface.settings import PositiveFloat, read_settings

LR: PositiveFloat = 1e-3  # step size
BATCH_SIZE: int = 64


def main() -> None:
    settings = read_settings(sys.modules["__main__"], switches={"force": "overwrite"})
    settings.write("settings.toml")
    print(settings.LR, settings.BATCH_SIZE, sorted(settings.switches))


run_script(main)
"""


def run(folder: Path, *argv: str, script: str = SCRIPT) -> subprocess.CompletedProcess[str]:
    (folder / "train.py").write_text(script)
    return subprocess.run(
        [sys.executable, "train.py", *argv],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_good_settings_run_and_are_kept(tmp_path: Path) -> None:
    done = run(tmp_path, "--lr", "0.5", "--force")
    assert (done.returncode, done.stdout, done.stderr) == (0, "0.5 64 ['force']\n", "")
    again = run(tmp_path, "--config", "settings.toml")
    assert (again.returncode, again.stdout) == (0, "0.5 64 []\n")


def test_help_exits_0(tmp_path: Path) -> None:
    done = run(tmp_path, "--help")
    assert done.returncode == 0 and "step size" in done.stdout and done.stderr == ""
    assert not (tmp_path / "settings.toml").exists()


@pytest.mark.parametrize(
    ("preset", "argv", "words"),
    [
        ("\nLRR = 1", ["--config", "a.toml"], ["a.toml:2", "LRR", "nearest: LR"]),
        ("LR = 'fast'", ["--config", "a.toml"], ["a.toml:1", "a number > 0", "'fast'"]),
        ("LR = -1", ["--config", "a.toml"], ["a.toml:1", "a number > 0", "-1"]),
        ("LR = ", ["--config", "a.toml"], ["a.toml:1", "TOML"]),
        ("", ["--config", "b.toml"], ["b.toml", "nearest: a.toml"]),
        ("", ["--bacth-size", "3"], ["--bacth-size", "nearest: --batch-size"]),
        ("", ["--batch-size", "3.5"], ["--batch-size", "a whole number", "'3.5'"]),
        ("", ["--lr", "0"], ["--lr", "a number > 0", "'0'"]),
        ("", ["photos"], ["'photos'"]),
    ],
)
def test_bad_setting_exits_2(
    tmp_path: Path, preset: str, argv: list[str], words: list[str]
) -> None:
    (tmp_path / "a.toml").write_text(preset)
    done = run(tmp_path, *argv)
    _check_refusal(done, words)
    assert not (tmp_path / "settings.toml").exists()


def test_bad_constant_in_the_script_exits_2(tmp_path: Path) -> None:
    done = run(tmp_path, script=SCRIPT.replace("= 1e-3", "= 0.0"))
    _check_refusal(done, ["train.py:7", "LR", "a number > 0"])


def test_preset_of_an_older_script_is_refused(tmp_path: Path) -> None:
    assert run(tmp_path).returncode == 0
    newer = SCRIPT.replace("LR: Pos", "LEARNING_RATE: Pos").replace("settings.LR", "1")
    newer = newer.replace("BATCH_SIZE", "BATCH_SIZE_IMAGES")
    _check_refusal(
        run(tmp_path, "--config", "settings.toml", script=newer), ["settings.toml:2", "LR"]
    )
    newer = SCRIPT.replace("BATCH_SIZE", "BATCH_SIZE_IMAGES")
    refused = run(tmp_path, "--config", "settings.toml", script=newer)
    _check_refusal(refused, ["settings.toml:3", "nearest: BATCH_SIZE_IMAGES"])


def _check_refusal(done: subprocess.CompletedProcess[str], words: list[str]) -> None:
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words), done.stderr
