"""Keep a library from leaving a signal stack behind that is gone when a signal comes."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """`stack_t` of sigaltstack(2)."""

    _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Give the calling thread the alternate signal stack back that it had before the block.

    OpenVINO's CPU plugin sets one of its own while it compiles a model and frees it with the model;
    the next signal, such as the end of a decoding process, would end the whole process without a
    word. Does nothing where it is not needed, off Linux.
    """
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None), _Stack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)
