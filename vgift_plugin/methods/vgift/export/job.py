"""The export as a job: its items are chunks, and the index is written when all are complete."""

from __future__ import annotations

import importlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
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
from ..grid import HELP, fitted, grid_of
from ..streams import find_replay, streams
from .chunks import Export

FORMATS = ("llava", "webdataset", "messages", "verl", "trl")
INDEX = {"llava": "vgift.json", "messages": "vgift.jsonl"}
RESULT = "export.json"
NEEDS = {"webdataset": ("webdataset", "webdataset"), "verl": ("pyarrow", "rl"), "trl": ("pyarrow", "rl")}
PARTS = ".parts"


@dataclass(frozen=True, kw_only=True)
class ExportSamples(VgiftFlags):
    """Write the samples training would see to files, for trainers that cannot load a plugin.

    An interrupted export is continued. With data_path, --ssl_ratio counts its records, samples are made of their images
    and with --ssl_replay their published samples are written too; without it the ratio counts the images.
    """

    UNUSED: ClassVar[tuple[str, ...]] = ("ssl_control", "ssl_eval_steps")
    EXAMPLE: ClassVar[str] = (
        "example:\n  vgift export --ssl_tasks rotation,color --ssl_ratio 0.1 --data_path mix.json \\\n"
        "      --image_folder DIR -o OUT --format webdataset\n\n"
        "Run it again to go on after an interruption; run it under torchrun to share the work between machines."
    )

    image_folder: str = option(help="images; with --data_path what its paths are relative to", metavar="DIR")
    data_path: Optional[str] = option(None, "LLaVA records: the ratio counts them, images are theirs", metavar="JSON")
    output: str = option(help="a new folder", short="-o", metavar="DIR")
    format: str = option(
        help="llava (pictures and vgift.json), webdataset (tar shards, a folder for each task), messages (pictures "
        "and vgift.jsonl), verl or trl (Parquet files in the columns of that trainer, a folder for each task)",
        metavar="F",
    )
    n: Optional[int] = option(None, "samples of each task, instead of --ssl_ratio", short="-n", metavar="N")
    epoch: int = option(0, "whose samples: epoch E of training", metavar="E")
    jpeg_quality: Optional[int] = option(None, "JPEG of this quality; PNG, lossless, by default", metavar="Q")
    grid: Optional[str] = option(None, HELP, metavar="S,MIN,MAX")
    chunk_size: int = option(500, "samples in a chunk, which is a shard or a Parquet file", metavar="N")
    workers: Optional[int] = option(None, "processes; all cores by default", metavar="N")

    def run(self) -> str:
        """Returns one line for the terminal.

        Raises:
            ConfigError: a flag or path is wrong, or the folder holds something else; nothing was written.
        """
        self._check()
        given = VgiftFlags.of(self)
        grid = grid_of(self.grid)
        asks = fitted(given.tasks(), grid)
        if not given.makes_samples:
            raise ConfigError(f"--ssl_tasks is missing; known tasks: {', '.join(task_names())}")
        records = read_records(self.data_path)
        replay = find_replay(given, records or (), self.image_folder)
        made = streams(given, asks, records, self.image_folder, replay)
        if self.n is None:
            size = len(records) if records is not None else max((len(stream.source) for stream in made), default=0)
            numbers = counts(asks, given.ssl_ratio, size)
        else:
            numbers = [self.n if ask.weight else 0 for ask in asks]
        parts = [(stream, number) for stream, number in zip(made, numbers, strict=True) if number]
        listed = [] if replay is None else [(k, record) for k, record in enumerate(records or ()) if k in replay]
        what = Export(
            parts,
            (replay, listed) if replay is not None and listed else None,
            self.epoch,
            self.format,
            self.jpeg_quality,
            self.output,
            self.chunk_size,
            grid,
        )
        settings = {
            "vgift_plugin": __version__,
            **{name: value for name, value in given.as_dict().items() if value is not None},
            "format": self.format,
            "epoch": self.epoch,
            "jpeg_quality": self.jpeg_quality,
            "chunk_size": self.chunk_size,
            **({"grid": self.grid} if grid else {}),
            "samples": what.sizes(),
            "sources": {
                stream.task.name: f"{stream.source.where}, {stream.source.fingerprint()}" for stream, _ in parts
            },
        }
        if replay is not None and listed:
            settings["sources"]["published"] = ", ".join(f"{one.where}, {one.fingerprint()}" for one in replay.sources)
        finished = _finished(self.output, settings)
        with Job(Path(self.output, PARTS), settings, remove=self.output, root=Path(self.output)) as job:
            total, write = len(what.chunks), partial(what.write, job.scratch)
            chunks = job.complete("chunks", total, write, workers=self.workers or job.ranks.cores)
            if chunks is None:
                return job.left("chunks", total)
            told = _assemble(what, settings, chunks, job.scratch)
        return f"{self.output}: complete already, nothing to do" if finished and not job.computed else told

    def _check(self) -> None:
        mistakes = []
        if self.format not in FORMATS:
            mistakes.append(f"--format {self.format}: must be one of {', '.join(FORMATS)}")
        library, extra = NEEDS.get(self.format, (None, None))
        if library is not None:
            try:
                importlib.import_module(library)
            except ImportError:
                mistakes.append(
                    f"--format {self.format} needs the {library} library: pip install 'vgift-plugin[{extra}]'"
                )
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality <= 100:
            mistakes.append(f"--jpeg_quality {self.jpeg_quality}: must be 1 to 100")
        if self.epoch < 0:
            mistakes.append(f"--epoch {self.epoch}: must be 0 or more")
        for name, value in (("-n", self.n), ("--chunk_size", self.chunk_size), ("--workers", self.workers)):
            if value is not None and value < 1:
                mistakes.append(f"{name} {value}: must be at least 1")
        if mistakes:
            raise ConfigError.of(mistakes)


def _finished(output: str, settings: dict) -> bool:
    """Returns whether this export was finished before.

    Raises:
        ConfigError: the folder holds another export, or other files.
    """
    result = Path(output, RESULT)
    if result.exists():
        try:
            begun = dict(json.loads(result.read_bytes()))
        except (OSError, ValueError, TypeError) as err:
            raise ConfigError(f"{result}: is damaged ({err}); remove it, and the export is completed again") from err
        begun.pop("redraws", None)
        require_same(begun, json.loads(json.dumps(settings)), result, cure("-o", output))
        return True
    if os.path.isdir(output) and os.listdir(output) and not Path(output, PARTS).is_dir():
        raise ConfigError(f"-o {output}: exists and holds other files; choose a new folder")
    return False


def _assemble(what: Export, settings: dict, chunks: Iterable[dict], scratch: Path) -> str:
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
    write_files(output, [*files, (RESULT, result)], scratch)
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
