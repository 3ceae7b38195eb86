"""Tell in one line what is wrong with the packages below: they are imported before a script can
catch anything.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from types import TracebackType
from typing import Final

TORCH_FLOOR: Final = (2, 11)  # what requirements.txt names as the lowest


class InstallError(ImportError):
    """A package that is too old or does not load; ends a script as a `UserError` does."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        sys.excepthook = _in_one_line


def check_torch() -> None:
    """Raise `InstallError` for a torch below the floor; where there is none, its import says so."""
    try:
        found = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return
    numbers = re.match(r"(\d+)\.(\d+)", found)
    if numbers and tuple(map(int, numbers.groups())) < TORCH_FLOOR:
        wanted = ".".join(map(str, TORCH_FLOOR))
        raise InstallError(f"torch {found} is too old, {wanted} is the lowest; {_WAY_OUT}")


def does_not_load(package: str, error: Exception) -> InstallError:
    """Name the versions of a package that does not load and of torch, which it was built for."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    versions = " with ".join(f"{name} {_version(name)}" for name in (package, "torch"))
    return InstallError(f"{versions} does not load ({reason}); {_WAY_OUT}")


_WAY_OUT = "install the tested pair with: python -m pip install -r requirements.txt"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _in_one_line(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if isinstance(error, InstallError):
        print(f"error: {error}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
