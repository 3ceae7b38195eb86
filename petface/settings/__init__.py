"""Typed constants at the top of a script < presets < flags: one frozen object.

`settings = read_settings(sys.modules[__name__])`, then `settings.LR`. What counts as a constant
stands in `constants`, which types it may have in `value_types`. Nothing is written back into the
script's module.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any

from petface.errors import SettingsError
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


@dataclass(frozen=True)
class Settings:
    """The constants of a script as this run uses them; two are equal when all their values are."""

    _values: dict[str, Any]
    _origins: dict[str, str] = field(compare=False, repr=False)
    _constants: tuple[Constant, ...] = field(compare=False, repr=False)
    _script: str = field(compare=False, repr=False)
    switches: frozenset[str] = field(compare=False, repr=False)
    positional: tuple[str, ...] = field(compare=False, repr=False)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # also asked while a copy is being made, before there are values
            raise AttributeError(name)
        if name not in self._values:
            raise AttributeError(
                f"{self._script} has no constant {name}{nearest(name, self._values)}"
            )
        return self._values[name]

    def as_dict(self) -> dict[str, Any]:
        """Copy the values, in the order of the script."""
        return dict(self._values)

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

    def as_toml(self) -> str:
        """Format every constant with its comment as TOML; as a preset it gives the same values.

        A None that the script's file has too stands as a commented line.
        """
        script = _one_line(self._script)
        lines = [f"# All constants of a run of {script}; also a preset for it (--config)."]
        for group, members in groupby(self._constants, key=lambda c: c.group):
            lines += ["", f"# --- {_one_line(group)} ---"] if group else []
            for c in members:
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
            values[name] = accept(text, hints[name], is_flag=True)
        except ValueError:
            raise SettingsError(f"{flag} must be {describe(hints[name])}, not {text!r}") from None
        origins[name] = flag
    return Settings(values, origins, constants, script, frozenset(line.switches), tuple(line.words))


def _read_preset(path: str) -> dict[str, tuple[str, Any]]:
    """Read a TOML file as key -> (`file:line`, value)."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        table = tomllib.loads(text)
    except FileNotFoundError:
        folder = Path(path).parent
        names = sorted(file.name for file in folder.glob("*.toml"))
        others = f"; {folder} has: {', '.join(names[:10]) or 'no .toml file'}"
        near = nearest(Path(path).name, names) or others
        raise SettingsError(f"--config {path}: there is no such preset{near}") from None
    except OSError as error:
        raise SettingsError(f"--config {path}: {error.strerror}") from None
    except ValueError as error:  # neither UTF-8 nor TOML; both say where
        raise SettingsError(f"{path}: not valid TOML: {error}") from None
    places = {key: f"{path}:{line}" for key, line in _lines_of_keys(text).items()}
    for key, value in table.items():
        if isinstance(value, dict):
            raise SettingsError(
                f"{places[key]}: [{key}] is a table; a preset has only NAME = value lines"
            )
    return {key: (places[key], value) for key, value in table.items()}


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
