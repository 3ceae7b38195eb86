"""A made-up data set, the commands that are tortured on it, and what they give undisturbed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from petface.errors import UserError
from tests import scripts

PROGRAMS = ("stage1", "stage2", "pack", "evaluate", "predict")
_STEADY = ["--device", "cpu", "--precision", "fp32", "--num-workers", 0]
_LENIENT = ["--max-bad-fraction", 0.1]  # a small demo has the odd files of a large one


@dataclass(frozen=True)
class Command:
    """A script with its arguments; what it writes lies in `folder`."""

    script: str
    arguments: Sequence[object]
    folder: Path

    def with_flags(self, *more: object) -> Command:
        """Give the command with further flags; later ones count."""
        return Command(self.script, [*self.arguments, *more], self.folder)


@dataclass
class Workshop:
    """A demo in `place`, and one undisturbed run of each program, made when it is first needed."""

    place: Path
    records: int = 300
    size_px: int = 64
    epochs: int = 2
    species: tuple[str, ...] = ("cat", "hamster")
    seconds: dict[str, float] = field(default_factory=dict)  # of the undisturbed runs

    @property
    def data(self) -> Path:
        """The folder of the demo; drawn once."""
        data = self.place / "data"
        if not (data / "demo.json").exists():
            flags = ["--out", data, "--records", self.records, "--size", self.size_px]
            command = [sys.executable, "-m", "tools.make_demo_data", *flags, "--workers", 1]
            subprocess.run(
                [*map(str, command)], check=True, cwd=scripts.REPOSITORY, capture_output=True
            )
        return data

    def scratch(self, name: str) -> Path:
        """Give a folder of this name."""
        (self.place / name).mkdir(parents=True, exist_ok=True)
        return self.place / name

    def command(self, program: str, folder: Path, data: Path | None = None) -> Command:
        """Give the command of a program (`PROGRAMS`) that writes into `folder`."""
        data = data or self.data
        tree = ["--images-root", data / "images", "--annotations-root", data / "annotations"]
        runs = ["--runs-root", folder.parent, "--run-name", folder.name]
        size = ["--image-size-px", self.size_px]
        if program == "stage1":
            preset = ["--config", scripts.REPOSITORY / "configs/stage1/demo.toml"]
            flags = [*preset, *tree, *runs, *size, *_STEADY, *_LENIENT, "--epochs", self.epochs]
            return Command(scripts.STAGE1, flags, folder)
        if program == "stage2":
            preset = ["--config", scripts.REPOSITORY / "configs/stage2/demo.toml"]
            weights = ["--weights", self.straight("stage1") / "best.pt"]
            phases = ["--phase-epochs", self.epochs, 1, "--species", *self.species]
            flags = [*preset, *tree, *runs, *size, *_STEADY, *_LENIENT, *weights, *phases]
            return Command(scripts.STAGE2, flags, folder)
        if program == "pack":
            flags = [*tree[:2], *size, "--out", folder / "pack.bin", "--num-workers", 0]
            return Command(scripts.PACK, flags, folder)
        models = ["--stage1-checkpoint", self.straight("stage1") / "best.pt"]
        models += ["--stage2-folder", self.straight("stage2"), "--batch-size", 16]
        if program == "predict":
            flags = ["predict", data / "images", *models, *_STEADY, "--out", folder / "answers.csv"]
            return Command(scripts.INFERENCE, flags, folder)
        preset = ["--config", scripts.REPOSITORY / "configs/eval/demo.toml"]
        flags = ["evaluate", *preset, *tree, *models, *_STEADY, "--interval-resamples", 50]
        return Command(scripts.INFERENCE, [*flags, "--out-dir", folder], folder)

    def straight(self, program: str) -> Path:
        """Give the folder of the undisturbed run."""
        folder = self.place / "straight" / program
        if program not in self.seconds:
            command = self.command(program, folder)
            folder.parent.mkdir(parents=True, exist_ok=True)
            scripts.run_forked(
                scripts.REPORT, ["--help"], self.scratch("warm")
            )  # the fork server starts
            begun = time.monotonic()
            done = scripts.run_forked(command.script, command.arguments, self.scratch("straight"))
            if done.code != 0:
                raise UserError(f"the undisturbed {program} failed, {done.last_words()}")
            self.seconds[program] = time.monotonic() - begun
        return folder
