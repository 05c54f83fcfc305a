"""Files that survive a kill: written whole or not at all, or journals that are only appended to."""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Iterable
from pathlib import Path

from ..errors import ConfigError

logger = logging.getLogger(__name__)


def publish(path: Path, data: bytes) -> None:
    """Writes a file whole, unless it is there already: the first one stays, so that all ranks read the same."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.write_bytes(data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        os.replace(temporary, path)
        return
    temporary.unlink()


class Journal:
    """Lines of this rank, appended; a line that a killed process left unfinished is cut off first.

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
            raise ConfigError(
                f"{path} is being written by another process; has this rank been started twice?"
            ) from None
        except OSError as err:  # a file system without locks
            logger.debug("%s is not locked: %s", path, err)
        os.ftruncate(self._fd, path.read_bytes().rfind(b"\n") + 1)

    def append(self, lines: Iterable[str]) -> None:
        """Adds lines by one write."""
        data = "".join(f"{line}\n" for line in lines).encode()
        while data:
            data = data[os.write(self._fd, data) :]

    def close(self) -> None:
        """Hands the lines to the disk, where the merging rank may look from another machine."""
        os.fsync(self._fd)
        os.close(self._fd)


def read_journals(parts: Path) -> dict[int, dict]:
    """Returns {pair number: its line} of all ranks; unfinished last lines are left out."""
    done: dict[int, dict] = {}
    for path in sorted(parts.glob("rank-*.jsonl")):
        for line in path.read_bytes().split(b"\n")[:-1]:
            entry = json.loads(line)
            done.setdefault(entry["pair"], entry)
    return done
