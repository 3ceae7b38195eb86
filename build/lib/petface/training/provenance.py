"""What a run's figures depend on besides its settings and its data: code, versions, machine."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from petface import distributed
from petface.data.fingerprint import versions

_GIT_S = 10.0


def run_entry(model: nn.Module, device: object, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Describe what made a checkpoint: code, time, device, torch, parameters, epoch metrics."""
    commit, is_dirty = _code_version()
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return {
        "commit": commit,
        "dirty": is_dirty,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "device": str(device),
        "torch": str(torch.__version__),
        "parameters": sum(size for size, _ in sizes),
        "trainable": sum(size for size, is_trained in sizes if is_trained),
        "metrics": dict(figures),
    }


@cache
def _code_version() -> tuple[str, bool | None]:
    """Return git's commit of this code and whether files differ from it; "" outside of git."""
    root = Path(__file__).resolve().parents[2]

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=_GIT_S
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        if Path(git("rev-parse", "--show-toplevel") or "/") != root:  # another project's
            return "", None
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "-uno"))
    except (OSError, subprocess.TimeoutExpired):
        return "", None


def environment() -> dict[str, Any]:
    """Collect what a run's figures depend on: versions, processor, accelerator, command."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {name: text for name, text in versions().items() if name != "python"},
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
