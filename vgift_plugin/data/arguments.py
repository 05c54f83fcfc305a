"""Command-line flags from the fields of a dataclass, for training flags and for the options of commands."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, field, fields
from typing import Any, TypeVar, get_args, get_type_hints

T = TypeVar("T")
_METAVARS: dict[type, str] = {int: "N", float: "X", str: "TEXT", bool: "True"}
_TRUE, _FALSE = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")


def option(
    default: Any = MISSING,
    help: str = "",
    *,
    short: str | None = None,
    positional: bool = False,
    choices: tuple[str, ...] | None = None,
    metavar: str | None = None,
) -> Any:
    """Returns a dataclass field that `add_options` turns into a flag.

    Args:
        default: value if the flag is not given; without a default the flag is required.
        help: text for `--help` and the tables in the READMEs.
        short: a second spelling, such as `-o`.
        positional: an argument without dashes.
        choices: the allowed values.
        metavar: placeholder for the value in `--help`.
    """
    metadata = {"help": help, "short": short, "positional": positional, "choices": choices, "metavar": metavar}
    return field(default=default, metadata=metadata)


def offered(kind: type) -> list[Field]:
    """Returns the fields of a dataclass that are flags of a command: all but those named in its `UNUSED`."""
    return [one for one in fields(kind) if one.name not in getattr(kind, "UNUSED", ())]


def add_options(parser: argparse.ArgumentParser, kind: type) -> None:
    """Adds a flag for every field of a dataclass. Flags that are not given are absent from the parsed result."""
    hints = get_type_hints(kind)
    for one in offered(kind):
        _add(
            parser, one, next(part for part in (*get_args(hints[one.name]), hints[one.name]) if part is not type(None))
        )


def _add(parser: argparse.ArgumentParser, one: Field, kind: type) -> None:
    told = dict(one.metadata)
    shown = "" if one.default is MISSING or one.default is None or kind is bool else f" (default {one.default})"
    settings: dict[str, Any] = {
        "help": (told.get("help", "") + shown).replace("%", "%%"),
        "choices": told.get("choices"),
    }
    if told.get("positional"):
        parser.add_argument(one.name, metavar=told.get("metavar"), type=_TYPES.get(kind, kind), **settings)
        return
    settings |= {"type": _TYPES.get(kind, kind), **({"nargs": "?", "const": True} if kind is bool else {})}
    names = [name for name in (told.get("short"), f"--{one.name}") if name]
    parser.add_argument(
        *names,
        dest=one.name,
        default=argparse.SUPPRESS,
        required=one.default is MISSING,
        metavar=told.get("metavar") or (None if told.get("choices") else _METAVARS[kind]),
        **settings,
    )


def given(kind: type, source: argparse.Namespace) -> dict[str, Any]:
    """Returns {name: value} for the fields of a dataclass that were given on the command line."""
    return {one.name: getattr(source, one.name) for one in offered(kind) if hasattr(source, one.name)}


def filled(kind: type[T], source: Any) -> T:
    """Returns the dataclass, filled from the attributes of an object or the keys of a mapping; the rest by default."""
    get = source.get if isinstance(source, Mapping) else lambda name, default: getattr(source, name, default)
    return kind(**{one.name: get(one.name, one.default) for one in fields(kind)})  # type: ignore[arg-type]


EMPTY = "is empty; is a shell variable unset?"  # an empty path is the current folder to most functions
NO_NUMBER = "is no finite number"
LARGEST = 2**63 - 1


def why_not(value: Any) -> str | None:
    """Returns what is wrong with any flag of this value: empty text, an infinite or a huge number; None if nothing."""
    if isinstance(value, str) and not value.strip():
        return EMPTY
    if isinstance(value, float) and not math.isfinite(value):
        return NO_NUMBER
    return f"must be at most {LARGEST}" if isinstance(value, int) and abs(value) > LARGEST else None


def _checked(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = kind(text)
        if why := why_not(value):
            raise argparse.ArgumentTypeError(f"{text!r} {why}")
        return value

    parse.__name__ = kind.__name__  # argparse shows it in messages
    return parse


def _truth(text: str) -> bool:
    """Returns a boolean from text such as `True`, `no` or `1`, parsed as transformers' argument parser does."""
    if text.lower() in _TRUE + _FALSE:
        return text.lower() in _TRUE
    raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")


_TYPES: dict[type, Callable[[str], Any]] = {bool: _truth, **{kind: _checked(kind) for kind in (str, int, float)}}
