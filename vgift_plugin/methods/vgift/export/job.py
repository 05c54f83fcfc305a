"""The export as a job: its items are chunks, and the index is written when all are complete."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Optional

from .... import __version__
from ....data.arguments import option
from ....data.files import write_files
from ....data.jobs import Job
from ....data.journal import cure, require_same
from ....data.records import read_records
from ....errors import ConfigError
from ....tasks.registry import task_names
from ..flags import VgiftFlags, counts
from ..streams import find_replay, streams
from .chunks import PARTS, Export

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
    """Writes the samples, and resumes an interrupted export.

    Args:
        flags: {flag: value} as given.
        image_folder: LLaVA's image folder; without `data_path`, the folder of images to make samples from.
        output: a folder used only for this export.
        format: `llava` (pictures and vgift.json), `webdataset` (tar shards, a folder per task), or `messages` (pictures
            and vgift.jsonl).
        data_path: LLaVA records. `--ssl_ratio` is relative to their number, samples are made from their images, and
            with `--ssl_replay` their published samples are also written. Without it the ratio is relative to the
            number of images.
        n: samples of each task, instead of the ratio.
        epoch: the epoch of training whose samples are written, from 0 up.
        jpeg_quality: 1 to 100; None writes PNG, with exactly the pixels of training.
        chunk_size: samples per chunk, which is a shard and the most that an interruption can lose per process.
        workers: processes; by default all cores, shared among the ranks of a machine.

    Returns:
        one line for the terminal.

    Raises:
        ConfigError: a flag or path is invalid, or the folder holds something else; nothing was written.
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
    what = Export(parts, (replay, listed) if listed else None, epoch, format, jpeg_quality, output, chunk_size)
    settings = {
        "vgift_plugin": __version__,
        **{name: value for name, value in given.as_dict().items() if value is not None},
        "format": format,
        "epoch": epoch,
        "jpeg_quality": jpeg_quality,
        "chunk_size": chunk_size,
        "samples": what.sizes(),
        "sources": {stream.task.name: f"{stream.source.where}, {stream.source.fingerprint()}" for stream, _ in parts},
    }
    if listed:
        settings["sources"]["published"] = ", ".join(f"{one.where}, {one.fingerprint()}" for one in replay.sources)
    if _finished(output, settings):
        shutil.rmtree(Path(output, PARTS), ignore_errors=True)  # left if killed after writing the result
        return f"{output}: complete already, nothing to do"
    with Job(Path(output, PARTS), settings, remove=output, root=Path(output)) as job:
        total = len(what.chunks)
        chunks = job.complete("chunks", total, what.write, workers=workers or job.ranks.cores)
        if chunks is not None:
            return _assemble(what, settings, chunks)
        if _finished(output, settings):  # another rank was faster
            return f"{output}: complete"
        return job.left("chunks", total)


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
    """Returns whether this export is complete.

    Raises:
        ConfigError: the folder holds another export, or other files.
    """
    result = Path(output, RESULT)
    if result.exists():
        begun = json.loads(result.read_text(encoding="utf-8"))
        begun.pop("redraws", None)
        require_same(begun, json.loads(json.dumps(settings)), result, cure("-o", output))
        return True
    if os.path.isdir(output) and os.listdir(output) and not Path(output, PARTS).is_dir():
        raise ConfigError(f"-o {output}: exists and holds other files; choose a new folder")
    return False


def _assemble(what: Export, settings: dict, chunks: Iterable[dict]) -> str:
    """Writes index and result from all chunks; several ranks may do so at once, since they write the same bytes."""
    output = Path(what.output)
    redraws: dict[str, Counter[str]] = {part: Counter() for part in what.sizes()}

    def entries() -> Iterator[dict]:
        for chunk, written in zip(what.chunks, chunks, strict=True):
            redraws[chunk.part].update(written["redraws"])
            yield from written["entries"]

    index = b"".join(_index(entries(), what.format))
    told = {part: dict(sorted(reasons.items())) for part, reasons in redraws.items() if reasons}
    result = json.dumps({**settings, "redraws": told}, indent=2).encode() + b"\n"
    files = [(INDEX[what.format], index)] if what.format in INDEX else []
    write_files(output, [*files, (RESULT, result)], output / PARTS)
    shutil.rmtree(output / PARTS, ignore_errors=True)
    passed = sum(sum(reasons.values()) for reasons in redraws.values())
    listed = ", ".join(f"{size:,} {part}" for part, size in what.sizes().items())
    return f"{output}: {listed} ({passed:,} unsuitable image{'s' * (passed != 1)} passed over)"


def _index(entries: Iterable[dict], format: str) -> Iterator[bytes]:
    """Yields the content of the index file: a JSON list for `llava`, JSON lines for `messages`."""
    lead, between, end = ("[\n", ",\n", "\n]\n") if format == "llava" else ("", "\n", "\n")
    for entry in entries:
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
