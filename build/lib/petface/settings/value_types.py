"""The types a setting may have: what they accept, how they read text and how they are written.

bool, int, float, str, Literal, tuple[...], unions of these with each other or with None, and
`Annotated` with a `Range`. Where None is allowed, the text `none` means None, in presets and flags
alike: TOML has no null.
"""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

_LEAVES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    NoneType: "none",
}


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
        return " ".join([describe(args[0]), *(str(b) for b in args[1:] if isinstance(b, Range))])
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (Union, UnionType):
        return " or ".join(map(describe, args))
    if origin is tuple and args[-1] is ...:
        return f"a list, each {describe(args[0])}"
    if origin is tuple:
        return f"a list of {len(args)}: {', '.join(map(describe, args))}"
    if hint not in _LEAVES:
        known = "bool, int, float, str, Literal, tuple or a union"
        raise TypeError(f"{hint!r} is no type for a setting: {known}")
    return _LEAVES[hint]


def accept(value: Any, hint: Any, *, is_flag: bool = False) -> Any:
    """Return `value` as `hint` wants it (int to float, list to tuple), or raise ValueError.

    With `is_flag` it is the text of a flag: numbers are read from it, and lists split at commas.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        value = accept(value, args[0], is_flag=is_flag)
        return _only_if(
            all(value in bound for bound in args[1:] if isinstance(bound, Range)), value
        )
    if origin is Literal:
        for choice in args:
            if (is_flag or type(value) is type(choice)) and value in (choice, str(choice)):
                return choice
        raise ValueError(value)
    if origin in (Union, UnionType):
        for option in sorted(args, key=lambda option: _turn(option, value)):
            with suppress(ValueError):
                return accept(value, option, is_flag=is_flag)
        raise ValueError(value)
    if origin is tuple:
        if is_flag:
            value = [part.strip() for part in value.split(",") if part.strip()]
        _only_if(isinstance(value, (list, tuple)), value)
        items = args[:1] * len(value) if args[-1] is ... else args
        pairs = zip(value, items, strict=True)
        return tuple(accept(item, of_item, is_flag=is_flag) for item, of_item in pairs)
    return _leaf(value, hint, is_flag)


def _leaf(value: Any, hint: type, is_flag: bool) -> Any:
    if hint is NoneType:
        return _only_if(value is None or isinstance(value, str) and value.lower() == "none", None)
    if hint is bool and is_flag:
        return _only_if(value.lower() in ("true", "false"), value.lower() == "true")
    if is_flag or hint is float and type(value) is int:
        try:
            value = hint(value)
        except OverflowError:
            raise ValueError(value) from None
    _only_if(type(value) is hint, value)
    if hint is float:
        _only_if(math.isfinite(value), value)
    if hint is int:
        _only_if(value.bit_length() < 10_000, value)  # Python writes no longer ones
    if hint is str:
        value.encode()  # a file name that is not UTF-8 could not be written to settings.toml
        _only_if("\0" not in value, value)  # no file can have such a name
    return value


def _turn(option: Any, value: Any) -> int:
    """Order the options of a union: None, a list where a comma is, numbers, text, a list."""
    if option is NoneType:
        return 0
    if is_list(option):
        return 1 if isinstance(value, str) and "," in value else 4
    return 3 if option is str else 2


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


def _only_if(fits: bool, value: Any) -> Any:
    if not fits:
        raise ValueError(value)
    return value
