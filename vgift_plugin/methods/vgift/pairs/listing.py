"""Lists of pairs of photographs (`--pairs`)."""

from __future__ import annotations

import logging
import posixpath
from pathlib import Path
from typing import Any

from ....data.rows import inside
from ....data.strict import json_whole
from ....errors import ConfigError

logger = logging.getLogger(__name__)
SHOWN = 5

Pair = tuple[str, str]


def read_pairs(path: str) -> list[Pair]:
    """Returns the pairs of a list without repetitions.

    A line is `a.jpg: b.jpg` (DIP's public lists), `a.jpg TAB b.jpg`, `["a.jpg", "b.jpg"]` or
    `{"image1": "a.jpg", "image2": "b.jpg"}`; empty lines are allowed.

    Raises:
        ConfigError: the file cannot be read, has no pair or malformed lines, or names files outside the image folder.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as err:
        raise ConfigError(f"--pairs {path} cannot be read: {err}") from None
    pairs, mistakes = [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                pairs.append(_pair(line.strip()))
            except ValueError as err:
                mistakes.append(f"line {number}: {err}: {line.strip()!r:.200}")
    if mistakes:
        more = [f"and {len(mistakes) - SHOWN:,} more"] if len(mistakes) > SHOWN else []
        raise ConfigError("\n  ".join([f"--pairs {path}: a line is `a.jpg: b.jpg`", *mistakes[:SHOWN], *more]))
    if not pairs:
        raise ConfigError(f"--pairs {path} holds no pair")
    once = list(dict.fromkeys(pairs))
    if len(once) < len(pairs):
        logger.warning("%s: %d repeated pairs are taken once", path, len(pairs) - len(once))
    return once


def _pair(line: str) -> Pair:
    if line[0] in "{[":
        row = json_whole(line)
        names: list[Any] = [row.get("image1"), row.get("image2")] if isinstance(row, dict) else row
    else:
        names = [part.strip() for part in line.split("\t" if "\t" in line else ":")]
    if len(names) != 2 or not all(isinstance(name, str) and name for name in names):
        raise ValueError("not two names")
    for name in names:
        inside(name)
    return posixpath.normpath(names[0]), posixpath.normpath(names[1])
