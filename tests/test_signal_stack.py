"""A signal stack that a library leaves behind would end the process at the next signal."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sigaltstack of Linux")

_SCRIPT = """
import ctypes, mmap, os, signal, sys
from contextlib import nullcontext
from petface.signal_stack import _Stack, kept_signal_stack
signal.signal(signal.SIGCHLD, lambda *_: None)  # as the workers of a DataLoader do
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
with kept_signal_stack() if sys.argv[1] == "kept" else nullcontext():
    place = libc.mmap(None, 1 << 16, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    libc.sigaltstack(ctypes.byref(_Stack(place, 0, 1 << 16)), None)
libc.munmap(ctypes.c_void_p(place), ctypes.c_size_t(1 << 16))
os.kill(os.getpid(), signal.SIGCHLD)
print("alive")
"""


@pytest.mark.parametrize(("way", "code"), [("left", -11), ("kept", 0)])
def test_a_signal_after_the_stack_is_gone(way: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, way], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (code, "alive\n" if way == "kept" else "")
