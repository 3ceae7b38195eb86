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
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from stat import S_ISREG
from types import ModuleType
from typing import Any

from petface.errors import SettingsError, short
from petface.settings.command_line import print_help, split_command_line
from petface.settings.constants import Constant, checked, gather, nearest, script_name
from petface.settings.value_types import Fraction as Fraction  # for the scripts, as the next six
from petface.settings.value_types import NonNegative as NonNegative
from petface.settings.value_types import NonNegativeFloat as NonNegativeFloat
from petface.settings.value_types import Positive as Positive
from petface.settings.value_types import PositiveFloat as PositiveFloat
from petface.settings.value_types import Range as Range
from petface.settings.value_types import Seed as Seed
from petface.settings.value_types import to_toml

MAX_PRESET_BYTES = 1_000_000  # a run's own settings.toml takes 6,000
_ROOTS = Path(__file__).parents[2], Path(sys.prefix, "share", "petface")  # of configs/
_MOST_LINES = 100  # of one value: the lines of keys behind a longer one are not told
_DEEP_KEY = re.compile(r"(?:\.[^.,=\n]{0,400}+){60}")


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

    def own_folder(self, name: str, of: str) -> str | None:
        """Return a folder; None where only its default is there, which is not the set `of`'s."""
        is_default = of not in self._origins and Path(self._values[name]).is_dir()
        return self._values[name] or None if name in self._origins or is_default else None

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
            f" (default: {to_toml(c.default)})"
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
    presets_of: ModuleType | None = None,
) -> Settings:
    """Apply presets (`--config`, later wins) and then flags to the constants of `module`.

    `switches` maps action flags (`force`) to their help; `positional` is (name, help) of further
    words, refused without it. In a preset, constants that only the script `presets_of` has are
    passed over. `argv` is by default the command line; `--help` prints and exits 0.
    Raises SettingsError for an unknown name, a wrong type or a value out of range, whether in the
    script, a preset or a flag.
    """
    script, constants = script_name(module), gather(module)
    argv, switches = sys.argv[1:] if argv is None else argv, switches or {}
    line = split_command_line(argv, constants, list(switches), takes_words=positional is not None)
    if line.help:
        print_help(module, constants, switches, positional, line.help)
        sys.exit(0)
    hints = {c.name: c.hint for c in constants}
    values = {c.name: c.default for c in constants}
    passed_over = {c.name for c in gather(presets_of)} - hints.keys() if presets_of else set()
    origins: dict[str, str] = {}
    for preset in line.presets:
        for name, (place, value) in _read_preset(preset).items():
            if name in passed_over:
                continue
            if name not in hints:
                way_out = nearest(name, hints) or "; --help-all lists them"
                raise SettingsError(f"{place}: {script} has no constant {short(name)}{way_out}")
            values[name] = checked(value, hints[name], f"{place}: {name}")
            origins[name] = place
    for name, (flag, text) in line.texts.items():
        values[name] = checked(text, hints[name], flag, is_flag=True)
        origins[name] = flag
    return Settings(values, origins, constants, script, frozenset(line.switches), tuple(line.words))


def _read_preset(path: str) -> dict[str, tuple[str, Any]]:
    """Read a TOML file as key -> (`file:line`, value); presets of ours are found from anywhere."""
    text, name = "", short(path)
    ours = [root / path for root in _ROOTS if not Path(path).exists() and (root / path).is_file()]
    path = str([*ours, path][0])
    try:
        found = Path(path).stat()
        if is_preset := found.st_size <= MAX_PRESET_BYTES and S_ISREG(found.st_mode):
            text = Path(path).read_text(encoding="utf-8-sig")
        if _DEEP_KEY.search(text):  # of 100,000 parts it takes all memory
            raise RecursionError
        table = tomllib.loads(text)
    except FileNotFoundError:
        folder = Path(path).parent
        names = sorted(file.name for file in folder.glob("*.toml"))
        others = f"; {folder} has: {', '.join(names[:10]) or 'no .toml file'}"
        near = nearest(Path(path).name, names) or others
        raise SettingsError(f"--config {name}: there is no such preset{near}") from None
    except OSError as error:
        raise SettingsError(f"--config {name}: {error.strerror}") from None
    except RecursionError:
        raise SettingsError(f"{name}: not valid TOML for a preset: nested too deeply") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{name}: not UTF-8: {error}") from None
    except ValueError as error:  # a number of too many digits has no place
        place = re.search(r"at (?:line (\d+)|end)", str(error))
        where = f"{name}:{place[1] or text.count(chr(10)) + 1}" if place else name
        raise SettingsError(f"{where}: not valid TOML: {str(error).split(';')[0][:300]}") from None
    if not is_preset:
        what = f"no file of at most {MAX_PRESET_BYTES:,} bytes, as a preset is"
        raise SettingsError(f"--config {name}: {what}; write its lines into one")
    lines = _lines_of_keys(text)
    places = {key: f"{name}:{lines[key]}" if key in lines else path for key in table}
    for key, value in table.items():
        if isinstance(value, dict):
            raise SettingsError(
                f"{places[key]}: [{short(key)}] is a table; a preset has only NAME = value lines"
            )
    return {key: (places[key], value) for key, value in table.items()}


def _lines_of_keys(text: str) -> dict[str, int]:
    """Return where each top-level key begins: a value ends where its lines are whole TOML."""
    found: dict[str, int] = {}
    lines: list[str] = []  # of one value
    for number, line in enumerate(text.split("\n"), start=1):
        lines.append(line)
        if len(lines) > _MOST_LINES:
            break
        with suppress(tomllib.TOMLDecodeError):
            for key in tomllib.loads("\n".join(lines)):
                found.setdefault(key, number + 1 - len(lines))
            lines = []
    return found


def _one_line(text: str) -> str:
    """Replace what a TOML comment may not hold: control characters, halves of surrogate pairs."""
    return "".join(character if character.isprintable() else "?" for character in text)
