"""Atomic writes: under its final name a file or folder is complete, or it is not there."""

from __future__ import annotations

import functools
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

Digest = list  # [size in bytes, BLAKE2b of the content]; a list, as JSON has it


def digest(content: bytes) -> Digest:
    """Returns size and hash of a file's content."""
    return [len(content), blake2b(content, digest_size=16).hexdigest()]


def is_intact(path: Path, recorded: Digest, by_hash: bool) -> bool:
    """Tells whether a file is there with the recorded size, and with `by_hash` also with the recorded content."""
    if not path.is_file() or path.stat().st_size != recorded[0]:
        return False
    return not by_hash or digest(path.read_bytes()) == recorded


def write_files(
    folder: Path, files: Iterable[tuple[str, bytes]], scratch: Path | None = None, mode: int | None = None
) -> dict[str, Digest]:
    """Writes files atomically, over older ones; they are on the disk (fsync) before this returns.

    They get their names after all of them were written: syncing 500 pictures one by one takes three times as long.

    Args:
        folder: where; it is made where it is missing, as are the folders in `files`.
        files: (path relative to the folder, content).
        scratch: where temporary files are, which a killed process may leave; by default `folder`.
        mode: permission bits; the system's default without.

    Returns:
        {path relative to the folder: its digest}

    Raises:
        OSError: names the file that could not be written. Those written before it may be there, complete.
    """
    temporary: dict[Path, Path] = {}
    digests = {}
    scratch = scratch or folder
    try:
        for name, content in files:
            path = folder / name
            written = temporary.setdefault(path, scratch / f".{path.name}.{uuid.uuid4().hex}.tmp")
            with naming(path):
                scratch.mkdir(parents=True, exist_ok=True)
                written.write_bytes(content)
            digests[name] = digest(content)
        for path, written in temporary.items():
            with naming(path):
                if mode is not None:
                    written.chmod(mode)
                _sync(written)
                path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(written, path)
        for parent in {path.parent for path in temporary}:
            with suppress(OSError):  # some network file systems sync no folders
                _sync(parent)
    finally:
        for written in temporary.values():
            written.unlink(missing_ok=True)
    return digests


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Puts the path of a file into every OSError; those of write and fsync have none."""
    try:
        yield
    except OSError as err:
        raise OSError(err.errno, err.strerror, str(path)) from err


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_whole(path: Path, content: bytes, mode: int | None = None) -> None:
    """Writes a file atomically, over an older one; its folder is made where it is missing.

    Args:
        path: the file.
        content: all of it.
        mode: permission bits; the system's default without.

    Raises:
        OSError: it could not be written; an older file is as it was.
    """
    write_files(path.parent, [(path.name, content)], mode=mode)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path`, which is renamed to `path` at the end, or removed after an error.

    Raises:
        OSError: it could not be made, or `path` exists by now.
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
    """Writes a file atomically unless it exists: of several processes the first one's stays, and all read the same."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    write_whole(temporary, content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
