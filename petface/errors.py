"""Errors that are the user's to mend: one line that names the file, the line, the value and the
way out.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import time
from collections.abc import Callable
from importlib import metadata
from types import ModuleType
from typing import Final

TORCH_FLOOR: Final = (2, 11)  # what requirements.txt names as the lowest
_FIRST_WORD_S = 2.0
_WAY_OUT = "install the tested pair with: python -m pip install -r requirements.txt"


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


def run_script(main: Callable[[], object]) -> None:
    """Call `main` and end the process: a `UserError` becomes its message on stderr and its exit
    code.

    `main` may return an exit code; None counts as 0. Ctrl-C ends in code 130. Any other exception
    keeps its traceback, because it is a fault of the program.
    """
    try:
        code = main()
    except UserError as error:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(_FIRST_WORD_S)  # torchrun ends this process if the first says the same
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:  # Ctrl-C: nothing is lost, there is nothing to trace
        print("\nstopped; give the same command again to go on", file=sys.stderr)
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


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
