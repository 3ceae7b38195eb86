"""Read the settings of a script from its module and its source: name, type, value, comment, group.

A setting is an annotated upper-case constant at module level, `LR: PositiveFloat = 1e-3  # step
size`; a comment line `# --- Data ---` opens a group. Private constants and `Final` ones are no
settings. One that lost its annotation is a setting if the script reads it as an attribute, as in
`s.LR`; its value then tells the type.
"""

from __future__ import annotations

import ast
import difflib
import io
import re
import tokenize
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Union, get_type_hints

from petface.errors import SettingsError, short
from petface.settings.value_types import accept, describe

_HEADING = re.compile(r"#\s*([-=─])\1+(?:\s+(.*?))?[-=─\s]*")  # without a title it is only a rule
_FINAL = re.compile(r"['\"]?(typing\.)?Final\b")
_LINTER_NOTE = re.compile(r"\s*#\s*(noqa|type:|fmt:|ruff:).*")


@dataclass(frozen=True)
class Constant:
    """One setting of a script; `default` is the value in the script's file."""

    name: str
    hint: Any
    default: Any
    comment: str
    group: str


def flag_of(name: str) -> str:
    """Return the flag of a constant or switch: `BATCH_SIZE` is `--batch-size`."""
    return "--" + name.lower().replace("_", "-")


def script_name(module: ModuleType) -> str:
    """Return the script's file, relative to the working folder where it lies below it."""
    assert module.__file__, "settings are read from the source file of a script"
    path = Path(module.__file__)
    try:
        here = Path.cwd()
    except FileNotFoundError:  # somebody removed it
        return str(path)
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def gather(module: ModuleType) -> tuple[Constant, ...]:
    """List the settings of `module` in order; a bad value or type names file and line."""
    script = script_name(module)
    with tokenize.open(str(module.__file__)) as handle:
        source = handle.read()
    comments = _Comments(source)
    constants: dict[str, Constant] = {}
    tree = ast.parse(source)
    read = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in tree.body:
        match node:
            case ast.AnnAssign(target=ast.Name(name), annotation=annotation, value=ast.expr()):
                text = ast.unparse(annotation)
            case ast.Assign(targets=[ast.Name(name)]) if name in read:
                text = ""
            case _:
                continue
        if name.startswith("_") or not name.isupper() or _FINAL.match(text):
            continue
        place = f"{script}:{node.lineno}"
        hint = _hint(module, name, text, place) if text else _hint_of(module, name, place)
        value = checked(getattr(module, name), hint, f"{place}: {name}")
        constants[name] = Constant(name, hint, value, *comments.of(node))
    return tuple(constants.values())


def checked(value: Any, hint: Any, label: str, *, is_flag: bool = False) -> Any:
    """Return `value` as `hint` wants it, or raise a SettingsError that begins with `label`."""
    try:
        return accept(value, hint, is_flag=is_flag)
    except ValueError:
        shown = f"this {type(value).__name__}"
        with suppress(ValueError, RecursionError):  # more digits than Python writes, deep lists
            shown = short(repr(value))
        raise SettingsError(f"{label} must be {describe(hint)}, not {shown}") from None


def nearest(name: str, names: Iterable[str]) -> str:
    """Return which of `names` look like `name`, as the end of a message; empty if none does."""
    plain = {known.strip("-").replace("-", "_").lower(): known for known in names}
    close = difflib.get_close_matches(name.strip("-").replace("-", "_").lower(), plain, n=3)
    return f"; nearest: {', '.join(plain[key] for key in close)}" if close else ""


def _hint(module: ModuleType, name: str, annotation: str, place: str) -> Any:
    """Resolve one annotation in the names of `module`, whether or not Python kept it as text."""
    alone = ModuleType(name)  # so that another annotation of the script cannot get in the way
    alone.__annotations__ = {name: annotation}
    try:
        hint = get_type_hints(alone, vars(module), include_extras=True)[name]
        describe(hint)
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        raise SettingsError(f"{place}: the type of {name} cannot be used: {error}") from None
    return hint


def _hint_of(module: ModuleType, name: str, place: str) -> Any:
    """Return the type of a constant without annotation; a whole number may become any number."""
    value = getattr(module, name)
    items = value if isinstance(value, (list, tuple)) else [value]
    kinds = {
        kind for item in items for kind in ((int, float) if type(item) is int else [type(item)])
    }
    if not kinds or not kinds <= {bool, int, float, str}:
        raise SettingsError(f"{place}: {name} needs its type; write {name}: <type> = ...")
    one: Any = Union[tuple(sorted(kinds, key=[bool, int, float, str].index))]  # noqa: UP007
    return one if items is not value else tuple[one, ...]


class _Comments:
    """The comments of a source by line number: beside code, alone, titles of groups."""

    def __init__(self, source: str) -> None:
        self.beside: dict[int, str] = {}
        self.alone: dict[int, str] = {}
        self.titles: dict[int, str] = {}
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type != tokenize.COMMENT:
                continue
            row, text = token.start[0], _LINTER_NOTE.sub("", token.string)
            if token.line.lstrip() != token.line[token.start[1] :]:
                self.beside[row] = text.lstrip("#").strip()
            elif heading := _HEADING.fullmatch(text):
                self.titles[row] = heading[2] or ""
            else:
                self.alone[row] = text.lstrip("#").strip()

    def of(self, node: ast.AnnAssign | ast.Assign) -> tuple[str, str]:
        """Return the comment beside a constant, else the lines directly above it; and its group."""
        first, last = node.lineno, node.end_lineno or node.lineno
        comment = self.beside.get(first) or self.beside.get(last)
        if not comment:
            while first - 1 in self.alone:
                first -= 1
            comment = " ".join(self.alone[row] for row in range(first, node.lineno)).strip()
        above = [title for row, title in self.titles.items() if title and row < node.lineno]
        return comment, above[-1] if above else ""
