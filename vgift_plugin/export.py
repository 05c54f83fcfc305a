"""`vgift export`: the very samples that training would see, as files, for trainers that cannot load a plugin.

The work is cut into chunks whose borders depend on nothing but the settings. A chunk is done when its receipt lies in
`OUT/.parts`; whoever finds all receipts there assembles them. So the result is the same to the byte however many
processes or machines wrote it, and however often they were killed.
"""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from . import __version__
from .config import Flags, counts
from .errors import ConfigError
from .mixing import Stream
from .registry import task_names
from .replay import Replay
from .rows import inside
from .sources import read_records
from .streams import find_replay, streams

logger = logging.getLogger(__name__)
FORMATS = ("llava", "webdataset", "messages")
INDEX = {"llava": "vgift.json", "messages": "vgift.jsonl"}
PARTS, RESULT = ".parts", "export.json"
ROLES = {"human": "user", "gpt": "assistant"}
Picture = tuple[str, bytes]  # (relative path, encoded)


@dataclass(frozen=True)
class Chunk:
    """Samples start to stop of one part (a task, or the published samples)."""

    part: str
    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """The stem of its receipt, and of its shard."""
        return f"{self.part}-{self.number:06d}"


@dataclass(frozen=True)
class Export:
    """All that a worker needs to write a chunk; a pure function of the settings.

    Attributes:
        parts: (stream, number of samples) of each task.
        published: (replay, [(position, record)]) where the base records hold published samples.
        epoch: whose samples.
        format: one of FORMATS.
        jpeg_quality: None for PNG, which loses nothing.
        output: the folder.
        chunk_size: samples a chunk; a shard is a chunk.
    """

    parts: list[tuple[Stream, int]]
    published: tuple[Replay, list[tuple[int, dict]]] | None
    epoch: int
    format: str
    jpeg_quality: int | None
    output: str
    chunk_size: int

    def sizes(self) -> dict[str, int]:
        """Returns {part: samples}, in the order in which they are listed."""
        published = {"published": len(self.published[1])} if self.published else {}
        return {**published, **{stream.task.name: count for stream, count in self.parts}}

    def chunks(self) -> list[Chunk]:
        """Returns the chunks of all parts."""
        return [
            Chunk(part, number, start, min(start + self.chunk_size, size))
            for part, size in self.sizes().items()
            for number, start in enumerate(range(0, size, self.chunk_size))
        ]

    def receipt(self, chunk: Chunk) -> Path:
        """Returns the path of a chunk's receipt."""
        return Path(self.output, PARTS, f"{chunk.name}.json")

    def write(self, chunk: Chunk) -> int:
        """Writes one chunk, then its receipt; returns the number of its samples."""
        redraws: Counter[str] = Counter()
        entries, shard = [], []
        for k, (record, task, params, pictures) in enumerate(self._samples(chunk, redraws), chunk.start):
            if self.format == "webdataset":
                shard.append(_tarred(f"{chunk.part}-{k:08d}", record, task, params, pictures))
            else:
                for path, encoded in pictures:
                    place = Path(self.output, path)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(encoded)
                entries.append(record if self.format == "llava" else _messages(record, task, params))
        if self.format == "webdataset":
            _write_shard(Path(self.output, chunk.part, f"{chunk.name}.tar"), shard)
        _replace(self.receipt(chunk), json.dumps({"entries": entries, "redraws": redraws}).encode())
        return chunk.stop - chunk.start

    def _samples(self, chunk: Chunk, redraws: Counter) -> Iterator[tuple[dict, str, dict, list[Picture]]]:
        """Yields (LLaVA record, task, params, pictures) of a chunk's samples."""
        if chunk.part == "published":
            replay, listed = self.published
            for position, record in listed[chunk.start : chunk.stop]:
                source, params = replay.params(position)
                images = replay.pictures(position, record)
                names = record["image"] if isinstance(record["image"], list) else [record["image"]]
                pictures = [(inside(name), _encoded(image, 95)) for name, image in zip(names, images, strict=True)]
                yield record, source.task.name, params, pictures
            return
        stream = next(stream for stream, _ in self.parts if stream.task.name == chunk.part)
        suffix = "png" if self.jpeg_quality is None else "jpg"
        for j in range(chunk.start, chunk.stop):
            sample = stream(self.epoch, j, lambda task, reason, paths: redraws.update([reason]))
            id = f"vgift-{sample.task}-{self.epoch}-{j}"
            path = f"images/{sample.task}/{id}.{suffix}"
            yield (
                sample.record(id, path),
                sample.task,
                sample.params,
                [(path, _encoded(sample.image, self.jpeg_quality))],
            )


def _tarred(key: str, record: dict, task: str, params: dict, pictures: list[Picture]) -> dict[str, Any]:
    """Returns a sample as webdataset has it: a key, encoded pictures, and JSON with turns and params."""
    suffixes = [Path(path).suffix[1:] for path, _ in pictures]
    names = suffixes if len(pictures) == 1 else [f"{k}.{suffix}" for k, suffix in enumerate(suffixes)]
    turns = [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in record["conversations"]]
    content = {"id": record["id"], "task": task, "texts": turns, "media": "image", "name": names, "params": params}
    encoded = {name: picture for name, (_, picture) in zip(names, pictures, strict=True)}
    return {"__key__": key, **encoded, "json": json.dumps(content).encode()}


def _messages(record: dict, task: str, params: dict) -> dict[str, Any]:
    """Returns a record as chat messages with blocks, its pictures, and what a reward needs to score a reply."""
    names = record["image"] if isinstance(record["image"], list) else [record["image"]]
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


def _replace(path: Path, content: bytes) -> None:
    """Writes a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _write_shard(path: Path, samples: list[dict]) -> None:
    from webdataset import TarWriter

    buffer = io.BytesIO()
    writer = TarWriter(buffer, encoder=False, mtime=0, user="", group="")
    for sample in samples:
        writer.write(sample)
    writer.close()
    _replace(path, buffer.getvalue())


def export(
    flags: dict,
    image_folder: str,
    output: str,
    format: str,
    data_path: str | None = None,
    n: int | None = None,
    epoch: int = 0,
    jpeg_quality: int | None = None,
    chunk_size: int = 500,
    workers: int | None = None,
) -> str:
    """Writes the samples; goes on where an interrupted export stopped.

    Args:
        flags: {flag: value} as given.
        image_folder: as LLaVA has it; without `data_path`, the images to make samples of.
        output: a folder of this export alone.
        format: `llava` (pictures and vgift.json), `webdataset` (tar shards, a folder a task), or `messages` (pictures
            and vgift.jsonl).
        data_path: LLaVA records: `--ssl_ratio` counts them, samples are made of their images, and with `--ssl_replay`
            their published samples are written too. Without it the ratio counts the images.
        n: samples of each task, instead of by ratio.
        epoch: the epoch of training whose samples are written, from 0 up.
        jpeg_quality: 1 to 100; None writes PNG, bit by bit what training sees.
        chunk_size: samples a chunk: of a shard, and what an interruption can cost.
        workers: processes; all cores by default, shared among the ranks of one machine.

    Returns:
        one line for the terminal.

    Raises:
        ConfigError: a flag or path is wrong, or the folder holds something else; nothing was written.
    """
    _check(format, n, epoch, jpeg_quality, chunk_size, workers)
    given = Flags.of(flags)
    asks = given.resolve()
    if not given.wanted:
        raise ConfigError(f"--ssl_tasks is missing; known tasks: {', '.join(task_names())}")
    records = read_records(data_path)
    replay = find_replay(given, records or (), image_folder)
    made = streams(given, asks, records, image_folder, replay)
    if n is None:
        size = len(records) if records is not None else max((len(stream.source) for stream in made), default=0)
        numbers = counts(asks, given.ssl_ratio, size)
    else:
        numbers = [n if ask.weight else 0 for ask in asks]
    parts = [(stream, number) for stream, number in zip(made, numbers, strict=True) if number]
    listed = [] if replay is None else [(k, record) for k, record in enumerate(records) if k in replay]
    job = Export(parts, (replay, listed) if listed else None, epoch, format, jpeg_quality, output, chunk_size)
    settings = {
        "vgift_plugin": __version__,
        **{name: value for name, value in given.as_dict().items() if value is not None},
        "format": format,
        "epoch": epoch,
        "jpeg_quality": jpeg_quality,
        "chunk_size": chunk_size,
        "samples": job.sizes(),
        "sources": {stream.task.name: f"{stream.source.where}, {stream.source.fingerprint()}" for stream, _ in parts},
    }
    if listed:
        settings["sources"]["published"] = ", ".join(f"{one.where}, {one.fingerprint()}" for one in replay.sources)
    if _finished(output, settings):
        return f"{output}: complete already, nothing to do"
    return _run(job, settings, workers)


def _check(format: str, n: int | None, epoch: int, quality: int | None, chunk_size: int, workers: int | None) -> None:
    mistakes = []
    if format not in FORMATS:
        mistakes.append(f"--format {format}: must be one of {', '.join(FORMATS)}")
    if format == "webdataset":
        try:
            import webdataset  # noqa: F401
        except ImportError:
            mistakes.append("--format webdataset needs the webdataset library: pip install 'vgift-plugin[webdataset]'")
    if quality is not None and not 1 <= quality <= 100:
        mistakes.append(f"--jpeg_quality {quality}: must be 1 to 100")
    if epoch < 0:
        mistakes.append(f"--epoch {epoch}: must be 0 or more")
    for name, value in (("-n", n), ("--chunk_size", chunk_size), ("--workers", workers)):
        if value is not None and value < 1:
            mistakes.append(f"{name} {value}: must be at least 1")
    if mistakes:
        raise ConfigError.of(mistakes)


def _finished(output: str, settings: dict) -> bool:
    """Tells whether this very export is complete; makes the folder and writes the settings down where it is new."""
    folder = Path(output)
    for path in (folder / RESULT, folder / PARTS / "settings.json"):
        if path.exists():
            there = json.loads(path.read_text(encoding="utf-8"))
            there.pop("redraws", None)
            differing = [name for name in {**there, **settings} if there.get(name) != settings.get(name)]
            if differing:
                lines = [f"{name}: {there.get(name)!r} there, {settings.get(name)!r} now" for name in differing]
                raise ConfigError(
                    f"-o {output}: holds an export with other settings; choose another folder, or remove it.\n  "
                    + "\n  ".join(lines)
                )
            return path.name == RESULT
    if folder.exists() and any(folder.iterdir()) and not (folder / PARTS).is_dir():
        raise ConfigError(f"-o {output}: exists and holds other files; choose a new folder")
    _replace(folder / PARTS / "settings.json", json.dumps(settings).encode())
    return False


_job: Export | None = None


def _start(job: Export) -> None:
    global _job
    _job = job


def _write(chunk: Chunk) -> int:
    return _job.write(chunk)


def _run(job: Export, settings: dict, workers: int | None) -> str:
    """Writes this rank's share of the chunks, and assembles where all are done."""
    from tqdm import tqdm

    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    chunks = job.chunks()
    mine = [chunk for chunk in chunks[rank::ranks] if not job.receipt(chunk).exists()]
    local = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    workers = min(workers or max(1, _cores() // local), max(1, len(mine)))
    total = sum(chunk.stop - chunk.start for chunk in chunks[rank::ranks])
    done = total - sum(chunk.stop - chunk.start for chunk in mine)
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else None)
    label = "export" if ranks == 1 else f"export, rank {rank}"
    often = 0.1 if sys.stderr.isatty() else 10.0  # seconds between two lines of progress
    with tqdm(total=total, initial=done, unit=" samples", desc=label, mininterval=often, disable=rank > 0) as bar:
        if workers == 1:
            for chunk in mine:
                bar.update(job.write(chunk))
        else:
            with ProcessPoolExecutor(workers, context, initializer=_start, initargs=(job,)) as pool:
                futures = [pool.submit(_write, chunk) for chunk in mine]
                try:
                    for future in as_completed(futures):
                        bar.update(future.result())
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
    return _assemble(job, settings, chunks)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _assemble(job: Export, settings: dict, chunks: Sequence[Chunk]) -> str:
    """Joins the receipts once all are there. Several processes may do so at once: each writes the same bytes."""
    output = Path(job.output)
    waiting = [chunk for chunk in chunks if not job.receipt(chunk).exists()]
    if waiting and not (output / RESULT).exists():
        return f"{output}: this rank is done; {len(waiting):,} of {len(chunks):,} chunks are other ranks'"
    redraws: dict[str, Counter[str]] = {}
    try:
        if job.format in INDEX:
            _replace(output / INDEX[job.format], b"".join(_index(job, chunks)))
        for chunk in chunks:
            receipt = json.loads(job.receipt(chunk).read_text(encoding="utf-8"))
            redraws.setdefault(chunk.part, Counter()).update(receipt["redraws"])
        told = {part: dict(sorted(reasons.items())) for part, reasons in redraws.items() if reasons}
        _replace(output / RESULT, json.dumps({**settings, "redraws": told}, indent=2).encode() + b"\n")
    except FileNotFoundError:
        if not (output / RESULT).exists():  # else another rank was faster, and has removed the receipts
            raise
    with suppress(FileNotFoundError):
        shutil.rmtree(output / PARTS)
    passed = sum(sum(reasons.values()) for reasons in redraws.values())
    listed = ", ".join(f"{size:,} {part}" for part, size in job.sizes().items())
    return f"{output}: {listed} ({passed:,} unsuitable image{'s' * (passed != 1)} passed over)"


def _index(job: Export, chunks: Sequence[Chunk]) -> Iterator[bytes]:
    """Yields the index file: a JSON list for `llava`, lines for `messages`."""
    lead, between, end = ("[\n", ",\n", "\n]\n") if job.format == "llava" else ("", "\n", "\n")
    for chunk in chunks:
        for entry in json.loads(job.receipt(chunk).read_text(encoding="utf-8"))["entries"]:
            yield (lead + json.dumps(entry)).encode()
            lead = between
    yield end.encode()
