"""Samples stored as rows of JSON: published metadata (`--ssl_replay`), matched pairs (`--ssl_pairs`)."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...data.photos import fingerprint, is_held_out, open_photo
from ...data.rows import Rows, absent, inside, some
from ...data.seeding import generator
from ...errors import ConfigError, UnsuitableImage
from ...tasks.task import PairTask, Params, Task


@dataclass(frozen=True)
class RowFormat:
    """The format of a task's rows.

    Attributes:
        read: (task, row, rng) -> params. It makes the choices that the row leaves open; KeyError, TypeError and
            ValueError mean that the row is malformed.
        sources: the keys of a row that name its photographs, in the order of `render`.
        upright: whether the EXIF orientation of photographs is applied.
    """

    read: Callable[[Any, Mapping[str, Any], np.random.Generator], Params]
    sources: tuple[str, ...]
    upright: bool = True


def _match(task: PairTask, row: Mapping[str, Any], rng: np.random.Generator) -> Params:
    return task.draw_match(row, rng)


PAIRS = RowFormat(_match, ("image1", "image2"))  # of `vgift pairs`


class RowSource:
    """The rows of one task, and the photographs they name. Every row is checked when the source is created.

    Args:
        path: the file of rows.
        task: the task of these samples.
        format: the format of the rows.
        root: the folder that the names of photographs are relative to.

    Raises:
        ConfigError: a row is malformed, an id is repeated, or a photograph is missing or outside the folder.
    """

    def __init__(self, path: str | Path, task: Task, format: RowFormat, root: str):
        self.path, self.task, self.format, self.root = str(path), task, format, root
        rng, ids, names = generator(0, "rows"), [], {}

        def read(number: int, row: dict) -> None:
            try:
                names.update(dict.fromkeys(inside(row[key]) for key in format.sources))
                ids.append(str(row.get("id", number)))
                format.read(task, row, rng)
            except UnsuitableImage:  # only this draw is unsuitable; training redraws
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
        missing = absent(root, names)
        if missing:
            raise ConfigError(
                f"{path}: {len(missing):,} of the {len(names):,} photographs it names are not in {root}: "
                f"{some(missing)}\nName the folder they are relative to: --ssl_image_folder"
            )

    def _index(self, ids: np.ndarray) -> None:
        self._order = np.argsort(ids, kind="stable").astype(np.int32)
        self._ids = ids[self._order]

    def __len__(self) -> int:
        return len(self.rows)

    def split(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the indices of the rows to train on and of those held out.

        A row is held out if its first photograph is (see `is_held_out`), and trained on if none of its photographs is;
        so a row of two photographs may be neither.
        """
        held = np.array([[is_held_out(row[key]) for key in self.format.sources] for row in self.rows])
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
        """Returns the number and hash of the rows; sources with equal fingerprints give equal samples."""
        return fingerprint(map(json.dumps, self.rows))

    def find(self, id: str) -> int:
        """Returns the index of the row with this id, or -1."""
        place = int(np.searchsorted(self._ids, id.encode()))
        return int(self._order[place]) if place < len(self._ids) and self._ids[place] == id.encode() else -1

    def paths(self, row: dict) -> list[str]:
        """Returns the paths of a row's photographs."""
        return [os.path.join(self.root, inside(row[key])) for key in self.format.sources]

    def load(self, row: dict, rng: np.random.Generator) -> tuple[list[Image.Image], Params]:
        """Returns a row's photographs and its params; see `open_photo` and `RowFormat.read`."""
        images = [open_photo(path, self.format.upright) for path in self.paths(row)]
        return images, self.format.read(self.task, row, rng)
