"""The export as a job: what is to be written, by whom, and how the parts become one."""

from __future__ import annotations

import json
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
from typing import ClassVar, Optional

from .... import __version__
from ....data.arguments import option
from ....data.files import write_whole
from ....data.records import read_records
from ....errors import ConfigError
from ....tasks.registry import task_names
from ..flags import VgiftFlags, counts
from ..streams import find_replay, streams
from .chunks import PARTS, Chunk, Export

FORMATS = ("llava", "webdataset", "messages")
INDEX = {"llava": "vgift.json", "messages": "vgift.jsonl"}
RESULT = "export.json"


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
    given = VgiftFlags.of(flags)
    asks = given.tasks()
    if not given.makes_samples:
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
    write_whole(folder / PARTS / "settings.json", json.dumps(settings).encode())
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
            write_whole(output / INDEX[job.format], b"".join(_index(job, chunks)))
        for chunk in chunks:
            receipt = json.loads(job.receipt(chunk).read_text(encoding="utf-8"))
            redraws.setdefault(chunk.part, Counter()).update(receipt["redraws"])
        told = {part: dict(sorted(reasons.items())) for part, reasons in redraws.items() if reasons}
        write_whole(output / RESULT, json.dumps({**settings, "redraws": told}, indent=2).encode() + b"\n")
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


@dataclass(frozen=True, kw_only=True)
class ExportSamples(VgiftFlags):
    """Write the samples training would see to files, for trainers that cannot load a plugin."""

    EXAMPLE: ClassVar[str] = (
        "example:\n  vgift export --ssl_tasks rotation,color --ssl_ratio 0.1 --data_path mix.json \\\n"
        "      --image_folder DIR -o OUT --format webdataset\n\n"
        "Run it again to go on after an interruption; run it under torchrun to share the work between machines."
    )

    image_folder: str = option(help="images; with --data_path what its paths are relative to", metavar="DIR")
    data_path: Optional[str] = option(None, "LLaVA records: the ratio counts them, images are theirs", metavar="JSON")
    output: str = option(help="a new folder", short="-o", metavar="DIR")
    format: str = option(help="llava, webdataset or messages", metavar="F")
    n: Optional[int] = option(None, "samples of each task, instead of --ssl_ratio", short="-n", metavar="N")
    epoch: int = option(0, "whose samples: epoch E of training", metavar="E")
    jpeg_quality: Optional[int] = option(None, "JPEG of this quality; PNG, lossless, by default", metavar="Q")
    chunk_size: int = option(500, "samples in a chunk, which is a shard", metavar="N")
    workers: Optional[int] = option(None, "processes; all cores by default", metavar="N")

    def run(self) -> str:
        """See `export`."""
        names = ("image_folder", "output", "format", "data_path", "n", "epoch", "jpeg_quality", "chunk_size", "workers")
        return export(self.as_dict(), **{name: getattr(self, name) for name in names})
