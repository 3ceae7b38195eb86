"""Name the machine in the file names of results, as results/*_cpu-2core-amd-epyc-zen5.csv."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import torch

from petface.devices import num_cores


def hardware_name(device: torch.device, cpuinfo: str | None = None) -> str:
    """Return "gpu-<name>" or "cpu-<cores>core-<name>[-<microarchitecture>]" in [a-z0-9-].

    `cpuinfo` is the text of /proc/cpuinfo, read from there if it is None.
    """
    if device.type == "cuda":
        return f"gpu-{_slug(torch.cuda.get_device_name(device))}"
    if cpuinfo is None:
        path = Path("/proc/cpuinfo")
        cpuinfo = path.read_text(encoding="utf-8") if path.exists() else ""
    facts = dict(re.findall(r"^(\w[\w ]*?)\s*: (.*)$", cpuinfo, re.MULTILINE)[::-1])
    name = _slug(facts.get("model name", platform.machine() or "unknown"))
    generation = _zen(int(facts.get("cpu family", 0)), int(facts.get("model", 0)))
    is_amd = facts.get("vendor_id") == "AuthenticAMD"
    return "-".join(filter(None, [f"cpu-{num_cores()}core", name, generation if is_amd else ""]))


def _zen(family: int, model: int) -> str:
    """Return AMD's microarchitecture as Linux finds it (arch/x86/kernel/cpu/amd.c).

    A virtual machine often hides the product's number, not these two.
    """
    if family == 0x17:
        return "zen1" if model < 0x30 else "zen2"
    if family == 0x19:
        is_zen4 = 0x10 <= model <= 0x1F or 0x60 <= model <= 0xAF
        return "zen4" if is_zen4 else "zen3"
    return {0x1A: "zen5"}.get(family, "")


def _slug(name: str) -> str:
    name = re.sub(r"\(r\)|\(tm\)|\bcpu\b|\bprocessor\b|@.*|\d+-core", " ", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")
