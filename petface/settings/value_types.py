"""The types a setting may have: what they accept, how they read text and how they are written.

bool, int, float, str, Literal, tuple[...], unions of these with each other or with None, and
`Annotated` with a `Range`. Where None is allowed, the text `none` means None, in presets and flags
alike: TOML has no null.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

_LEAVES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


@dataclass(frozen=True)
class Range:
    """Bounds of a number, as in `Annotated[float, Range(0, 1)]`; an open end excludes it."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        low = f"{'>' if self.open_low else '>='} {self.low}" if self.low > -math.inf else ""
        high = f"{'<' if self.open_high else '<='} {self.high}" if self.high < math.inf else ""
        return " and ".join(filter(None, (low, high)))


Positive = Annotated[int, Range(1)]
NonNegative = Annotated[int, Range(0)]
PositiveFloat = Annotated[float, Range(0, open_low=True)]
NonNegativeFloat = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
Seed = Annotated[int, Range(0, 2**32 - 1)]  # what random, numpy and torch all take


def describe(hint: Any) -> str:
    """Describe what `hint` accepts; raises TypeError for a type that settings do not know."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = " and ".join(str(bound) for bound in args[1:] if isinstance(bound, Range))
        return f"{describe(args[0])} {bounds}".strip()
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (Union, UnionType):
        return " or ".join(map(describe, args))
    if origin is tuple and args[-1] is ...:
        return f"a list, each {describe(args[0])}"
    if origin is tuple:
        return f"a list of {len(args)}: {', '.join(map(describe, args))}"
    if hint is NoneType:
        return "none"
    if hint in _LEAVES:
        return _LEAVES[hint]
    raise TypeError(
        f"{hint!r} is no type for a setting: bool, int, float, str, Literal, tuple or a union"
    )


def accept(value: Any, hint: Any) -> Any:
    """Return `value` as `hint` wants it (int to float, list to tuple), or raise ValueError."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        value = accept(value, args[0])
        return _only_if(
            all(value in bound for bound in args[1:] if isinstance(bound, Range)), value
        )
    if origin is Literal:
        return _only_if(
            any(value == choice and type(value) is type(choice) for choice in args), value
        )
    if origin in (Union, UnionType):
        return _first(
            lambda option: accept(value, option), sorted(args, key=lambda o: o is not NoneType)
        )
    if origin is tuple:
        _only_if(isinstance(value, (list, tuple)), value)
        items = args[:1] * len(value) if args[-1] is ... else args
        return tuple(accept(item, hint) for item, hint in zip(value, items, strict=True))
    if hint is NoneType:
        return _only_if(value is None or isinstance(value, str) and value.lower() == "none", None)
    if hint is float and type(value) is int:
        try:
            value = float(value)
        except OverflowError:
            raise ValueError(value) from None
    if hint is str and isinstance(value, str):
        value.encode()  # a file name that is not UTF-8 could not be written to settings.toml
    return _only_if(type(value) is hint and (hint is not float or math.isfinite(value)), value)


def parse(text: str, hint: Any) -> Any:
    """Read the text of a flag as `hint`, a list split at commas, or raise ValueError."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return accept(parse(text, args[0]), hint)
    if origin is Literal:
        return _first(lambda choice: _only_if(str(choice) == text, choice), args)
    if origin in (Union, UnionType):
        return _first(
            lambda option: parse(text, option), sorted(args, key=lambda o: _eagerness(o, text))
        )
    if origin is tuple:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        items = args[:1] * len(parts) if args[-1] is ... else args
        return tuple(parse(part, item) for part, item in zip(parts, items, strict=True))
    if hint is bool:
        return _only_if(text.lower() in ("true", "false"), text.lower() == "true")
    return accept(text if hint in (str, NoneType) else hint(text), hint)


def is_list(hint: Any) -> bool:
    """Check whether a flag of this type takes several words."""
    origin, args = get_origin(hint), get_args(hint)
    return origin is tuple or origin in (Union, UnionType, Annotated) and any(map(is_list, args))


def to_toml(value: Any) -> str:
    """Write one value so that TOML reads the same value back; None becomes the text "none"."""
    if value is None:
        return '"none"'
    if isinstance(value, tuple):
        return f"[{', '.join(map(to_toml, value))}]"
    if isinstance(value, str):  # JSON escapes what TOML wants escaped, save DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _eagerness(option: Any, text: str) -> int:
    """Order the options of a union: a list first where a comma is, text after numbers, none."""
    if is_list(option):
        return 0 if "," in text else 3
    return 2 if option is str else 1


def _first(attempt: Any, options: Any) -> Any:
    """Return the first attempt that does not raise ValueError."""
    for option in options:
        try:
            return attempt(option)
        except ValueError:
            continue
    raise ValueError


def _only_if(fits: bool, value: Any) -> Any:
    if not fits:
        raise ValueError(value)
    return value
