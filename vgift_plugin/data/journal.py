"""Append-only journals of JSON lines. The first line holds the settings, each other line one item."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .files import naming

logger = logging.getLogger(__name__)

HEAD = b'{"settings": '
PATIENCE_S = 2.0  # for the lock: worker processes of a killed run hold it until they end, see `workers`


class Journal:
    """A journal that this process appends to. An unfinished last line, left by a killed process, is removed.

    Args:
        path: the journal; created if missing.
        flag: the flag that chooses another location, for messages.

    Raises:
        ConfigError: the file is not a journal (it is left unchanged), or is in use by another process.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path, flag: str):
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            self._lock()
            content = path.read_bytes()
            if not (content.startswith(HEAD) or HEAD.startswith(content)):
                raise ConfigError(f"{path} is no journal of vgift; give another {flag}")
            os.ftruncate(self._fd, content.rfind(b"\n") + 1)
        except BaseException:
            os.close(self._fd)
            raise

    def _lock(self) -> None:
        import fcntl

        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ConfigError(
                        f"{self.path} is being written by another process; has this been started twice?"
                    ) from None
                time.sleep(0.1)
            except OSError as err:
                return logger.debug("%s is not locked, its file system has no locks: %s", self.path, err)

    def append(self, entries: Iterable[dict[str, Any]]) -> None:
        """Appends a line for each entry; they are on disk (fsync) when this returns.

        Raises:
            OSError: they could not be written; the error names the journal.
        """
        data = "".join(json.dumps(entry) + "\n" for entry in entries).encode()
        with naming(self.path):
            while data:
                data = data[os.write(self._fd, data) :]
            os.fsync(self._fd)

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been written yet."""
        return os.fstat(self._fd).st_size == 0

    def close(self) -> None:
        """Closes the journal, and removes it if it holds no items."""
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            file.readline()
            if not file.readline().endswith(b"\n"):
                self.path.unlink()
        os.close(self._fd)


class Items:
    """The items of a job, read from the journals of all ranks and kept as text to save memory.

    Args:
        folder: the folder of the journals.
        pattern: glob of the journal files.
        settings: the settings that all journals must have.
        cure: what to do if they do not, for messages.

    Attributes:
        lines: {part: {number of the item: its line}}.
    """

    def __init__(self, folder: Path, pattern: str, settings: dict[str, Any], cure: str):
        self.folder, self.pattern, self.settings, self.cure = folder, pattern, settings, cure
        self.lines: dict[str, dict[int, bytes]] = {}
        self._ends: dict[Path, int] = {}

    def refresh(self) -> None:
        """Reads the lines added since the last call; an unfinished line is left for the next call.

        Raises:
            ConfigError: a journal has other settings, or a line is damaged.
        """
        for path in sorted(self.folder.glob(self.pattern)):
            with path.open("rb") as file:
                file.seek(self._ends.setdefault(path, 0))
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._take(path, line)
                    self._ends[path] += len(line)

    def _take(self, path: Path, line: bytes) -> None:
        try:
            entry = json.loads(line)
            if self._ends[path]:
                self.lines.setdefault(entry["part"], {})[entry["number"]] = line
            else:
                require_same(entry["settings"], self.settings, path, self.cure)
        except (ValueError, KeyError, TypeError) as err:
            number = path.read_bytes().count(b"\n", 0, self._ends[path]) + 1
            raise ConfigError(
                f"{path}: line {number} is damaged ({err}); remove that line, and its item is computed again"
            ) from None


def cure(flag: str, remove: object) -> str:
    """Returns advice for differing settings: `flag` chooses another location, `remove` is what to delete."""
    return f"Give those it was begun with, or another {flag}, or remove {remove} to begin anew."


def require_same(begun: Mapping[str, Any], now: Mapping[str, Any], where: Path, cure: str) -> None:
    """Checks that a resumed run has the settings it was begun with.

    Raises:
        ConfigError: they differ; every difference is listed.
    """
    names = sorted(begun.keys() | now.keys())
    changed = [f"{n}: begun with {begun.get(n)}, now {now.get(n)}" for n in names if begun.get(n) != now.get(n)]
    if changed:
        raise ConfigError("\n  ".join([f"{where} was begun with other settings:", *changed]) + f"\n{cure}")
