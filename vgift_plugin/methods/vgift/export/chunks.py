"""Chunks of an export, written as pictures, shards, tables, records or messages."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from ....data.files import write_files
from ....data.records import picture_names
from ....data.rows import inside
from ....hosts.encoder import pictures_on
from ....tasks.task import Task
from ..grid import Grid
from ..replay import Replay
from ..stream import Stream
from .tables import ROLES, ROWS, table

Picture = tuple[str, bytes]  # (path relative to the output, encoded)


@dataclass(frozen=True)
class Chunk:
    """Samples start to stop - 1 of one part (a task, or the published samples)."""

    part: str
    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """The stem of its shard."""
        return f"{self.part}-{self.number:06d}"


@dataclass(frozen=True)
class Export:
    """Everything that a worker needs to write a chunk; a pure function of the settings.

    Attributes:
        parts: (stream, number of samples) of each task.
        published: (replay, [(position, record)]) if there are published samples among the base records.
        epoch: the epoch whose samples are written.
        format: one of FORMATS.
        jpeg_quality: None for lossless PNG.
        output: the folder.
        chunk_size: samples per chunk; a shard is a chunk.
        grid: for models that look at pictures as they are, see `grid.grid_of`.
    """

    parts: list[tuple[Stream, int]]
    published: tuple[Replay, list[tuple[int, dict]]] | None
    epoch: int
    format: str
    jpeg_quality: int | None
    output: str
    chunk_size: int
    grid: Grid | None = None

    def sizes(self) -> dict[str, int]:
        """Returns {part: number of samples}, in the order of the export."""
        published = {"published": len(self.published[1])} if self.published else {}
        return {**published, **{stream.task.name: count for stream, count in self.parts}}

    @cached_property
    def chunks(self) -> list[Chunk]:
        """The chunks of all parts."""
        return [
            Chunk(part, number, start, min(start + self.chunk_size, size))
            for part, size in self.sizes().items()
            for number, start in enumerate(range(0, size, self.chunk_size))
        ]

    def write(self, scratch: Path, block: range) -> list[dict[str, Any]]:
        """Writes some chunks.

        Args:
            scratch: a folder for temporary files.
            block: their numbers.

        Returns:
            an item of `data.jobs` for each: {"entries": of the index file, "redraws": {reason: count}, "files":
            {path: digest}}
        """
        return [self._write(self.chunks[number], scratch) for number in block]

    def _write(self, chunk: Chunk, scratch: Path) -> dict[str, Any]:
        redraws: Counter[str] = Counter()
        entries: list[dict] = []

        def pictures() -> Iterator[Picture]:
            for record, task, params, encoded in self._samples(chunk, redraws):
                entries.append(record if self.format == "llava" else _messages(record, task.name, params))
                yield from encoded

        def shard() -> Iterator[Picture]:
            samples = enumerate(self._samples(chunk, redraws), chunk.start)
            yield f"{chunk.part}/{chunk.name}.tar", _shard(_tarred(f"{chunk.part}-{k:08d}", *one) for k, one in samples)

        def rows() -> Iterator[Picture]:
            samples = enumerate(self._samples(chunk, redraws), chunk.start)
            made = (ROWS[self.format](*one, k) for k, one in samples)
            yield f"{chunk.part}/{chunk.name}.parquet", table(made, self.format)

        files = shard() if self.format == "webdataset" else rows() if self.format in ROWS else pictures()
        written = write_files(Path(self.output), files, scratch)
        return {"entries": entries, "redraws": redraws, "files": written}

    def _samples(self, chunk: Chunk, redraws: Counter) -> Iterator[tuple[dict, Task, dict, list[Picture]]]:
        """Yields (LLaVA record, task, params, pictures) of a chunk's samples."""
        if chunk.part == "published":
            assert self.published is not None
            replay, listed = self.published
            for position, record in listed[chunk.start : chunk.stop]:
                source, params = replay.params(position)
                images = replay.pictures(position, record)
                names = map(inside, picture_names(record))
                pictures = [(name, _encoded(image, 95)) for name, image in zip(names, images, strict=True)]
                yield record, source.task, params, pictures
            return
        stream = next(stream for stream, _ in self.parts if stream.task.name == chunk.part)
        suffix = "png" if self.jpeg_quality is None else "jpg"
        for j in range(chunk.start, chunk.stop):
            sample = stream(self.epoch, j, lambda task, reason: redraws.update([reason]))
            id = f"vgift-{sample.task}-{self.epoch}-{j}"
            path = f"images/{sample.task}/{id}.{suffix}"
            record = sample.record(id, path)
            encoded = [_encoded(picture, self.jpeg_quality) for picture in pictures_on(sample, self.grid)]
            yield record, stream.task, sample.params, list(zip(picture_names(record), encoded, strict=True))


def _tarred(key: str, record: dict, task: Task, params: dict, pictures: list[Picture]) -> dict[str, Any]:
    """Returns a sample in webdataset's form: a key, encoded pictures, and JSON with turns and params."""
    suffixes = [Path(path).suffix[1:] for path, _ in pictures]
    names = suffixes if len(pictures) == 1 else [f"{k}.{suffix}" for k, suffix in enumerate(suffixes)]
    turns = [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in record["conversations"]]
    content = {"id": record["id"], "task": task.name, "texts": turns, "media": "image", "name": names, "params": params}
    encoded = {name: picture for name, (_, picture) in zip(names, pictures, strict=True)}
    return {"__key__": key, **encoded, "json": json.dumps(content).encode()}


def _messages(record: dict, task: str, params: dict) -> dict[str, Any]:
    """Returns a record as chat messages with content blocks, its pictures, and the data needed to score a reply."""
    names = picture_names(record)
    messages = []
    for number, turn in enumerate(record["conversations"]):
        blocks = [{"type": "image"} for _ in names] if number == 0 else []
        blocks.append({"type": "text", "text": turn["value"].replace("<image>", "").strip()})
        messages.append({"role": ROLES[turn["from"]], "content": blocks})
    solution = record["conversations"][-1]["value"]
    head = {"id": record["id"], "messages": messages, "images": names}
    return {**head, "task": task, "solution": solution, "params": json.dumps(params)}


def _encoded(image: Image.Image, jpeg_quality: int | None) -> bytes:
    buffer = io.BytesIO()
    if jpeg_quality is None:
        image.save(buffer, "PNG", compress_level=1)
    else:
        image.save(buffer, "JPEG", quality=jpeg_quality)
    return buffer.getvalue()


def _shard(samples: Iterable[dict]) -> bytes:
    from webdataset import TarWriter

    buffer = io.BytesIO()
    writer = TarWriter(buffer, encoder=False, mtime=0, user="", group="")
    for sample in samples:
        writer.write(sample)
    writer.close()
    return buffer.getvalue()
