"""Atomic writes of files and folders."""

from __future__ import annotations

import functools
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def write_whole(path: Path, content: bytes, mode: int | None = None) -> None:
    """Writes a file, over an older one; its folder is made where it is missing.

    Args:
        path: the file.
        content: all of it.
        mode: permission bits; the system's default without.

    Raises:
        OSError: it could not be written; an older file is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content)
        if mode is not None:
            temporary.chmod(mode)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path`, which takes its name when the block ends well and goes when it fails.

    Raises:
        OSError: it could not be made, or `path` has come to be meanwhile.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(path: Path, content: bytes) -> None:
    """Writes a file whole, unless it is there already: the first one stays, so that all ranks read the same."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.write_bytes(content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        os.replace(temporary, path)
        return
    temporary.unlink()


def read_once(read: Callable[[str], T]) -> Callable[[str], T]:
    """Returns a reader of files that keeps what it last read, for as long as that file is the same."""
    kept: dict[tuple, T] = {}

    @functools.wraps(read)
    def cached(path: str) -> T:
        try:
            status = os.stat(path)
        except OSError:
            return read(path)
        key = (str(path), status.st_ino, status.st_size, status.st_mtime_ns)
        if key not in kept:
            content = read(path)
            kept.clear()
            kept[key] = content
        return kept[key]

    return cached
