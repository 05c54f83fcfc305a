"""Jobs: numbered items, each computed once, by any number of processes that can be interrupted at any time.

A job keeps its progress in a folder of parts:
  rank-R.jsonl   a journal: the settings, then a line for each item that rank R has computed
  NAME.json      a value shared by all ranks, see `Job.agree`
  tmp-R/         temporary files of rank R, removed at its end or by its next run
The result is the same for any number of ranks, worker processes and interruptions.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ..errors import ConfigError
from .files import is_intact, publish, write_files
from .journal import Items, Journal, cure, require_same
from .workers import Compute, computed

logger = logging.getLogger(__name__)
J = TypeVar("J", bound="Job")

POLL_S = 0.5
SHOWN = 3  # names in a message


class Ranks(NamedTuple):
    """Rank and number of processes, in total and on this machine; without torchrun, a single process."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @classmethod
    def here(cls) -> Ranks:
        """Returns the ranks of this process from torchrun's environment variables.

        Raises:
            ConfigError: RANK is not below WORLD_SIZE.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        ranks = cls(*(int(os.environ.get(name, default)) for name, default in zip(names, cls(), strict=True)))
        if not 0 <= ranks.rank < ranks.world:
            raise ConfigError(f"RANK {ranks.rank} is not below WORLD_SIZE {ranks.world}")
        return ranks

    @property
    def cores(self) -> int:
        """Number of cores for this rank: the machine's cores divided by its ranks, at least 1."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, cores // max(1, self.local_world))


def progress(total: int, what: str, done: int = 0) -> Any:
    """Returns a progress bar, shown by one rank per machine; in a log file it prints a line every ten seconds."""
    from tqdm import tqdm

    often, quiet = 0.1 if sys.stderr.isatty() else 10.0, Ranks.here().local_rank != 0
    return tqdm(total=total, initial=done, desc=what, unit="", mininterval=often, disable=quiet)


class Job:
    """One rank's share of a job; a context manager.

    Args:
        where: the folder of parts; with `alone`, the only journal.
        settings: everything the items depend on, JSON. A resumed job must have the same settings.
        flag: the flag that chooses another location, for messages.
        remove: what to delete to start over, for messages.
        root: the folder of the items' files, see `complete`.
        alone: whether there is only one process, with `where` as its journal.

    Attributes:
        scratch: a folder for temporary files.
        computed: number of items that this process has computed.

    Raises:
        ConfigError: the location is not writable, was begun with other settings, or is in use by another process.
    """

    def __init__(
        self,
        where: Path,
        settings: dict[str, Any],
        *,
        flag: str = "-o",
        remove: str | None = None,
        root: Path | None = None,
        alone: bool = False,
    ):
        self.ranks = Ranks() if alone else Ranks.here()
        self.where, self.root, self.settings = where, root or where, json.loads(json.dumps(settings))
        self._cure = cure(flag, remove or where)
        self.computed = 0
        self.scratch = where.parent / f".{where.name}.tmp" if alone else where / f"tmp-{self.ranks.rank}"
        journal = where if alone else where / f"rank-{self.ranks.rank}.jsonl"
        self._items = Items(journal.parent, journal.name if alone else "rank-*.jsonl", self.settings, self._cure)
        try:
            journal.parent.mkdir(parents=True, exist_ok=True)
            self._journal = Journal(journal, flag)
        except OSError as err:
            raise ConfigError(f"{flag}: {err}") from err
        shutil.rmtree(self.scratch, ignore_errors=True)  # of a killed process; its journal's lock is free
        try:
            self._items.refresh()
            if self._journal.is_empty:
                self._journal.append([{"settings": self.settings}])
                self._items.refresh()  # if two ranks start at once with different settings, one of them notices
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the journal, and removes temporary files, and the journal and the folder if they hold no items."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        self._journal.close()
        with suppress(OSError):  # the folder is not empty, or a file
            self.where.rmdir()

    def __enter__(self: J) -> J:
        return self

    def __exit__(self, kind, error, traceback):
        self.close()
        if isinstance(error, KeyboardInterrupt):
            logger.warning("interrupted; run the same command again to go on")
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ConfigError(
                f"{error.filename}: {error.strerror}. Make room and run the same command again; it goes on from here."
            ) from error

    def agree(self, name: str, make: Callable[[], Any]) -> Any:
        """Returns a JSON value that is the same for all ranks: the first rank to need it computes and stores it."""
        path = self.where / f"{name}.json"
        if not path.exists():
            publish(path, json.dumps({"settings": self.settings, "value": make()}).encode())
        agreed = json.loads(path.read_bytes())
        require_same(agreed["settings"], self.settings, path, self._cure)
        return agreed["value"]

    def complete(
        self, part: str, total: int, compute: Compute, *, block_size: int = 1, workers: int = 1, wait: bool = False
    ) -> Iterator[dict[str, Any]] | None:
        """Computes this rank's share of the items 0 to total - 1 of a part.

        Blocks of `block_size` items are assigned to the ranks in turn. A block is always computed as a whole, even if
        some of its items are done, so that model batches do not depend on ranks or interruptions.

        Args:
            part: name of the items.
            total: number of items.
            compute: returns the items of a block, JSON objects. It may write files; an item lists them as
                "files": {path relative to `root`: digest}, and is recomputed if they are missing or damaged.
            block_size: number of items computed together.
            workers: number of worker processes.
            wait: whether to wait for the other ranks.

        Returns:
            the items of all ranks in order, each with its "number"; None if other ranks have not finished.

        Raises:
            ConfigError: a worker process was killed.
        """
        blocks = [range(start, min(start + block_size, total)) for start in range(0, total, block_size)]
        own = blocks[self.ranks.rank :: self.ranks.world]
        done = self._intact(part, {number for block in own for number in block})
        left = [block for block in own if not done >= set(block)]
        there = sum(number in done for block in own for number in block)
        if done:
            logger.info("%s: %d of %d are done already", part, len(done), total)
        with closing(computed(left, compute, workers)) as results, progress(sum(map(len, own)), part, there) as bar:
            for block, items in results:
                new = [(k, item) for k, item in zip(block, items, strict=True) if k not in done]
                self._journal.append({"part": part, "number": k, **item} for k, item in new)
                self.computed += len(new)
                bar.update(len(new))
        missing = self._missing(part, total)
        if missing and wait:
            ranks = ", ".join(map(str, sorted({number // block_size % self.ranks.world for number in missing})))
            logger.info("%s: waiting for %d of %d, of rank %s", part, len(missing), total, ranks)
            with progress(total, f"{part}, waiting for rank {ranks}", total - len(missing)) as bar:
                while missing := self._missing(part, total):
                    bar.update(total - len(missing) - bar.n)
                    time.sleep(POLL_S)
        if missing:
            return None
        lines = self._items.lines.get(part, {})
        entries = (json.loads(lines[number]) for number in range(total))
        return ({name: value for name, value in entry.items() if name != "part"} for entry in entries)

    def left(self, part: str, total: int) -> str:
        """Returns the message for the user when `complete` returned None."""
        return (
            f"rank {self.ranks.rank} of {self.ranks.world} is done; {len(self._missing(part, total)):,} of {total:,} "
            f"{part} are left for the other ranks, and the last one to finish writes the result"
        )

    def _missing(self, part: str, total: int) -> list[int]:
        self._items.refresh()
        lines = self._items.lines.get(part, {})
        return [number for number in range(total) if number not in lines]

    def _intact(self, part: str, own: set[int]) -> set[int]:
        """Returns the numbers of the finished items whose files are intact.

        Files of this rank's items are checked by hash, those of other ranks by size.
        """
        lines, damaged = self._items.lines.setdefault(part, {}), {}
        for number, line in sorted(lines.items()):
            for name, recorded in json.loads(line).get("files", {}).items():
                if not is_intact(self.root / name, recorded, number in own):
                    damaged[name] = number
        if damaged:
            named = ", ".join(list(damaged)[:SHOWN]) + (", …" if len(damaged) > SHOWN else "")
            logger.warning("%d files are missing or damaged and are made again: %s", len(damaged), named)
        for number in set(damaged.values()):
            del lines[number]
        return set(lines)


class FileJob(Job):
    """A job whose result is one file, next to `OUTPUT.parts` and `OUTPUT.report.json`.

    Args:
        output: the file.
        settings: see `Job`.

    Raises:
        ConfigError: see `Job`; or the file exists without its parts.
    """

    def __init__(self, output: str, settings: dict[str, Any]):
        self.output, parts = Path(output), Path(f"{output}.parts")
        if self.output.exists() and not parts.exists():
            raise ConfigError(f"-o {output} exists, and {parts} does not, so it cannot be resumed; name another file")
        super().__init__(parts, settings, remove=f"{output} and {parts}")

    def write(self, content: str, report: dict[str, Any]) -> None:
        """Writes the report, then the result."""
        told = json.dumps({**report, "settings": self.settings}, indent=1) + "\n"
        files = [(f"{self.output.name}.report.json", told.encode()), (self.output.name, content.encode())]
        write_files(self.output.parent, files, self.scratch)
