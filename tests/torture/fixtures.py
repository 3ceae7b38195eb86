"""A made-up data set, the commands that are tortured on it, and what they give undisturbed."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from petface.errors import UserError
from tests import scripts

PAGE = 4096  # bytes that the file system of `small_space` gives out at once
_STEADY = ["--device", "cpu", "--precision", "fp32", "--num-workers", 0]


class Command(NamedTuple):
    """A script with its arguments; what it writes lies in `folder`."""

    script: str
    arguments: Sequence[object]
    folder: Path


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
            scripts.run_fresh("tools/make_demo_data.py", [*flags, "--workers", 1]).checked()
        return data

    @property
    def models(self) -> list[object]:
        """The flags that name the networks of the undisturbed runs."""
        stage1 = ["--stage1-checkpoint", self.straight("stage1") / "best.pt"]
        return [*stage1, "--stage2-folder", self.straight("stage2")]

    def scratch(self, name: str) -> Path:
        """Return a folder of this name."""
        (self.place / name).mkdir(parents=True, exist_ok=True)
        return self.place / name

    def fresh(self, name: str, program: str) -> Path:
        """Return the place of a folder that is not there yet."""
        folder = self.scratch(name) / program
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def start(
        self, command: Command, hook: scripts.Hook | None = None, streams: str = "streams"
    ) -> scripts.Running:
        return scripts.start(command.script, command.arguments, self.scratch(streams), hook)

    def command(self, program: str, folder: Path) -> Command:
        """Return the command of a program that writes into `folder`."""
        images, annotations = self.data / "images", self.data / "annotations"
        tree = ["--images-root", images, "--annotations-root", annotations]
        size = ["--image-size-px", self.size_px]
        flags = [*tree, "--runs-root", folder.parent, "--run-name", folder.name, *size, *_STEADY]
        flags += ["--max-bad-fraction", 0.1]  # a small demo has the odd files of a large one
        preset = scripts.REPOSITORY / "configs" / program / "demo.toml"
        if program == "stage1":
            flags = ["--config", preset, *flags, "--epochs", self.epochs]
            return Command(scripts.STAGE1, flags, folder)
        if program == "stage2":
            flags = ["--config", preset, *flags, "--weights", self.straight("stage1") / "best.pt"]
            flags += ["--phase-epochs", self.epochs, 1, "--species", *self.species]
            return Command(scripts.STAGE2, flags, folder)
        if program == "pack":
            flags = [*tree[:2], *size, "--out", folder / "pack.bin", "--num-workers", 0]
            return Command(scripts.PACK, flags, folder)
        flags = [*self.models, "--batch-size", 16, *_STEADY]
        if program == "predict":
            flags = ["predict", images, *flags, "--out", folder / "answers.csv"]
        else:
            preset = scripts.REPOSITORY / "configs/eval/demo.toml"
            flags = ["evaluate", "--config", preset, *tree, *flags, "--out-dir", folder]
        return Command(scripts.INFERENCE, flags, folder)

    def straight(self, program: str) -> Path:
        """Return the folder of the undisturbed run."""
        folder = self.place / "straight" / program
        if program not in self.seconds:
            command = self.command(program, folder)
            folder.parent.mkdir(parents=True, exist_ok=True)
            # the fork server starts
            self.start(Command(scripts.REPORT, ["--help"], folder)).wait()
            begun = time.monotonic()
            done = self.start(command).wait()
            if done.code != 0:
                raise UserError(f"the undisturbed {program} failed, {done.last_words()}")
            self.seconds[program] = time.monotonic() - begun
        return folder


@dataclass
class Space:
    """A folder with room for so many bytes; where it is not mounted, `hook` limits a script."""

    folder: Path
    num_bytes: int
    is_mounted: bool

    def grow(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        if self.is_mounted:
            _mount("-o", f"remount,size={self.num_bytes}", self.folder)

    @property
    def hook(self) -> scripts.Hook | None:
        return None if self.is_mounted else partial(scripts.limit, "RLIMIT_FSIZE", self.num_bytes)


@contextmanager
def small_space(folder: Path) -> Iterator[Space]:
    """Make a file system in memory without room for a single byte; it is gone afterwards.

    Where nothing can be mounted, a limit on the size of each file stands for it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    is_mounted = os.geteuid() == 0 and _mount("-t", "tmpfs", "-o", f"size={PAGE}", "full", folder)
    if is_mounted:
        (folder / "ballast").write_bytes(bytes(PAGE))  # a size of 0 would mean no limit
    try:
        yield Space(folder, PAGE, is_mounted)
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _mount(*arguments: object) -> bool:
    command = ["mount", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0
