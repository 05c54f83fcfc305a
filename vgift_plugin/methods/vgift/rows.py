"""Samples stored as rows of JSON: published metadata (`--ssl_replay`), matched pairs (`--ssl_pairs`)."""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...data.jobs import progress
from ...data.photo import MAX_PIXELS, open_photo, photo_size
from ...data.photos import THREADS, fingerprint, is_held_out
from ...data.rows import SHOWN, Rows, absent, inside, require_no_links_out, some
from ...data.seeding import generator
from ...errors import ConfigError, UnsuitableImage
from ...tasks.task import PairTask, Params, Task

logger = logging.getLogger(__name__)
CHECKED = 5000  # rows whose photographs are opened at the start


def _no_points(params: Params) -> tuple[list[list[Any]], int | None]:
    return [], None


@dataclass(frozen=True)
class RowFormat:
    """The format of a task's rows.

    Attributes:
        read: (task, row, rng) -> params. It makes the choices that the row leaves open; KeyError, TypeError and
            ValueError mean that the row is malformed.
        sources: the keys of a row that name its photographs, in the order of `render`.
        upright: whether the EXIF orientation of photographs is applied.
        sizes: the keys of a row that hold the sizes [w, h] of its upright photographs, if the format has them.
        points: params -> the points in each photograph, and the longest side they are relative to (None: the
            photograph's own size), for formats whose rows do not hold the sizes.
    """

    read: Callable[[Any, Mapping[str, Any], np.random.Generator], Params]
    sources: tuple[str, ...]
    upright: bool = True
    sizes: tuple[str, ...] = ()
    points: Callable[[Params], tuple[list[list[Any]], int | None]] = _no_points

    def mistake(self, row: Mapping[str, Any], params: Params, sizes: Sequence[tuple[int, int]]) -> str | None:
        """Returns how a row contradicts the (upright) sizes of its photographs; None if it does not."""
        for key, name, wh in zip(self.sizes, self.sources, sizes, strict=False):
            if list(row[key]) != list(wh):
                return f"{row[name]} is {_times(wh)} pixels, and {_times(row[key])} in the row"
        points, longest_px = self.points(params)
        for places, wh in zip(points, sizes, strict=False):
            scale = 1.0 if longest_px is None else longest_px / max(wh)
            for x, y in places:
                if not (0 <= x < int(wh[0] * scale) and 0 <= y < int(wh[1] * scale)):
                    of = "" if longest_px is None else f", {longest_px} at the longest side"
                    return f"the point [{x}, {y}] lies outside a photograph of {_times(wh)} pixels{of}"
        return None


def _times(wh: Sequence[int]) -> str:
    return "×".join(map(str, wh))


def _match(task: PairTask, row: Mapping[str, Any], rng: np.random.Generator) -> Params:
    points = [("wh1", row["query"]), ("wh2", row["match"]), *(("wh2", point) for point in row["distractors"])]
    for key, point in points:
        for pair in (row[key], point):
            if not (isinstance(pair, list) and len(pair) == 2 and all(type(number) is int for number in pair)):
                raise ValueError(f"{pair!r} is not two whole numbers, such as [123, 45]")
        if not all(0 <= at < side for at, side in zip(point, row[key], strict=True)):
            raise ValueError(f"the point {point} lies outside a photograph of {_times(row[key])} pixels ({key})")
    if row["match"] in row["distractors"]:
        raise ValueError(f"the match {row['match']} is one of the distractors")
    return task.draw_match(row, rng)


PAIRS = RowFormat(_match, ("image1", "image2"), sizes=("wh1", "wh2"))  # of `vgift pairs`


def _key(id: str) -> bytes:
    return id.encode(errors="surrogatepass")


class RowSource:
    """The rows of one task, and the photographs they name. Every row is checked when the source is created.

    Args:
        path: the file of rows.
        task: the task of these samples.
        format: the format of the rows.
        root: the folder that the names of photographs are relative to.
        max_pixels: see `open_photo`.

    Raises:
        ConfigError: a row is malformed, an id is repeated, a photograph is missing or outside the folder, or a row
            contradicts the size of its photograph. Sizes are compared for at most `CHECKED` rows, spread over the file;
            `load` compares those of every row.
    """

    def __init__(self, path: str | Path, task: Task, format: RowFormat, root: str, max_pixels: int = MAX_PIXELS):
        self.path, self.task, self.format, self.root = str(path), task, format, root
        self.max_pixels = max_pixels
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
        self._index(np.array([_key(one) for one in ids]))
        same = np.flatnonzero(self._ids[1:] == self._ids[:-1])
        if len(same):
            raise ConfigError(f"{path}: the id {self._ids[same[0]].decode()!r} stands twice")
        missing = absent(root, names)
        if missing:
            raise ConfigError(
                f"{path}: {len(missing):,} of the {len(names):,} photographs it names are not in {root}: "
                f"{some(missing)}\nName the folder they are relative to: --ssl_image_folder"
            )
        require_no_links_out(str(path), root, names)
        self._compare_sizes()

    def _compare_sizes(self) -> None:
        numbers = range(0, len(self), -(-len(self) // CHECKED))

        def compare(number: int) -> str | None:
            row = self.rows[number]
            try:
                params = self.format.read(self.task, row, generator(0, "rows"))
                mistake = self.format.mistake(row, params, [photo_size(path) for path in self.paths(row)])
            except UnsuitableImage:  # found again, and counted, in training
                return None
            return mistake and f"row {number + 1:,}: {mistake}"

        with ThreadPoolExecutor(THREADS) as pool, progress(len(numbers), f"checking {self.path}") as bar:
            found = []
            for mistake in pool.map(compare, numbers):
                bar.update()
                found += [mistake] if mistake else []
        if found:
            head = f"{self.path}: {len(found):,} of {len(numbers):,} rows contradict their photographs in {self.root}:"
            cure = "Name the folder of the photographs that the rows were made of: --ssl_image_folder"
            raise ConfigError("\n  ".join([head, *found[:SHOWN]]) + f"\n{cure}")

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
        place = int(np.searchsorted(self._ids, _key(id)))
        return int(self._order[place]) if place < len(self._ids) and self._ids[place] == _key(id) else -1

    def paths(self, row: dict) -> list[str]:
        """Returns the paths of a row's photographs."""
        return [os.path.join(self.root, inside(row[key])) for key in self.format.sources]

    def load(self, row: dict, rng: np.random.Generator) -> tuple[list[Image.Image], Params]:
        """Returns a row's photographs and its params; see `open_photo` and `RowFormat.read`.

        Raises:
            UnsuitableImage: a photograph cannot be used, or is not of the size that the row was made for.
        """
        paths = self.paths(row)
        images = [open_photo(path, self.format.upright, None, self.max_pixels) for path in paths]
        params = self.format.read(self.task, row, rng)
        sizes = [image.size for image in images] if self.format.upright else [photo_size(path) for path in paths]
        if mistake := self.format.mistake(row, params, sizes):
            logger.warning("%s: row %s is passed over: %s", self.path, row.get("id", ""), mistake)
            raise UnsuitableImage("row contradicts photograph")
        return images, params
