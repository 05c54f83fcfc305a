"""Choices made elsewhere and stored as rows of JSON: published metadata (`--ssl_replay`), pairs (`--ssl_pairs`)."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from .errors import ConfigError, UnsuitableImage
from .seeding import generator
from .sources import fingerprint, is_held_out, open_photo
from .task import Params, Stored, Task

_BETWEEN = re.compile(r"[\s,]*")
SHOWN = 3  # names in an error; the counts are complete


class Rows(Sequence):
    """The rows of a JSON list, or of a file of JSON lines; kept as their text, a row is parsed when it is asked for.

    So 22,176 rows cost the size of their file and two numbers a row, and forked workers share them.

    Args:
        path: the file.
        on_row: told the number, from 1 up, and the content of every row on the way.

    Raises:
        ConfigError: it cannot be read, or holds something else than JSON objects.
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
        """Yields the place of every row in the text."""
        text, decode = self._text, json.JSONDecoder().raw_decode
        place = _BETWEEN.match(text).end()
        listed = text.startswith("[", place)
        place = _BETWEEN.match(text, place + listed).end()
        count = 0
        while place < len(text) and not (listed and text[place] == "]"):
            try:
                row, end = decode(text, place)
            except ValueError as err:
                raise ConfigError(f"{self.path}: row {count + 1:,} is not JSON: {err}") from err
            if not isinstance(row, dict):
                raise ConfigError(f"{self.path}: row {count + 1:,} is not an object with names and values: {row!r:.60}")
            count += 1
            on_row(count, row)
            yield place
            place = _BETWEEN.match(text, end).end()
        if listed and place >= len(text):
            raise ConfigError(f"{self.path}: ends after row {count:,}, before its closing bracket; is it cut off?")

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict:
        return json.JSONDecoder().raw_decode(self._text, int(self._starts[index]))[0]

    def part(self, numbers: np.ndarray) -> Rows:
        """Returns some of these rows, without reading the file again."""
        some = copy.copy(self)
        some._starts = self._starts[numbers]
        return some


class RowSource:
    """Rows as one task reads them, and the photographs they name. Every row is read once, before it is needed.

    Args:
        path: the file of rows.
        task: who reads them.
        form: how.
        folder: what the names of photographs are relative to.

    Raises:
        ConfigError: a row is malformed, or names a photograph outside the folder or one that is missing.
    """

    def __init__(self, path: str | Path, task: Task, form: Stored, folder: str):
        self.path, self.task, self.form, self.folder = str(path), task, form, folder
        rng, ids, names = generator(0, "rows"), [], {}

        def read(number: int, row: dict) -> None:
            try:
                names.update(dict.fromkeys(inside(row[key]) for key in form.sources))
                ids.append(str(row.get("id", number)))
                form.recall(task, row, rng)
            except UnsuitableImage:  # of this draw; it is drawn again in training
                pass
            except (KeyError, TypeError, ValueError, AttributeError) as err:
                what = f"{err} is missing" if isinstance(err, KeyError) else str(err)
                raise ConfigError(f"{path}: row {number:,} is no row for {task.name}: {what}") from err

        self.rows = Rows(path, read)
        self.where = f"rows of {path}"
        self._index(np.array([one.encode() for one in ids]))
        same = np.flatnonzero(self._ids[1:] == self._ids[:-1])
        if len(same):
            raise ConfigError(f"{path}: the id {self._ids[same[0]].decode()!r} stands twice")
        missing = absent(folder, names)
        if missing:
            raise ConfigError(
                f"{path}: {len(missing):,} of the {len(names):,} photographs it names are not in {folder}: "
                f"{some(missing)}\nName the folder they are relative to: --ssl_image_folder"
            )

    def _index(self, ids: np.ndarray) -> None:
        self._order = np.argsort(ids, kind="stable").astype(np.int32)
        self._ids = ids[self._order]

    def __len__(self) -> int:
        return len(self.rows)

    def split(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the numbers of the rows to train on, and of those held out.

        A row is held out with its first photograph (see `is_held_out`), and trained on where none of its photographs is
        held out; so a row of two photographs may be neither.
        """
        held = np.array([[is_held_out(row[key]) for key in self.form.sources] for row in self.rows])
        return np.flatnonzero(~held.any(axis=1)), np.flatnonzero(held[:, 0])

    def part(self, numbers: np.ndarray, where: str) -> RowSource:
        """Returns a source of some of these rows."""
        ids = np.empty_like(self._ids)
        ids[self._order] = self._ids
        some = copy.copy(self)
        some.rows, some.where = self.rows.part(numbers), where
        some._index(ids[numbers])
        return some

    def fingerprint(self) -> str:
        """Returns number and hash of the rows: equal rows give equal samples, wherever their photographs lie."""
        return fingerprint(map(json.dumps, self.rows))

    def find(self, id: str) -> int:
        """Returns the number of the row with this id, -1 where there is none."""
        place = int(np.searchsorted(self._ids, id.encode()))
        return int(self._order[place]) if place < len(self._ids) and self._ids[place] == id.encode() else -1

    def paths(self, row: dict) -> list[str]:
        """Returns the paths of a row's photographs."""
        return [os.path.join(self.folder, inside(row[key])) for key in self.form.sources]

    def recall(self, row: dict, rng: np.random.Generator) -> tuple[list[Image.Image], Params]:
        """Opens a row's photographs and reads its choices; see `open_photo` and `Stored.recall`."""
        images = [open_photo(path, self.form.upright) for path in self.paths(row)]
        return images, self.form.recall(self.task, row, rng)


def inside(name: Any) -> str:
    """Returns a relative name that stays below its folder; ValueError for every other."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"{name!r} is no name of a photograph")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"the photograph {name!r} lies outside the image folder")
    return name


def absent(folder: str, names: Iterable[str]) -> list[str]:
    """Returns those of the names that are no files below the folder, in their order; each folder is listed once."""
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


def some(names: Sequence[str]) -> str:
    """Returns the first few names, for an error."""
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
