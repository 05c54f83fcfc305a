"""Rows of JSON, kept as text, and file names that stay inside a folder."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..errors import ConfigError
from .files import is_inside
from .strict import json_value

_SPACE = re.compile(r"\s*")
SHOWN = 3  # names in an error; the counts are complete


class Rows(Sequence):
    """The rows of a JSON list or of a file of JSON lines, kept as text; a row is parsed on access.

    The memory used is the size of the file and one number per row, and forked workers share it.

    Args:
        path: the file.
        on_row: called once with the number (from 1) and the content of each row.

    Raises:
        ConfigError: the file cannot be read, or contains anything but JSON objects.
    """

    def __init__(self, path: str | Path, on_row: Callable[[int, dict], None] = lambda number, row: None):
        self.path = str(path)
        try:
            self._text = Path(path).read_text(encoding="utf-8")
        except (OSError, ValueError) as err:
            raise ConfigError(f"{path}: cannot be read: {err}") from err
        if self._text.startswith("version https://git-lfs"):
            raise ConfigError(f"{path}: is a Git LFS pointer, not the file itself; get it with `git lfs pull`")
        self._starts = np.fromiter(self._scan(on_row), np.int64)
        if not len(self._starts):
            raise ConfigError(f"{path}: holds no row")

    def _scan(self, on_row: Callable[[int, dict], None]) -> Iterator[int]:
        """Yields the offset of every row in the text."""
        text = self._text
        place = _after_space(text, 0)
        listed = text.startswith("[", place)
        place = _after_space(text, place + listed)
        count = 0
        while place < len(text) and not (listed and text[place] == "]"):
            try:
                row, end = json_value(text, place)
            except ValueError as err:
                raise ConfigError(f"{self.path}: row {count + 1:,} is not JSON: {err}") from err
            if not isinstance(row, dict):
                raise ConfigError(f"{self.path}: row {count + 1:,} is not an object with names and values: {row!r:.60}")
            count += 1
            on_row(count, row)
            yield place
            place = _after_space(text, end)
            if listed and text.startswith(",", place):
                place = _after_space(text, place + 1)
            elif listed and place < len(text) and text[place] != "]":
                raise ConfigError(f"{self.path}: there is no comma after row {count:,}: {text[place:]!r:.60}")
        if listed and place >= len(text):
            raise ConfigError(f"{self.path}: ends after row {count:,}, before its closing bracket; is it cut off?")
        if listed and (after := _after_space(text, place + 1)) < len(text):
            raise ConfigError(
                f"{self.path}: there is more text after the closing bracket of its list: {text[after:]!r:.60}"
            )

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: Any) -> Any:
        return json.JSONDecoder().raw_decode(self._text, int(self._starts[index]))[0]

    def part(self, numbers: np.ndarray) -> Rows:
        """Returns some of these rows, without reading the file again."""
        some = copy.copy(self)
        some._starts = self._starts[numbers]
        return some


def _after_space(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    assert match is not None  # it matches nothing, too
    return match.end()


def _is_file_name(name: str) -> bool:
    try:
        return bool(os.fsencode(name))
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def inside(name: Any) -> str:
    """Returns the name if it is relative and stays inside its folder; raises ValueError otherwise."""
    if not isinstance(name, str) or not name or "\0" in name or not _is_file_name(name):
        raise ValueError(f"{name!r} is no name of a photograph")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"the photograph {name!r} lies outside the image folder")
    return name


def absent(folder: str, names: Iterable[str]) -> list[str]:
    """Returns the names that do not exist in the folder, in order; each folder is listed once."""
    listed: dict[str, set[str]] = {}
    missing = []
    for name in names:
        parent, _, file = name.rpartition("/")
        if parent not in listed:
            try:
                listed[parent] = set(os.listdir(os.path.join(folder, parent)))
            except OSError:
                listed[parent] = set()
        if file not in listed[parent]:
            missing.append(name)
    return missing


def links_out(folder: str, names: Iterable[str]) -> list[str]:
    """Returns the names that are links to files outside the folder, in order. Linked folders are part of the folder.

    A file from elsewhere that names photographs must not reach other files over such links.
    """
    linked: dict[str, set[str]] = {}
    found = []
    for name in names:
        parent, _, file = name.rpartition("/")
        if parent not in linked:
            try:
                with os.scandir(os.path.join(folder, parent)) as entries:
                    linked[parent] = {entry.name for entry in entries if entry.is_symlink()}
            except OSError:
                linked[parent] = set()
        if file in linked[parent]:
            path = os.path.join(folder, parent, file)
            if not any(is_inside(path, root) for root in (folder, os.path.dirname(path))):
                found.append(name)
    return found


def require_no_links_out(where: str, folder: str, names: Iterable[str]) -> None:
    """Raises ConfigError if photographs that `where` names are links to files outside the folder; see `links_out`."""
    if linked := links_out(folder, names):
        raise ConfigError(
            f"{where}: {len(linked):,} of the photographs it names are links to files outside {folder}: {some(linked)}"
        )


def some(names: Sequence[str]) -> str:
    """Returns the first few names, for an error message."""
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
