"""How a script ends: what the user can mend is one line; its streams cannot break its work."""

from __future__ import annotations

import atexit
import errno
import gc
import importlib
import os
import re
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from io import BufferedWriter, FileIO, TextIOWrapper
from pathlib import Path
from types import FrameType, ModuleType, TracebackType
from typing import Any, Final, NoReturn

TORCH_FLOOR: Final = (2, 11)  # what requirements.txt names as the lowest
_exit_code: int | None = None  # of this process, once it is known
_outlives_reader = False
ENDS_WITH_INPUT: Final = "PETFACE_ENDS_WITH_INPUT"  # set by who starts a trainer with a pipe
_WAY_OUT = "install the tested pair with: python -m pip install -r requirements.txt"
_OWN = ("petface", "tools", "tests", "train_resnet_minority_aug_dynamic", "stage2_resnet_multi",
        "train_identity", "inference_engine")  # fmt: skip
_NO_SPACE = "free some space there, then give the same command again"
_NOT_YOURS = "choose a folder that you may write, or change its rights"
_WAYS_OUT = {
    errno.ENOSPC: _NO_SPACE,
    errno.EDQUOT: _NO_SPACE,
    errno.EFBIG: "a limit of this shell or disk is in the way (ulimit -f)",
    errno.EACCES: _NOT_YOURS,
    errno.EPERM: _NOT_YOURS,
    errno.EROFS: _NOT_YOURS,
    errno.EMFILE: "raise the limit (ulimit -n)",
    errno.ENAMETOOLONG: "take a shorter name",
    errno.ENOENT: "it is not there, or no longer: check the path",
    errno.ENOTDIR: "a file stands where a folder should be",
    errno.EISDIR: "a folder stands where a file should be",
    errno.EEXIST: "something of this name is in the way",
    errno.ELOOP: "links lead round in a circle",
}
NO_MEMORY: Final = re.compile(  # how allocators, cuBLAS and cuDNN say it, as RuntimeErrors
    "(?i)out of memory|allocate memory|alloc(ation)?_failed|bad_alloc|memoryallocation|"
    "not enough memory|map segment|CUBLAS_STATUS_NOT_INITIALIZED|"
    "CUDNN_STATUS_(NOT_SUPPORTED|INTERNAL_ERROR)|(valid cuDNN|find an) (algorithm|engine)"
)
_OUTSIDE = re.compile(
    "new thread|terminated abruptly|CUDA error(?!.*assert)|Exceeds the limit|embedded null|Symlink"
)


class UserError(ValueError):
    """Bad input, a bad setting or a missing file: shown as one message, without a traceback.

    `exit_code` is what the process returns: 1 for data and files, 2 for settings and flags.
    """

    exit_code = 1


class SettingsError(UserError):
    """An unknown name, a wrong type or a value out of range in a constant, a preset or a flag."""

    exit_code = 2


class MachineError(UserError):
    """A file that disk, network or system did not give: nothing is known about its content.

    Work that meets it stops before anything is noted about the file, and resumes later.
    """


def run_script(main: Callable[[], object]) -> NoReturn:
    """Call `main` and end the process; what the user or the machine did wrong is one line.

    `main` may return an exit code; None counts as 0. Ctrl-C ends in code 130, SIGTERM in 143 and a
    hang-up in 129; a reader that has gone ends it in silence, in 141. A fault of the program keeps
    its traceback. PETFACE_TRACEBACK=1 shows that of all others too.
    """
    global _exit_code
    _guard_streams()
    if not gc.isenabled():
        gc.freeze()  # what was imported stays: no collection goes through it
        gc.enable()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # not under nohup
            signal.signal(number, _interrupt)
    if os.environ.pop(ENDS_WITH_INPUT, ""):
        threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        returned = main()
    except (Exception, KeyboardInterrupt) as error:
        code = exit_code_of(error)
        if code is None:
            raise
    except SystemExit as error:
        _exit_code = error.code if isinstance(error.code, int) else None  # or words to print
        raise
    else:
        code = returned if isinstance(returned, int) else 0
        code = _unheard() or code
    _exit_code = code
    sys.exit(code)


def watch_imports() -> None:
    """Let what a script or tool of this repository imports fail in one line as well.

    They import this module first, before numpy and torch, whose million objects are never garbage:
    the collector would go through them for a second, and the interpreter at its end for another.
    """
    script, package = getattr(sys.modules["__main__"], "__file__", None), Path(__file__).parent
    places = package.parent, package.parent / "tools", package / "tools"
    if "petface_command" in sys.modules or script and Path(script).parent in places:
        sys.excepthook = _show
        os.umask(os.umask(0) & 0o077)  # libraries read again what they write, from their import on
        gc.disable()  # until `run_script`
        atexit.register(_leave)  # the first that comes is the last that is called


def _leave() -> None:
    """End the process as `run_script` wants it, without taking every module apart."""
    gc.unfreeze()
    if _exit_code is not None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, OSError, ValueError):  # closed, or none
                stream.flush()
        os._exit(_exit_code)


def _end_with_input() -> None:
    """Stop as after SIGTERM when standard input ends: whoever started this process is gone."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if exit_code_of(error) is None:
        sys.__excepthook__(kind, error, trace)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # once more ends it at once
    raise KeyboardInterrupt(128 + number)


def exit_code_of(error: BaseException) -> int | None:
    """Print one line about what ends a script and return its exit code; None for other faults."""
    if isinstance(error, OSError) and (code := _unheard()):
        return code
    is_first = os.environ.get("RANK", "0") == "0"
    if isinstance(error, KeyboardInterrupt):  # nothing is lost, there is nothing to trace
        if is_first:
            print("\nstopped; the same command resumes", file=sys.stderr)
        return error.args[0] if error.args else 130
    is_foreseen = isinstance(error, UserError)
    message = str(error) if is_foreseen else failure_of_machine(error)
    if message is None:
        return None
    if not is_first:
        time.sleep(2.0)  # torchrun ends this process if the first says the same
    if os.environ.get("PETFACE_TRACEBACK"):
        traceback.print_exception(error)
    elif not is_foreseen:
        message += _kept_traceback(error)
    print(f"error: {message}", file=sys.stderr)
    return error.exit_code if isinstance(error, UserError) else 1


def _unheard() -> int:
    """Return the exit code of a script whose standard output broke; 0 where it did not."""
    raw = getattr(getattr(sys.__stdout__, "buffer", None), "raw", None)
    failure = raw.failure if isinstance(raw, _Stream) else None
    if failure is None or _outlives_reader:
        return 0
    if isinstance(failure, BrokenPipeError):
        return 128 + signal.SIGPIPE
    print(f"error: standard output cannot be written: {failure.strerror}", file=sys.stderr)
    return 1


class _Stream(FileIO):
    """The bytes of a stream. What cannot be written raises once, or not at all."""

    failure: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            while self.failure is None:
                if (written := super().write(content)) is not None:
                    return written
                select.select((), (self,), ())  # a pipe that somebody made non-blocking
        except OSError as error:
            self.failure = error
            if not _outlives_reader and self.fileno() == 1:
                raise
        return len(content)


def _guard_streams() -> None:
    """Make the streams of this process safe.

    Names print escaped where the encoding lacks them, whole lines are written at once, and a closed
    descriptor is opened, so that no file of the script takes its number and what is printed to it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        old = getattr(sys, name)
        if isinstance(old, TextIOWrapper) and old is getattr(sys, f"__{name}__"):
            raw = BufferedWriter(_Stream(descriptor, "w", closefd=False))
            new = TextIOWrapper(raw, old.encoding, "backslashreplace", line_buffering=True)
            setattr(sys, name, new)
            setattr(sys, f"__{name}__", new)


def outlive_reader() -> None:
    """Go on in silence from here on where standard output breaks: the work is worth more."""
    global _outlives_reader
    _outlives_reader = True


def failure_of_machine(error: BaseException) -> str | None:
    """Describe what a disk, the memory, an install or odd input did; None for a programmer's fault.

    An operating system's error has its path and reason.
    """
    lines = str(error).strip().splitlines() or [""]
    reason = lines[-1 if "Traceback" in str(error) else 0][:300]  # torch sends those of workers
    if isinstance(error, OSError):
        names = [os.fsdecode(n) for n in (error.filename, error.filename2) if n is not None]
        named = " -> ".join(short(n) for n in names if not isinstance(n, int))
        is_here = Path(".").exists() and os.stat(".").st_nlink
        if not named and error.errno == errno.ENOENT and not is_here:
            return "the working folder is gone; change into another one"
        what = error.strerror or reason or type(error).__name__
        way_out = _WAYS_OUT.get(error.errno or 0, "mend that, then give the same command again")
        return f"{named}: {what}; {way_out}" if named else f"{what}; {way_out}"
    is_said = isinstance(error, RuntimeError | ValueError | ImportError)  # has no class of its own
    if isinstance(error, MemoryError) or is_said and NO_MEMORY.search(str(error)):
        text = f" ({reason})" if reason else ""
        return f"not enough memory{text}; lower BATCH_SIZE or NUM_WORKERS, or end other programs"
    if isinstance(error, ImportError):
        own = (error.name or "petface").partition(".")[0] in _OWN
        return None if own else f"a package is missing or does not load ({reason}); {_WAY_OUT}"
    if isinstance(error, RecursionError):
        return f"something that was read is nested too deeply ({reason})"
    if is_said and _OUTSIDE.search(str(error)):
        return f"{reason}; mend that, then give the same command again"
    return None


def _kept_traceback(error: BaseException) -> str:
    """Write the traceback into the temporary folder; return the end of a message that names it."""
    try:
        descriptor, path = tempfile.mkstemp("_traceback.txt", "petface_")
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as handle:  # noqa: PTH123
            handle.writelines(traceback.format_exception(error))
    except (OSError, MemoryError):
        return ""
    return f" (traceback: {path})"


def short(text: str) -> str:
    """Return text for a message: one line, and its middle left out where it is long."""
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= 400 else f"{text[:200]}...{text[-200:]}"


def install_line(extra: str) -> str:
    """Return the command that installs an extra of pyproject.toml."""
    return f'python -m pip install ".[{extra}]"'


def optional_room(name: str) -> ModuleType | None:
    """Import the leaf `petface.<name>` where it is needed; None where its folder was deleted.

    What stands above a leaf works without it, so it loads it late and by this name alone.
    """
    full = f"petface.{name}"
    try:
        return importlib.import_module(full)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{full}.".startswith(f"{error.name}."):
            raise  # something that the leaf itself needs
        return None


def check_torch() -> None:
    """End the process in one line where torch is below the floor."""
    found = _version("torch")  # where there is none, its import says so
    numbers = re.match(r"(\d+)\.(\d+)", found)
    if numbers and tuple(map(int, numbers.groups())) < TORCH_FLOOR:
        wanted = ".".join(map(str, TORCH_FLOOR))
        sys.exit(f"error: torch {found} is too old, {wanted} is the lowest; {_WAY_OUT}")


def does_not_load(package: str, error: Exception) -> SystemExit:
    """Return what ends the process in one line, with the versions of a package and of torch."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    versions = " with ".join(f"{name} {_version(name)}" for name in (package, "torch"))
    return SystemExit(f"error: {versions} does not load ({reason}); {_WAY_OUT}")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(not installed)"
