"""Take a command line apart into flags, presets, switches and further words, and print its help.

Not argparse: it takes `-1e-3` for a flag, cannot mix lists with further words, and words its
errors differently from one Python to the next.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from types import ModuleType

from petface.errors import SettingsError
from petface.settings.constants import Constant, flag_of, nearest, script_name
from petface.settings.value_types import describe, is_list, to_toml

_WIDTH = 79  # of the help: a terminal has 80 columns


@dataclass
class CommandLine:
    """What a user typed, values still as text: `texts` is constant -> (flag, text)."""

    texts: dict[str, tuple[str, str]] = field(default_factory=dict)
    presets: list[str] = field(default_factory=list)
    switches: set[str] = field(default_factory=set)
    words: list[str] = field(default_factory=list)
    help: str = ""  # --help or --help-all, where it was asked for


def split_command_line(
    argv: Sequence[str],
    constants: Sequence[Constant],
    switches: Sequence[str],
    *,
    takes_words: bool,
) -> CommandLine:
    """Sort every word of `argv`; a repeated flag counts the last time, `--` ends the flags.

    Raises SettingsError for an unknown flag (with the nearest), a missing value or a word too many.
    """
    by_flag = {flag_of(c.name): c for c in constants}
    negative = {flag_of(f"no_{c.name}"): c.name for c in constants if c.hint is bool}
    switch = {flag_of(name): name for name in switches}
    known = [*by_flag, *switch, "--config", "--help", "--help-all"]
    assert len(set(known)) == len(known), "two constants or switches share one flag"
    line, rest = CommandLine(), deque(argv)
    while rest:
        token = rest.popleft()
        flag, equals, text = token.partition("=")
        if token in ("-h", "--help", "--help-all"):
            line.help = token
        elif token == "--":
            line.words += rest
            rest.clear()
        elif token == "-" or not token.startswith("-"):
            line.words.append(token)
        elif flag == "--config":
            line.presets.append(text if equals else _values(flag, rest)[0])
        elif flag in by_flag:
            constant = by_flag[flag]
            if not equals and constant.hint is bool:
                follows = rest and rest[0].lower() in ("true", "false")
                text = rest.popleft() if follows else "true"
            elif not equals:
                text = ",".join(_values(flag, rest, several=is_list(constant.hint)))
            line.texts[constant.name] = flag, text
        elif flag not in switch and flag not in negative:
            raise SettingsError(
                f"unknown flag {flag}{nearest(flag, [*known, *negative]) or '; see --help-all'}"
            )
        elif equals:
            raise SettingsError(f"{flag} takes no value, not {text!r}")
        elif flag in switch:
            line.switches.add(switch[flag])
        else:
            line.texts[negative[flag]] = flag, "false"
    if line.words and not takes_words:
        raise SettingsError(
            f"unexpected {line.words[0]!r}: a value follows its flag, with blanks in quotes"
        )
    return line


def print_help(
    module: ModuleType,
    constants: Sequence[Constant],
    switches: Mapping[str, str],
    positional: tuple[str, str] | None,
    wanted: str,
) -> None:
    """Print the script's docstring, then each flag with its type, default and comment.

    `--help` shows the constants that the script names in `HELP`, where it does; `--help-all` all.
    """
    most = getattr(module, "HELP", None) if wanted != "--help-all" else None
    shown = [constant for constant in constants if most is None or constant.name in most]
    assert most is None or len(shown) == len(most), "HELP names what is no constant"
    words = f" [{positional[0]} ...]" if positional else ""
    script = re.sub(r"^.*\btools/(\w+)\.py$", r"-m tools.\1", script_name(module))
    lines = [f"usage: {getattr(module, 'door', f'python {script}')} [--flag value ...]{words}"]
    lines += ["", *_fitted(inspect.cleandoc(module.__doc__))] if module.__doc__ else []
    if positional:
        what = f"{positional[1]}; a list before them ends with --"
        lines += ["", *_item(f"{positional[0]} ...", what)]
    for group, members in groupby(shown, key=lambda constant: constant.group):
        lines += ["", f"{group or 'Constants'}:"]
        for constant in members:
            no = f", {flag_of('no_' + constant.name)}" if constant.hint is bool else ""
            default = f"{describe(constant.hint)}; default: {to_toml(constant.default)}"
            lines += _item(f"{flag_of(constant.name)}{no}  {default}", constant.comment)
    others = {flag_of(name): text for name, text in switches.items()}
    others["--config PRESET.toml"] = "take values from a file; repeatable, later wins, flags win"
    others["-h, --help"] = "show this and exit"
    if len(shown) < len(constants):
        others["--help-all"] = f"show all {len(constants)} constants and exit"
    lines += ["", "Switches:"]
    for head, text in others.items():
        lines += _item(head, text)
    lines += ["", "A list is written --flag a b or --flag a,b. A preset has lines like LR = 0.01."]
    print("\n".join(lines))


def _fitted(text: str) -> list[str]:
    """Break paragraphs into lines of the width; the comment of a long command goes above it."""
    lines: list[str] = []
    for line in re.sub(r"(?<=\S)\n(?=\S)", " ", text).split("\n"):
        command, _, comment = line.partition("  #")
        if comment and len(line) > _WIDTH:
            line = f"{command.rstrip()}  #{comment}"
        if len(line) > _WIDTH and line.startswith(" "):
            lines += [f"    # {comment.strip()}"] if comment else []
            lines.append(" \\\n".join(_wrapped(command.rstrip(), " " * 8, _WIDTH - 2)))
        else:
            lines += _wrapped(line) or [""]
    return lines


def _item(head: str, text: str) -> list[str]:
    return [*_wrapped(f"  {head}", " " * 8), *_wrapped(" " * 6 + text, " " * 6)]


def _wrapped(text: str, indent: str = "", width: int = _WIDTH) -> list[str]:
    return textwrap.wrap(
        text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _values(flag: str, rest: deque[str], *, several: bool = False) -> list[str]:
    """Take the value of a flag, or all words up to the next flag."""
    taken: list[str] = []
    while rest and not rest[0].startswith("--") and rest[0] != "-h" and (several or not taken):
        taken.append(rest.popleft())
    if not taken:
        raise SettingsError(f'{flag} needs a value (an empty one is "")')
    return taken
