"""The run folder: one holder at a time, never overwritten by accident, and it explains itself."""

from __future__ import annotations

import json
import math
import os
import platform
import socket
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from io import FileIO
from pathlib import Path
from typing import Any

import torch

from petface import distributed, files
from petface.data.annotations import SpeciesAnnotations, write_conflicts
from petface.data.catalog import Catalog
from petface.errors import UserError
from petface.models import checkpoints
from petface.settings import Settings
from petface.training import board

FREE_TO_CHANGE = frozenset(
    {"DEVICE", "NUM_WORKERS", "PACK", "SPECIES", "SPREAD", "TENSORBOARD"}
)  # what a resumed run may set otherwise
_PACKAGES = ("torch", "torchvision", "numpy", "pandas", "pillow", "scikit-learn")


class RunFolder:
    """A folder that this process holds; see `open_run`."""

    def __init__(self, path: Path, prefix: str = "", *, has_board: bool = False) -> None:
        self.path = path
        self._has_board, self._num_on_board = has_board, 0
        self.last = path / f"{prefix}last.pt"
        self.best = path / f"{prefix}best.pt"

    def save(self, path: Path, content: dict[str, Any]) -> None:
        """Write a checkpoint; when this returns, every process can read it."""
        if distributed.is_main():
            checkpoints.save(path, content)
        distributed.barrier()

    def write_metrics(self, history: Sequence[dict[str, Any]]) -> None:
        """Write `metrics.csv`, one row per epoch; the columns are the keys of the first row.

        The newest row goes to TensorBoard too, where the run has one.
        """
        if history and distributed.is_main():
            rows = [[row.get(key, "") for key in history[0]] for row in history]
            files.write_csv(self.path / "metrics.csv", list(history[0]), rows)
            if self._has_board and len(history) > self._num_on_board:
                board.write_board(self.path, history[-1])
                self._num_on_board = len(history)

    def write_errors(self, failures: Sequence[Sequence[str]]) -> None:
        """Write `errors.csv`: the images that could not be used, each once."""
        if distributed.is_main():
            files.write_csv(self.path / "errors.csv", ("species", "message"), failures)

    def write_conflicts(self, annotations: Iterable[SpeciesAnnotations]) -> None:
        """Write `label_conflicts.csv`: rows of one animal that contradict each other."""
        if distributed.is_main():
            write_conflicts(self.path / "label_conflicts.csv", annotations)

    def finish(self, final: dict[str, Any]) -> None:
        """Write `final.json`, which marks the run as finished; a figure that is NaN becomes null.

        Accuracies are NaN where the part holds no known label.
        """
        files.write_json(
            self.path / "final.json",
            {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in final.items()},
        )


def run_path(root: str, name: str) -> Path:
    """Join a run's name to the folder of runs; absolute names and `..` are refused."""
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts or "\0" in name:
        raise UserError(f"run name {name!r} must be a plain name inside {root}")
    return Path(root, name)


@contextmanager
def open_run(
    path: Path, settings: Settings, *, force: bool = False, prefix: str = ""
) -> Iterator[RunFolder]:
    """Hold a run folder: create it, or go on in an unfinished one with equal settings.

    `prefix` comes before the names of its checkpoints, last.pt and best.pt. Of several processes
    the first one holds the folder for all.

    `UserError` where another process holds it, where the run is finished (unless `force`, which
    deletes the old run's files), or where the unfinished run was started with other settings.
    """
    if not distributed.is_main():
        distributed.barrier()
        yield RunFolder(path, prefix)
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileIO(path / "run.lock", "a+")
    except OSError as error:
        raise files.write_error(path / "run.lock", error) from error
    has_board = settings.as_dict().get("TENSORBOARD", False)
    if has_board:
        board.check_board()
    run = RunFolder(path, prefix, has_board=has_board)
    with lock:
        _hold(lock, path)
        if force:
            _clear(path)
        elif (path / "final.json").exists():
            raise UserError(
                f"{path} holds a finished run; choose another RUN_NAME, or --force to replace it"
            )
        elif run.last.exists():
            _refuse_other_settings(path, settings, run.last)
        settings.write(path / "settings.toml")
        files.write_json(path / "environment.json", environment())
        distributed.barrier()
        yield run


def _hold(lock: FileIO, path: Path) -> None:
    if holder := files.take(lock):
        lock.seek(0)
        holder = lock.read().decode("utf-8", "replace").strip() or holder
        raise UserError(f"{path} is in use by {holder}; wait for it or take another name")
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    try:
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()} since {started}\n".encode())
    except OSError as error:
        raise files.write_error(path / "run.lock", error) from error


def _clear(path: Path) -> None:
    for pattern in (
        "*.pt",
        "*.csv",
        "*.json",
        "*.png",
        "*.txt",
        "*.html",
        f"*{files.TEMPORARY_SUFFIX}",
    ):
        for file in path.glob(pattern):
            file.unlink()


def global_batch_size(settings: Settings) -> int:
    """Give the images of a step over all processes: what a resume must keep."""
    return int(settings.BATCH_SIZE) * distributed.world_size()


def _refuse_other_settings(path: Path, settings: Settings, last: Path) -> None:
    try:
        before = tomllib.loads((path / "settings.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # lost or damaged: nobody can tell what it was
        raise UserError(
            f"{path} holds {last.name} but no settings.toml that can be read ({error}); take "
            "another RUN_NAME, or --force for a new run"
        ) from error
    now = json.loads(json.dumps(settings.as_dict()))
    if "BATCH_SIZE" in now:
        # what counts is a step's images; checkpoints of one process alone may not name them
        saved = checkpoints.load(last).get("global_batch_size", before.get("BATCH_SIZE"))
        wanted = global_batch_size(settings)
        if saved == wanted:
            before["BATCH_SIZE"] = now["BATCH_SIZE"]
        elif distributed.world_size() > 1 or saved != before.get("BATCH_SIZE"):
            raise UserError(
                f"{path} holds an unfinished run with {saved} images a step; this would take "
                f"{wanted}, BATCH_SIZE {now['BATCH_SIZE']} in each of {distributed.world_size()} "
                "processes; change one of the two, take another RUN_NAME, or --force for a new run"
            )
    changed = [
        f"{name}: {before.get(name)!r} -> {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and name not in FREE_TO_CHANGE
    ]
    if changed:
        raise UserError(
            f"{path} holds an unfinished run with other settings ({'; '.join(changed)}); to go on "
            f"use --config {path / 'settings.toml'}, another RUN_NAME, or --force for a new run"
        )


def environment() -> dict[str, Any]:
    """Collect what a run's figures depend on: versions, processor, accelerator, command."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        "system": platform.platform(),
        "processor": _processor(),
        "num_threads": torch.get_num_threads(),
        "num_processes": distributed.world_size(),
        "gpu": gpu,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


class FailureLog:
    """The images that could not be used, each once; too many of them stop the run.

    `num_images` is the number of images that the run works on; above `max_bad_frac` of it `add`
    writes `errors.csv` and raises `UserError`.
    """

    def __init__(
        self, run: RunFolder, catalog: Catalog, num_images: int, max_bad_frac: float
    ) -> None:
        self._run = run
        self._catalog = catalog
        self._limit = num_images * max_bad_frac
        self.messages: dict[int, str] = {}  # by place in the catalog

    def add(self, failures: Sequence[tuple[int, str]]) -> None:
        """Note (catalog place, message) pairs; known places are not counted again."""
        self.messages.update(failures)
        if len(self.messages) > self._limit:
            self.write()
            message = failures[-1][1] if failures else max(self.messages.items())[1]
            raise UserError(
                f"{len(self.messages)} images could not be read, more than MAX_BAD_FRACTION allows "
                f"({self._limit:.0f}); the last: {message}. Mend or remove them, or raise the limit"
            )

    def write(self) -> None:
        """Write the run's `errors.csv`."""
        self._run.write_errors(self.rows())

    def rows(self) -> list[tuple[str, str]]:
        """(species, message) per image, in catalog order."""
        species = self._catalog.classes
        return [
            (species[self._catalog.class_index[index]], message)
            for index, message in sorted(self.messages.items())
        ]

    def per_species(self) -> dict[str, int]:
        """Number of unusable images per species, only those above 0."""
        return dict(Counter(species for species, _ in self.rows()))


def summary_block(values: dict[str, Any]) -> str:
    """Format the greppable `key: value` lines that a run prints last."""
    return "\n".join(
        f"{key}: {value:.4f}" if isinstance(value, float) else f"{key}: {value}"
        for key, value in values.items()
    )
