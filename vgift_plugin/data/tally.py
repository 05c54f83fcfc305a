"""Counts shared by all processes of one machine."""

from __future__ import annotations

import json
import os
import tempfile
import weakref
from collections import Counter


class Tally:
    """Counts redraws over all processes of one machine, as lines appended atomically to one file in memory.

    Forked and spawned workers open it by path. On systems without memory files it is a temporary file.
    """

    def __init__(self):
        fd = os.memfd_create("vgift-redraws") if hasattr(os, "memfd_create") else -1
        self._path = f"/proc/{os.getpid()}/fd/{fd}"
        if not os.access(self._path, os.W_OK):
            fd, self._path = tempfile.mkstemp(prefix="vgift-redraws-")
            weakref.finalize(self, os.unlink, self._path)
        weakref.finalize(self, os.close, fd)

    def __call__(self, task: str, reason: str, paths: list[str]) -> None:
        """Adds one redraw."""
        line = json.dumps([task, reason, paths]) + "\n"
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(fd, line.encode())
        finally:
            os.close(fd)

    def counts(self) -> dict[str, dict[str, int]]:
        """Returns {task: {reason: number of redraws}} so far, most frequent first."""
        with open(self._path, encoding="utf-8") as lines:
            counter = Counter(tuple(json.loads(line)[:2]) for line in lines)
        result: dict[str, dict[str, int]] = {}
        for (task, reason), count in counter.most_common():
            result.setdefault(task, {})[reason] = count
        return result
