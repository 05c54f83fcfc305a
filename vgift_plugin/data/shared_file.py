"""Small files that all processes of one machine share, in memory where possible. None of them needs /dev/shm."""

from __future__ import annotations

import json
import os
import tempfile
import weakref
from collections import Counter
from contextlib import suppress


class SharedFile:
    """A file that forked and spawned worker processes open by its path. It exists as long as this process's object.

    It is in memory (memfd), or a temporary file on systems without memory files.
    """

    def __init__(self):
        fd = -1
        with suppress(AttributeError, OSError):
            fd = os.memfd_create("vgift-shared")
        self.path = f"/proc/{os.getpid()}/fd/{fd}"
        temporary = fd < 0 or not os.access(self.path, os.W_OK)
        if temporary:
            if fd >= 0:
                os.close(fd)
            fd, self.path = tempfile.mkstemp(prefix="vgift-shared-")
        weakref.finalize(self, _remove, os.getpid(), fd, self.path if temporary else None)

    def append(self, line: bytes) -> None:
        """Appends a line atomically."""
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(fd, line)
        finally:
            os.close(fd)

    def read(self) -> bytes:
        """Returns the content."""
        with open(self.path, "rb") as file:
            return file.read()

    def replace(self, content: bytes) -> None:
        """Overwrites the beginning of the file."""
        fd = os.open(self.path, os.O_WRONLY)
        try:
            os.pwrite(fd, content, 0)
        finally:
            os.close(fd)


def _remove(owner: int, fd: int, path: str | None) -> None:
    if os.getpid() != owner:  # a forked worker that drops its copy
        return
    os.close(fd)
    if path is not None:
        os.unlink(path)


class SharedNumber:
    """A whole number that all processes share: a change in one is seen by the others."""

    def __init__(self, value: int = 0):
        self._file = SharedFile()
        self.value = value

    @property
    def value(self) -> int:
        """The number, 64 bits."""
        return int.from_bytes(self._file.read(), "little", signed=True)

    @value.setter
    def value(self, value: int) -> None:
        self._file.replace(value.to_bytes(8, "little", signed=True))


class Tally:
    """Counts redraws over all processes of one machine, as lines of one shared file."""

    def __init__(self):
        self._file = SharedFile()

    def __call__(self, task: str, reason: str) -> None:
        """Adds one redraw."""
        self._file.append(json.dumps([task, reason]).encode() + b"\n")

    def counts(self) -> dict[str, dict[str, int]]:
        """Returns {task: {reason: number of redraws}} so far, most frequent first."""
        counter = Counter(tuple(json.loads(line)) for line in self._file.read().splitlines())
        result: dict[str, dict[str, int]] = {}
        for (task, reason), count in counter.most_common():
            result.setdefault(task, {})[reason] = count
        return result
