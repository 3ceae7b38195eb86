"""Start the real scripts so that they can be killed: forks of an interpreter that has torch.

A fresh interpreter takes about five seconds to start. The fork server of the standard library
imports what the scripts import once and forks a process per run: a real process, with its own
signals, exit code and streams, and room for a hook that runs before the script.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

REPOSITORY = Path(__file__).resolve().parents[2]
STAGE1 = "train_resnet_minority_aug_dynamic.py"
STAGE2 = "stage2_resnet_multi.py"
INFERENCE = "inference_engine.py"
PACK = "tools/pack_images.py"
REPORT = "tools/report.py"
PATIENCE_S = 1200  # for a run that takes seconds; a machine with other work takes much longer
_PRELOADED = [
    "inference_engine",
    "train_resnet_minority_aug_dynamic",
    "stage2_resnet_multi",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
]
# One thread, so that sums are always made in the same order.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(REPOSITORY),
    "CUDA_VISIBLE_DEVICES": "",
    # what a killed process has not given back is given back at the end, with a warning
    "PYTHONWARNINGS": "ignore::UserWarning:multiprocessing.resource_tracker",
}
Hook = Callable[[], None]


@dataclass(frozen=True)
class Result:
    """How a script ended: exit code (negative: killed by that signal) and what it printed."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The line that says what was wrong."""
        lines = self.err.replace("\r", "\n").splitlines()
        return next((line for line in lines if line.startswith("error: ")), "")

    def last_words(self) -> str:
        """What to show of a run that should have gone well."""
        return f"exit code {self.code}: {self.message or self.err.strip()[-300:]}"


@dataclass(frozen=True)
class Running:
    """A script that was started."""

    process: Any
    out: Path
    err: Path

    @property
    def pid(self) -> int:
        """Its process number."""
        return int(self.process.pid)

    def is_over(self) -> bool:
        """Tell whether it has ended."""
        return not self.process.is_alive()

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()

    def send(self, number: int) -> None:
        """Send it a signal, unless it is gone."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self) -> Result:
        """Wait for its end."""
        self.process.join(PATIENCE_S)
        if self.process.exitcode is None:
            self.kill()
            raise TimeoutError(f"a script did not end: {self.err.read_text(errors='replace')}")
        texts = (
            path.read_text(encoding="utf-8", errors="replace") for path in (self.out, self.err)
        )
        return Result(self.process.exitcode, *texts)


def start(
    script: str, arguments: Sequence[object], scratch: Path, hook: Hook | None = None
) -> Running:
    """Start `python script arguments`; `hook` (picklable) runs in the process first.

    Its streams go into files of `scratch`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    out, err = scratch / "stdout.txt", scratch / "stderr.txt"
    for path in (out, err):
        path.write_bytes(b"")  # a script may be killed before it opens them
    with mock.patch.dict(os.environ, ENVIRONMENT):  # for the server, at its first start
        process = context.Process(
            target=_become, args=(script, [*map(str, arguments)], str(out), str(err), hook)
        )
        process.start()
    return Running(process, out, err)


def run(
    script: str, arguments: Sequence[object], scratch: Path, hook: Hook | None = None
) -> Result:
    """Start a script and wait for its end."""
    return start(script, arguments, scratch, hook).wait()


def run_together(
    script: str, arguments: Sequence[object], scratch: Path, hooks: Sequence[Hook | None]
) -> list[Result]:
    """Run a script in as many processes as there are `hooks`, as torchrun would start them."""
    if len(hooks) == 1:
        return [run(script, arguments, scratch, hooks[0])]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for rank, hook in enumerate(hooks):
        folder = scratch / f"rank{rank}"
        folder.mkdir(exist_ok=True)
        started.append(start(script, arguments, folder, Place(rank, len(hooks), port, hook)))
    return [running.wait() for running in started]


def _become(script: str, arguments: list[str], out: str, err: str, hook: Hook | None) -> None:
    for number, path in ((1, out), (2, err)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
        os.close(descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the fork server ignores it
    sys.argv = [script, *arguments]
    if hook is not None:
        hook()
    runpy.run_path(str(REPOSITORY / script), run_name="__main__")


@dataclass(frozen=True)
class Place:
    """Be one of several processes, as torchrun would start it; then call another hook."""

    rank: int
    world_size: int
    port: int
    hook: Hook | None = None

    def __call__(self) -> None:
        names = {"RANK": self.rank, "LOCAL_RANK": self.rank, "WORLD_SIZE": self.world_size}
        names |= {"LOCAL_WORLD_SIZE": self.world_size, "MASTER_PORT": self.port}
        os.environ.update({name: str(value) for name, value in names.items()})
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        if self.hook is not None:
            self.hook()
