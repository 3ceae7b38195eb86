"""Typed constants at the top of a script < presets < flags: one frozen object.

`settings = read_settings(sys.modules[__name__])`, then `settings.LR`. What counts as a constant
stands in `constants`, which types it may have in `value_types`. Nothing is written back into the
script's module.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from petface.errors import SettingsError
from petface.files import atomic_write
from petface.settings.command_line import print_help, split_command_line
from petface.settings.constants import Constant, checked, gather, nearest, script_name
from petface.settings.value_types import (
    Fraction,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Range,
    Seed,
    accept,
    describe,
    parse,
    to_toml,
)

__all__ = [
    "Fraction",
    "NonNegative",
    "NonNegativeFloat",
    "Positive",
    "PositiveFloat",
    "Range",
    "Seed",
    "Settings",
    "read_settings",
]


@dataclass(frozen=True, repr=False)
class Settings:
    """The constants of a script as this run uses them; two are equal when all their values are."""

    _values: dict[str, Any]
    _origins: dict[str, str] = field(compare=False)
    _constants: tuple[Constant, ...] = field(compare=False)
    _script: str = field(compare=False)
    switches: frozenset[str] = field(compare=False)
    positional: tuple[str, ...] = field(compare=False)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # also asked while a copy is being made, before there are values
            raise AttributeError(name)
        if name not in self._values:
            raise AttributeError(
                f"{self._script} has no constant {name}{nearest(name, self._values)}"
            )
        return self._values[name]

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in self._values.items())})"

    def as_dict(self) -> dict[str, Any]:
        """Copy the values, in the order of the script."""
        return dict(self._values)

    def origin(self, name: str) -> str:
        """Return where a value was set last: `file`, `configs/demo.toml:3` or `--lr`."""
        getattr(self, name)  # an unknown name fails with the nearest one
        return self._origins.get(name, "file")

    def provenance(self) -> str:
        """List what differs from the script's file and where it came from, in aligned lines."""
        changed = [c for c in self._constants if self._values[c.name] != c.default]
        if not changed:
            return f"all constants as in {self._script}"
        shown = {c.name: to_toml(self._values[c.name]) for c in changed}
        name_width, value_width = max(map(len, shown)), max(map(len, shown.values()))
        return "\n".join(
            f"{c.name:<{name_width}} = {shown[c.name]:<{value_width}}  from {self._origins[c.name]}"
            f" ({self._script}: {to_toml(c.default)})"
            for c in changed
        )

    def write(self, path: str | Path) -> None:
        """Write `as_toml` into a file, whole or not at all."""
        with atomic_write(path, "w") as handle:
            handle.write(self.as_toml())

    def as_toml(self) -> str:
        """Format every constant with its comment as TOML; as a preset it gives the same values.

        A None that the script's file has too stands as a commented line.
        """
        script = _one_line(self._script)
        lines = [f"# All constants of a run of {script}; also a preset for it (--config)."]
        group = ""
        for c in self._constants:
            if c.group != group:
                group = c.group
                lines += ["", f"# --- {_one_line(group)} ---"]
            value = self._values[c.name]
            mark = "# " if value is None and c.default is None else ""
            comment = f"  # {_one_line(c.comment)}" if c.comment else ""
            lines.append(f"{mark}{c.name} = {to_toml(value)}{comment}")
        return "\n".join(lines) + "\n"


def read_settings(
    module: ModuleType,
    argv: Sequence[str] | None = None,
    *,
    switches: Mapping[str, str] | None = None,
    positional: tuple[str, str] | None = None,
) -> Settings:
    """Lay presets (`--config`, later wins) and then flags over the constants of `module`.

    `switches` maps action flags (`force`) to their help; `positional` is (name, help) of further
    words, refused without it. `argv` is by default the command line; `--help` prints and exits 0.
    Raises SettingsError for an unknown name, a wrong type or a value out of range, whether in the
    script, a preset or a flag.
    """
    script, constants = script_name(module), gather(module)
    argv, switches = sys.argv[1:] if argv is None else argv, switches or {}
    line = split_command_line(argv, constants, list(switches), takes_words=positional is not None)
    if line.wants_help:
        print_help(module, constants, switches, positional)
        sys.exit(0)
    hints = {c.name: c.hint for c in constants}
    values = {c.name: c.default for c in constants}
    origins: dict[str, str] = {}
    for preset in line.presets:
        for name, (place, value) in _read_preset(preset).items():
            if name not in hints:
                way_out = nearest(name, hints) or "; --help lists them all"
                raise SettingsError(f"{place}: {script} has no constant {name}{way_out}")
            values[name] = checked(value, hints[name], f"{place}: {name}")
            origins[name] = place
    for name, (flag, text) in line.texts.items():
        try:
            values[name] = accept(parse(text, hints[name]), hints[name])
        except ValueError:
            raise SettingsError(f"{flag} must be {describe(hints[name])}, not {text!r}") from None
        origins[name] = flag
    return Settings(values, origins, constants, script, frozenset(line.switches), tuple(line.words))


def _read_preset(path: str) -> dict[str, tuple[str, Any]]:
    """Read a TOML file as key -> (`file:line`, value)."""
    try:
        data = Path(path).read_bytes()
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
        table = tomllib.loads(text)
    except FileNotFoundError:
        raise SettingsError(
            f"--config {path}: there is no such preset{_presets_near(path)}"
        ) from None
    except OSError as error:
        raise SettingsError(f"--config {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SettingsError(f"{path}:{line}: not UTF-8; save the preset as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"at line (\d+)", str(error))
        line = int(found[1]) if found else max(1, len(text.splitlines()))
        raise SettingsError(f"{path}:{line}: not valid TOML: {error}") from None
    lines = _lines_of_keys(text)
    for key, value in table.items():
        if isinstance(value, dict):
            raise SettingsError(
                f"{path}:{lines[key]}: [{key}] is a table; a preset has only NAME = value lines"
            )
    return {key: (f"{path}:{lines[key]}", value) for key, value in table.items()}


def _lines_of_keys(text: str) -> dict[str, int]:
    """Return where each top-level key begins: take lines until they are a whole statement."""
    found: dict[str, int] = {}
    lines = text.split("\n")
    start = 0
    for end in range(1, len(lines) + 1):
        try:
            keys = tomllib.loads("\n".join(lines[start:end]))
        except tomllib.TOMLDecodeError:
            continue
        for key in keys:
            found.setdefault(key, start + 1)
        start = end
    return found


def _one_line(text: str) -> str:
    """Replace what a TOML comment may not hold: control characters, halves of surrogate pairs."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _presets_near(path: str) -> str:
    """Return the preset files in the same folder, the likely ones first if there are any."""
    folder = Path(path).parent
    if not folder.is_dir():
        return f"; there is no folder {folder} either"
    names = sorted(file.name for file in folder.glob("*.toml"))
    near = nearest(Path(path).name, names)
    return near or (
        f"; {folder} has: {', '.join(names[:10])}" if names else f"; {folder} has no .toml file"
    )
