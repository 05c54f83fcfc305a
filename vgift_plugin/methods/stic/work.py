"""Work on a numbered list by a model: in blocks, by any number of ranks, resumable, the same however it was shared.

Everything on the way lies in the folder `OUTPUT.parts`:
  settings.json   what the run was begun with; a resume with something else is refused
  list.json       what is worked on, decided by the first rank that comes to it
  rank-R.jsonl    a line for each number that rank R has finished
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ... import __version__
from ...data.files import publish, write_whole
from ...data.journal import Journal, read_journals, require_same
from ...data.photos import fingerprint, open_photo
from ...errors import ConfigError, UnsuitableImage
from ...hosts.checkpoint import Checkpoint, device_of
from ...hosts.loading import Found, find

logger = logging.getLogger(__name__)
Key = TypeVar("Key", int, str)

THREADS = 4  # that decode pictures while choosing; Pillow lets go of the interpreter
CHUNK = 256
NAMED = 20  # names on the terminal; all of them are in the report


@dataclass(frozen=True)
class Work:
    """One rank's place in the work.

    Attributes:
        parts: the folder that all ranks share.
        rank: from 0 up.
        world: how many there are.
    """

    parts: Path
    rank: int
    world: int

    @classmethod
    def begin(cls, output: str, settings: dict[str, Any]) -> Work:
        """Records the settings of new work beside its output, or goes on with what was begun.

        Under torchrun rank and number of ranks are those of RANK and WORLD_SIZE.

        Raises:
            ConfigError: the output is there and was not made here, the folder cannot be made, or it was begun with
                other settings.
        """
        rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        parts = Path(f"{output}.parts")
        if not 0 <= rank < world:
            raise ConfigError(f"RANK {rank} is not below WORLD_SIZE {world}")
        if Path(output).exists() and not (parts / "settings.json").exists():
            raise ConfigError(
                f"-o {output} exists, and {parts} does not, so nothing can be gone on with; name another file"
            )
        try:
            parts.mkdir(parents=True, exist_ok=True)
            publish(parts / "settings.json", json.dumps(settings, indent=1).encode())
        except OSError as err:
            raise ConfigError(f"-o {output}: {err}") from None
        cure = "Give those it was begun with, or another output, or remove output and folder to begin anew."
        require_same(json.loads((parts / "settings.json").read_text()), settings, parts, cure)
        return cls(parts, rank, world)

    def agree(self, make: Callable[[], Any]) -> Any:
        """Returns what is worked on: JSON, made by the first rank that needs it, the same for all."""
        path = self.parts / "list.json"
        if not path.exists():
            try:
                publish(path, json.dumps(make()).encode())
            except ConfigError:  # nothing to work on: nothing was begun
                (self.parts / "settings.json").unlink(missing_ok=True)
                with suppress(OSError):
                    self.parts.rmdir()
                raise
        return json.loads(path.read_text())

    def complete(
        self, total: int, batch_size: int, ask: Callable[[range], list[dict]], what: str
    ) -> list[dict[str, Any]] | None:
        """Does this rank's share; returns the rows 0 to total - 1, or None while other ranks' are missing.

        Blocks of `batch_size` numbers are dealt out in turn, and a block is asked whole even where a part of it is
        done: what goes through the model together never depends on the number of ranks or on interruptions.
        """
        from tqdm import tqdm

        journal = Journal(self.parts / f"rank-{self.rank}.jsonl")
        try:
            done = read_journals(self.parts, "number").keys()
            blocks = [range(start, min(start + batch_size, total)) for start in range(0, total, batch_size)]
            own = blocks[self.rank :: self.world]
            mine = [block for block in own if not done >= set(block)]
            there = sum(number in done for block in own for number in block)
            if done:
                logger.info("%s: %d of %d are done already", what, len(done), total)
            quiet = int(os.environ.get("LOCAL_RANK", 0)) != 0
            with tqdm(total=sum(map(len, own)), initial=there, desc=what, unit="", disable=quiet) as bar:
                for block in mine:
                    rows = zip(block, ask(block), strict=True)
                    lines = [json.dumps({"number": k, **row}) for k, row in rows if k not in done]
                    journal.append(lines)
                    bar.update(len(lines))
        finally:
            journal.close()
        found = read_journals(self.parts, "number")
        return [found[number] for number in range(total)] if len(found) == total else None

    def left(self) -> str:
        """Returns what is to be said where other ranks are not done."""
        return f"rank {self.rank} of {self.world} is done; the last rank to finish writes the file"


@dataclass(frozen=True)
class Asking:
    """What both jobs are told about model and sampling, checked; see `prefer.prefer` for each.

    Raises:
        ConfigError: numbers are out of range, naming all of them, or the folder is not there.
    """

    model_path: str
    model_base: str | None
    conv_mode: str | None
    image_folder: str
    n: int
    temperature: float
    max_new_tokens: int
    seed: int
    batch_size: int
    device: str | None

    def __post_init__(self):
        mistakes = [
            f"{flag} {value}: at least {least}"
            for flag, value, least in (
                ("-n", self.n, 1),
                ("--temperature", self.temperature, 0),
                ("--max-new-tokens", self.max_new_tokens, 1),
                ("--batch-size", self.batch_size, 1),
            )
            if value < least
        ]
        if mistakes:
            raise ConfigError.of(mistakes)
        if not Path(self.image_folder).is_dir():
            raise ConfigError(f"--image_folder {self.image_folder}: there is no such folder")

    @property
    def sampling(self) -> dict[str, Any]:
        """What replies depend on besides the question."""
        return {"temperature": self.temperature, "max_new_tokens": self.max_new_tokens, "seed": self.seed}

    def find(self) -> tuple[Found, str]:
        """Returns what the checkpoint is and where this rank asks it; at once, before folders and records are read.

        Raises:
            ConfigError: the checkpoint or the device is not usable.
        """
        return find(self.model_path, self.model_base, self.conv_mode), rank_device(self.device)

    def begin(self, found: Found, where: str, output: str, worked_on: dict[str, str], prompts: Iterable[str]) -> Begun:
        """Records the settings of new work, or goes on with what was begun.

        Args:
            found, where: see `find`.
            output: see `Work.begin`.
            worked_on: {what: fingerprint}.
            prompts: that the model is asked with.

        Raises:
            ConfigError: see `Work.begin`.
        """
        settings = {
            "--model-path": self.model_path,
            "--model-base": self.model_base,
            "--conv-mode": found.template,
            "weights": found.weights,
            **worked_on,
            "n": self.n,
            **self.sampling,
            "batch size": self.batch_size,
            "device": where.partition(":")[0],
            "prompts": fingerprint(prompts),
            "vgift-plugin": __version__,
        }
        load = functools.cache(lambda: Checkpoint.of(found, where))  # not at all where all is done
        return Begun(Work.begin(output, settings), settings, found.template, load)


class Begun(NamedTuple):
    """Work with its settings, the checkpoint's chat template, and what loads the checkpoint, once."""

    work: Work
    settings: dict[str, Any]
    template: str
    load: Callable[[], Checkpoint]


def write_report(output: str, told: dict[str, Any], settings: dict[str, Any]) -> None:
    """Writes `OUTPUT.report.json`."""
    write_whole(Path(f"{output}.report.json"), (json.dumps({**told, "settings": settings}, indent=1) + "\n").encode())


def first_readable(
    candidates: Iterable[tuple[Key, str]], n: int, least_px: int = 1
) -> tuple[list[Key], dict[Key, str]]:
    """Returns the first n candidates whose pictures can be read, and {candidate: why not} of those before them.

    Args:
        candidates: (name or number, path of the picture), in the order they are wanted.
        n: how many; fewer come where there are no more.
        least_px: shorter sides below it are `too small`.
    """
    from tqdm import tqdm

    def examine(path: str) -> str | None:
        try:
            return "too small" if min(open_photo(path, upright=False).size) < least_px else None
        except UnsuitableImage as unsuitable:
            return unsuitable.reason

    chosen: list[Key] = []
    passed_over: dict[Key, str] = {}
    left = iter(candidates)
    quiet = int(os.environ.get("LOCAL_RANK", 0)) != 0
    with ThreadPoolExecutor(THREADS) as pool, tqdm(total=n, desc="choosing pictures", unit="", disable=quiet) as bar:
        while len(chosen) < n and (chunk := list(islice(left, min(CHUNK, n - len(chosen))))):
            before = len(chosen)
            for (key, _), reason in zip(chunk, pool.map(examine, (path for _, path in chunk)), strict=True):
                if reason is None:
                    chosen.append(key)
                else:
                    passed_over[key] = reason
            bar.update(len(chosen) - before)
    return chosen, passed_over


def listed(what: str, reasons: dict[str, str]) -> str:
    """Returns {name: reason} for the terminal: counts by reason, then the first names; nothing where it is empty."""
    if not reasons:
        return ""
    counts: dict[str, int] = {}
    for reason in reasons.values():
        counts[reason] = counts.get(reason, 0) + 1
    lines = [f"{what}: " + ", ".join(f"{reason} {count:,}" for reason, count in counts.items())]
    lines += [f"  {name}: {reason}" for name, reason in islice(reasons.items(), NAMED)]
    lines += [f"  … and {len(reasons) - NAMED:,} more"] if len(reasons) > NAMED else []
    return "\n" + "\n".join(lines)


def rank_device(wanted: str | None) -> str:
    """Returns where this rank computes: what was asked for, else its own GPU, else the CPU; see `device_of`."""
    device = device_of(wanted)
    rank, world = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return device_of(f"cuda:{rank}") if device == "cuda" and world > 1 else device
