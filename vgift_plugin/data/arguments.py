"""Command-line flags from the fields of a dataclass, for training flags and for the options of commands."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
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


def add_options(parser: argparse.ArgumentParser, kind: type) -> None:
    """Adds a flag for every field of a dataclass. Flags that are not given are absent from the parsed result."""
    hints = get_type_hints(kind)
    for one in fields(kind):
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
        parser.add_argument(one.name, metavar=told.get("metavar"), type=kind, **settings)
        return
    settings |= {"type": _truth, "nargs": "?", "const": True} if kind is bool else {"type": kind}
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
    return {one.name: getattr(source, one.name) for one in fields(kind) if hasattr(source, one.name)}


def filled(kind: type[T], source: Any) -> T:
    """Returns the dataclass, filled from the attributes of an object or the keys of a mapping; the rest by default."""
    get = source.get if isinstance(source, Mapping) else lambda name, default: getattr(source, name, default)
    return kind(**{one.name: get(one.name, one.default) for one in fields(kind)})  # type: ignore[arg-type]


def _truth(text: str) -> bool:
    """Returns a boolean from text such as `True`, `no` or `1`, parsed as transformers' argument parser does."""
    if text.lower() in _TRUE + _FALSE:
        return text.lower() in _TRUE
    raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
