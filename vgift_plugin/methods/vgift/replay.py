"""Replays the published V-GIFT mixture: records keep their texts, and their pictures are painted in training.

A record whose picture is named `<id>_rot90.jpg`, `<id>_colorization.jpg` or `<id>_correspondence.jpg` (or the pair
`<id>_img1.jpg`, `<id>_img2.jpg`) and whose id is in the metadata is painted from its source photographs. The pixels
equal those of the release's reconstruction scripts before JPEG compression.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...data.photo import MAX_PIXELS
from ...data.proxy import WrappedDataset
from ...data.records import picture_names
from ...data.rows import absent, some
from ...data.seeding import generator
from ...errors import ConfigError, TaskError, UnsuitableImage
from ...tasks.task import Params, Sample, Task
from .release import PHOTOS, RELEASE, PublishedTask, paint, reading
from .rows import RowSource


def photo_folder(given: str | None, image_folder: str | None) -> str:
    """Returns the folder of the source photographs: `--ssl_image_folder`, else one of `PHOTOS` in the image folder.

    Raises:
        ConfigError: the folder does not exist.
    """
    candidates = [given] if given is not None else [str(Path(image_folder or "", name)) for name in PHOTOS]
    for candidate in candidates:
        if Path(candidate).is_dir():
            return candidate
    raise ConfigError(
        f"--ssl_replay: the source photographs (COCO train2017) are not in {' or '.join(candidates)}; "
        "name their folder: --ssl_image_folder"
    )


class Replay:
    """Finds and paints the published samples among LLaVA records.

    Args:
        metadata: folder with some or all of the published metadata files.
        photos: folder of the source photographs.
        records: LLaVA's `list_data_dict`.
        image_folder: the folder the records' pictures are relative to.
        max_pixels: see `open_photo`.

    Raises:
        ConfigError: there is no metadata file; a row is malformed or a photograph missing; records of published
            samples are found neither in the metadata nor in the image folder, or their answer differs from the
            metadata.
    """

    def __init__(
        self,
        metadata: str,
        photos: str,
        records: Sequence[dict],
        image_folder: str | None,
        max_pixels: int = MAX_PIXELS,
    ):
        self.metadata = metadata
        self.sources = [
            RowSource(path, one.task(), one.format, photos, max_pixels)
            for one in RELEASE
            for path in one.metadata(metadata)
        ]
        if not self.sources:
            known = ", ".join(name for one in RELEASE for name in one.files)
            raise ConfigError(f"--ssl_replay {metadata}: there is no metadata file in this folder; known are {known}")
        self._source = np.full(len(records), -1, np.int8)
        self._row = np.full(len(records), -1, np.int32)
        unknown: dict[str, None] = {}  # an ordered set
        contradicting = []
        for position, record in enumerate(records):
            names = _names(record)
            if not any("_" in name for name in names):
                continue
            readings = {name: reading(name) for name in names}
            found = {self._place(*one) for one in readings.values() if one is not None}
            place = found.pop() if len(found) == 1 else None
            if place is not None and all(readings.values()):
                self._source[position], self._row[position] = place
                if truth := self._contradiction(position, record):
                    contradicting.append(f"{names[0]}: answers {_answer(record)!r}, metadata {truth!r}")
            else:
                unknown.update(dict.fromkeys(name for name, one in readings.items() if one))
        self._refuse(absent(image_folder or "", unknown), contradicting, image_folder)

    def _place(self, published: PublishedTask, id: str, part: str) -> tuple[int, int] | None:
        """Returns (number of the source, number of the row in it) of a picture; None if no row has its id."""
        for number, source in enumerate(self.sources):
            if type(source.task) is published.task and (row := source.find(id)) >= 0:
                return number, row
        return None

    def _contradiction(self, position: int, record: dict) -> str | None:
        """Returns the metadata's answer if the record has another one; None otherwise."""
        source, params = self.params(position)
        return None if source.task.score(_answer(record), params) == 1 else source.task.response(params)

    def _refuse(self, missing: list[str], contradicting: list[str], image_folder: str | None) -> None:
        mistakes = []
        if missing:
            mistakes.append(
                f"--ssl_replay {self.metadata}: {len(missing):,} pictures of published samples are neither in the "
                f"metadata nor in {image_folder}: {some(missing)}"
            )
        if contradicting:
            mistakes.append(
                f"--ssl_replay {self.metadata}: {len(contradicting):,} records answer otherwise than their metadata, "
                f"so one of both belongs to another release: {some(contradicting)}"
            )
        if mistakes:
            raise ConfigError.of(mistakes)

    def _at(self, position: int) -> tuple[RowSource, dict]:
        source = self.sources[self._source[position]]
        return source, source.rows[self._row[position]]

    def __len__(self) -> int:
        return int((self._row >= 0).sum())

    def __contains__(self, position: int) -> bool:
        return bool(self._row[position] >= 0)

    def task(self, position: int) -> Task:
        """Returns the task of a published sample."""
        return self.sources[self._source[position]].task

    def positions(self) -> Iterator[tuple[Task, np.ndarray]]:
        """Yields each task with the positions of its published samples."""
        for number, source in enumerate(self.sources):
            places = np.flatnonzero(self._source == number)
            if len(places):
                yield source.task, places

    def counts(self) -> dict[str, int]:
        """Returns {task: number of published samples among the records}."""
        result: Counter[str] = Counter()
        for task, places in self.positions():
            result[task.name] += len(places)
        return dict(result)

    def pictures(self, position: int, record: dict) -> list[Image.Image]:
        """Returns the painted pictures of a published sample, in the record's order: one, or two in the two-image form.

        Raises:
            TaskError: a source photograph cannot be used; picture, metadata file and photograph are named.
        """
        source, row = self._at(position)
        try:
            images, params = source.load(row, generator(0, "replay"))
        except UnsuitableImage as unsuitable:
            raise TaskError(
                f"{_names(record)[0]} cannot be painted: {unsuitable.reason} ({' + '.join(source.paths(row))}, the "
                f"source named in {source.path})"
            ) from None
        parts = (read[2] for name in _names(record) if (read := reading(name)) is not None)
        return [paint(source.task, images, params, part) for part in parts]

    def params(self, position: int) -> tuple[RowSource, Params]:
        """Returns the source and the params of a published sample."""
        source, row = self._at(position)
        return source, source.format.read(source.task, row, generator(0, "replay"))

    def sample(self, position: int, record: dict) -> Sample:
        """Returns a published sample with its record's texts, its first picture and its params."""
        source, params = self.params(position)
        text = record["conversations"][0]["value"].replace("<image>", "").strip()
        picture = self.pictures(position, record)[0]
        return Sample(
            source.task.name, picture, text, _answer(record), params, tuple(source.paths(self._at(position)[1]))
        )


def _names(record: dict) -> list[str]:
    return [name for name in picture_names(record) if isinstance(name, str)]


def _answer(record: dict) -> str:
    return record["conversations"][-1]["value"]


class ReplayedDataset(WrappedDataset):
    """The host's dataset with published samples painted instead of read. Other attributes are forwarded to it.

    Args:
        base: the host's dataset, or a wrapper around it.
        records: the base records.
        replay: the published samples among them.
        encode: returns the host's item, given (record, pictures, name of the task).
    """

    def __init__(
        self,
        base: Any,
        records: Sequence[dict],
        replay: Replay,
        encode: Callable[[dict, list[Image.Image], str], Any],
    ):
        self.base, self.records, self.replay, self.encode = base, records, replay, encode

    def __getitem__(self, index: int) -> Any:
        if index not in self.replay:
            return self.base[index]
        record = self.records[index]
        return self.encode(record, self.replay.pictures(index, record), self.replay.task(index).name)
