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
    """How a task's rows are read.

    Attributes:
        read: (task, row, rng) -> params. It makes the choices that the row leaves open; KeyError, TypeError and
            ValueError mean that the row is malformed.
        sources: the keys of a row that name its photographs, in the order `render` takes them.
        upright: whether the photographs are turned upright by EXIF, or taken as their pixels lie in the file.
    """

    read: Callable[[Any, Mapping[str, Any], np.random.Generator], Params]
    sources: tuple[str, ...]
    upright: bool = True


def _match(task: PairTask, row: Mapping[str, Any], rng: np.random.Generator) -> Params:
    return task.draw_match(row, rng)


PAIRS = RowFormat(_match, ("image1", "image2"))  # of `vgift pairs`


class RowSource:
    """Rows as one task reads them, and the photographs they name. Every row is read once, before it is needed.

    Args:
        path: the file of rows.
        task: whose samples they are.
        format: how they are read.
        root: the folder that the names of photographs are relative to.

    Raises:
        ConfigError: a row is malformed, or names a photograph outside the folder or one that is missing.
    """

    def __init__(self, path: str | Path, task: Task, format: RowFormat, root: str):
        self.path, self.task, self.format, self.root = str(path), task, format, root
        rng, ids, names = generator(0, "rows"), [], {}

        def read(number: int, row: dict) -> None:
            try:
                names.update(dict.fromkeys(inside(row[key]) for key in format.sources))
                ids.append(str(row.get("id", number)))
                format.read(task, row, rng)
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
        """Returns the numbers of the rows to train on, and of those held out.

        A row is held out with its first photograph (see `is_held_out`), and trained on where none of its photographs is
        held out; so a row of two photographs may be neither.
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
        """Returns number and hash of the rows: equal rows give equal samples, wherever their photographs lie."""
        return fingerprint(map(json.dumps, self.rows))

    def find(self, id: str) -> int:
        """Returns the number of the row with this id, -1 where there is none."""
        place = int(np.searchsorted(self._ids, id.encode()))
        return int(self._order[place]) if place < len(self._ids) and self._ids[place] == id.encode() else -1

    def paths(self, row: dict) -> list[str]:
        """Returns the paths of a row's photographs."""
        return [os.path.join(self.root, inside(row[key])) for key in self.format.sources]

    def load(self, row: dict, rng: np.random.Generator) -> tuple[list[Image.Image], Params]:
        """Opens a row's photographs and reads its choices; see `open_photo` and `RowFormat.read`."""
        images = [open_photo(path, self.format.upright) for path in self.paths(row)]
        return images, self.format.read(self.task, row, rng)
