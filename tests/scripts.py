"""Run the real scripts: in a fresh interpreter, or in a fork of one that has imported torch.

A fresh interpreter takes about five seconds to start. The fork server of the standard library
starts once, imports what the scripts import, and forks a process per run: a real process, with its
own signals, exit code and streams, and room for a hook that runs before the script. A fork does not
wait for the disk and draws no charts.
"""

from __future__ import annotations

import functools
import importlib
import io
import itertools
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
STAGE1 = "train_resnet_minority_aug_dynamic.py"
STAGE2 = "stage2_resnet_multi.py"
INFERENCE = "inference_engine.py"
PACK = "tools/pack_images.py"
REPORT = "tools/report.py"
_PRELOADED = [
    "inference_engine",
    "train_resnet_minority_aug_dynamic",
    "stage2_resnet_multi",
    "petface.report.evaluation_page",
]
PATIENCE_S = 1200  # a run takes seconds; a loaded machine takes much longer
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

    def checked(self) -> Result:
        """Return it, after checking that it ended well."""
        assert self.code == 0, self.err
        return self

    def figures(self) -> dict[str, str]:
        """Read the `key: value` block that ends the output."""
        block = {}
        for line in reversed(self.out.strip().splitlines()):
            key, colon, value = line.partition(": ")
            if not colon or " " in key:
                break
            block[key] = value
        return block

    @property
    def message(self) -> str:
        """The line that says what was wrong."""
        lines = self.err.replace("\r", "\n").splitlines()
        return next((line for line in lines if line.startswith("error: ")), "")

    def last_words(self) -> str:
        """What to show of a run that should have gone well."""
        return f"exit code {self.code}: {self.message or self.err.strip()[-300:]}"


def assert_refused(done: Result, *words: object, code: int = 1) -> None:
    """Check that a script ended with one message that holds all words, and no traceback."""
    assert done.code == code and "Traceback" not in done.err, done
    message = done.err[done.err.index("error: ") :]
    assert all(str(word) in message for word in words), message


def run_fresh(script: str, arguments: Sequence[object]) -> Result:
    """Run a script as a user does: `python script.py arguments`."""
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **ENVIRONMENT},
        timeout=PATIENCE_S,
    )
    return Result(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class Running:
    """A script that was started in a fork."""

    process: Any
    out: Path
    err: Path

    @property
    def pid(self) -> int:
        return int(self.process.pid)

    def is_over(self) -> bool:
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
        texts = (path.read_text("utf-8", "replace") for path in (self.out, self.err))
        return Result(self.process.exitcode, *texts)


def start(script: str, arguments: Sequence[object], scratch: Path, *hooks: Hook | None) -> Running:
    """Start a script in a fork of a warm interpreter; `hooks` (picklable) run in it first.

    Its streams go into files of `scratch`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    out, err = scratch / "stdout.txt", scratch / "stderr.txt"
    for path in (out, err):
        path.write_bytes(b"")  # a script may be killed before it opens them
    with mock.patch.dict(os.environ, ENVIRONMENT):  # for the server, at its first start
        process = context.Process(
            target=_become, args=(script, [*map(str, arguments)], str(out), str(err), hooks)
        )
        process.start()
    return Running(process, out, err)


def run_forked(
    script: str, arguments: Sequence[object], scratch: Path, *hooks: Hook | None
) -> Result:
    """Start a script in a fork and wait for its end."""
    return start(script, arguments, scratch, *hooks).wait()


def run_together(
    script: str,
    arguments: Sequence[object],
    scratch: Path,
    hooks: Sequence[Hook | None] = (None, None),
) -> list[Result]:
    """Run a script in as many processes as there are `hooks`, as torchrun would start them."""
    if len(hooks) == 1:
        return [run_forked(script, arguments, scratch, hooks[0])]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for rank, hook in enumerate(hooks):
        folder = scratch / f"rank{rank}"
        folder.mkdir(exist_ok=True)
        started.append(start(script, arguments, folder, Place(rank, len(hooks), port), hook))
    try:
        return [running.wait() for running in started]
    finally:
        for running in started:
            running.kill()


def _become(
    script: str, arguments: list[str], out: str, err: str, hooks: Sequence[Hook | None]
) -> None:
    for number, path in ((1, out), (2, err)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
        os.close(descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the fork server ignores it
    multiprocessing.set_start_method(None, force=True)  # as in a fresh interpreter, not our server
    os.fsync = lambda _: None  # only a power cut would show the difference
    importlib.import_module("petface.report.charts")._draw = _draw_nothing
    sys.argv = [script, *arguments]
    for hook in filter(None, hooks):
        hook()
    runpy.run_path(str(REPOSITORY / script), run_name="__main__")


def _draw_nothing(_rows: Any, _size_in: Any, handle: Any, form: str) -> None:
    if form == "svg":
        handle.write(b"<svg></svg>")
    else:
        Image.new("1", (1, 1)).save(handle, form)


# ---- Hooks ----
# Those that count calls of a function act at an exact place, not after a time.


@dataclass(frozen=True)
class Place:
    """Be one of several processes, as torchrun would start it."""

    rank: int
    world_size: int
    port: int

    def __call__(self) -> None:
        names = {"RANK": self.rank, "LOCAL_RANK": self.rank, "WORLD_SIZE": self.world_size}
        names |= {"LOCAL_WORLD_SIZE": self.world_size, "MASTER_PORT": self.port}
        os.environ.update({name: str(value) for name, value in names.items()})
        os.environ["MASTER_ADDR"] = "127.0.0.1"


def set_constant(module: str, name: str, value: object) -> None:
    """Give a module's constant another value, such as a batch that a small dataset fills twice."""
    setattr(importlib.import_module(module), name, value)


def wrap(owner: Any, function: str, around: Callable[..., Any]) -> None:
    """Have `around(number, call)` in place of each call of a function; numbers begin with 1."""
    numbers, wrapped = itertools.count(1), getattr(owner, function)

    def counting(*arguments: Any, **named: Any) -> Any:
        return around(next(numbers), functools.partial(wrapped, *arguments, **named))

    setattr(owner, function, counting)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class SignalAtStep:
    """Send a signal in the `step`-th training step, or call of another function, from 1.

    `to_group`: to every process of it, as Ctrl-C in a terminal does; this one has its own then.
    """

    step: int
    number: int
    times: int = 1
    function: str = "_update"
    module: str = "petface.training.epoch"
    to_group: bool = False

    def __call__(self) -> None:
        if self.to_group:
            os.setpgrp()

        def around(number: int, call: Callable[[], Any]) -> Any:
            for _ in range(self.times if number == self.step else 0):
                os.kill(0 if self.to_group else os.getpid(), self.number)
            return call()

        wrap(importlib.import_module(self.module), self.function, around)


def kill_before_call(module: str, function: str, call: int = 1) -> SignalAtStep:
    """Die where `module.function` is called for the `call`-th time."""
    return SignalAtStep(call, signal.SIGKILL, 1, function, module)


@dataclass(frozen=True)
class KillWhileSaving:
    """Die in the middle of writing a checkpoint of this name: half of its bytes are on disk."""

    name: str

    def __call__(self) -> None:
        import torch

        def around(_: int, call: functools.partial[None]) -> None:
            content, handle = call.args
            if not Path(handle.name).name.startswith(self.name):
                return call()
            whole = io.BytesIO()
            call.func(content, whole)
            handle.write(whole.getvalue()[: len(whole.getvalue()) // 2])
            handle.flush()
            return _die()

        wrap(torch, "save", around)


@dataclass(frozen=True)
class KillWhileWritingRows:
    """Die in the `batch`-th batch of rows of an evaluation, with `share` of its bytes written."""

    batch: int
    share: float

    def __call__(self) -> None:
        from petface.resumable import ResumableTable

        def around(number: int, call: functools.partial[None]) -> None:
            if number < self.batch:
                return call()
            handle = call.args[0]._handle
            before = handle.seek(0, os.SEEK_END)
            call()
            after = handle.seek(0, os.SEEK_END)
            handle.truncate(before + int((after - before) * self.share))
            return _die()

        wrap(ResumableTable, "write_lines", around)


def nan_loss(calls: Collection[int]) -> None:
    """Make the focal loss NaN in these calls, counted from 1."""
    from petface.training import losses

    def around(number: int, call: Callable[[], Any]) -> Any:
        return call() * (float("nan") if number in calls else 1)

    wrap(losses, "masked_focal_loss", around)


def kill_loader(folder: Path, times: int = 1) -> None:
    """Die, in a loading process, where it reads its first photos; `times` do, with marks there."""
    from torch.utils.data import get_worker_info

    from petface.data.loading import FileImages

    def around(_: int, call: Callable[[], Any]) -> Any:
        for number in range(times if get_worker_info() is not None else 0):
            with suppress(FileExistsError):
                (folder / f"loader{number}").mkdir()
                _die()
        return call()

    wrap(FileImages, "read", around)


@dataclass(frozen=True)
class Cramped:
    """Have a device that takes `most` photos at once, in training or when it answers."""

    most: int
    training: bool

    def __call__(self) -> None:
        import torch
        from torchvision.models.resnet import ResNet

        forward = ResNet.forward

        def cramped(network: Any, x: Any) -> Any:  # torch.fx reads its signature
            is_traced = not isinstance(x, torch.Tensor)
            if network.training == self.training and not is_traced and len(x) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            return forward(network, x)

        ResNet.forward = cramped


def limit(name: str, value: int) -> None:
    """Have a limit of the system, as `ulimit` sets it; RLIMIT_FSIZE is as a disk that fills."""
    import resource

    resource.setrlimit(getattr(resource, name), (value, value))
