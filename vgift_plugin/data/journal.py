"""Journals: work is appended line by line as it is done, and a rerun with the same settings goes on from there."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError

logger = logging.getLogger(__name__)


class Journal:
    """Lines, only ever appended; a line that a killed process left unfinished is cut off first.

    Raises:
        ConfigError: another process writes it at this moment.
    """

    def __init__(self, path: Path):
        import fcntl

        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise ConfigError(f"{path} is being written by another process; has this been started twice?") from None
        except OSError as err:  # a file system without locks
            logger.debug("%s is not locked: %s", path, err)
        os.ftruncate(self._fd, path.read_bytes().rfind(b"\n") + 1)

    def append(self, lines: Iterable[str]) -> None:
        """Adds lines by one write."""
        data = "".join(f"{line}\n" for line in lines).encode()
        while data:
            data = data[os.write(self._fd, data) :]

    def close(self) -> None:
        """Hands the lines to the disk, where another machine may look for them."""
        os.fsync(self._fd)
        os.close(self._fd)


def read_lines(path: Path) -> list[dict]:
    """Returns the entries of a journal; an unfinished last line is left out.

    Raises:
        ConfigError: a line in its midst is damaged.
    """
    entries = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            entries.append(json.loads(line))
        except ValueError as err:
            raise ConfigError(
                f"{path}: line {number} is damaged ({err}); take it out, and what it told is done again"
            ) from None
    return entries


def read_journals(folder: Path, key: str) -> dict[int, dict]:
    """Returns {an entry's number, which it calls `key`: the entry} of all ranks' journals, `rank-*.jsonl`."""
    done: dict[int, dict] = {}
    for path in sorted(folder.glob("rank-*.jsonl")):
        for entry in read_lines(path):
            done.setdefault(entry[key], entry)
    return done


def require_same(begun: Mapping[str, Any], now: Mapping[str, Any], where: Path, cure: str) -> None:
    """Compares the settings of a resumed run with those it was begun with.

    Raises:
        ConfigError: they differ; it names every difference.
    """
    names = sorted(begun.keys() | now.keys())
    changed = [f"{n}: begun with {begun.get(n)}, now {now.get(n)}" for n in names if begun.get(n) != now.get(n)]
    if changed:
        raise ConfigError("\n  ".join([f"{where} was begun with other settings:", *changed]) + f"\n{cure}")
