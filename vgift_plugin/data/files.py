"""Atomic writes: a file or folder appears under its final name only when it is complete."""

from __future__ import annotations

import functools
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

from ..errors import ConfigError

T = TypeVar("T")
logger = logging.getLogger(__name__)

Digest = list  # [size in bytes, BLAKE2b of the content]; a list, as in JSON


def digest(content: bytes) -> Digest:
    """Returns the size and hash of a file's content."""
    return [len(content), blake2b(content, digest_size=16).hexdigest()]


def is_intact(path: Path, recorded: Digest, by_hash: bool) -> bool:
    """Returns whether a file exists with the recorded size and, with `by_hash`, the recorded content."""
    if not path.is_file() or path.stat().st_size != recorded[0]:
        return False
    return not by_hash or digest(path.read_bytes()) == recorded


def write_files(
    folder: Path, files: Iterable[tuple[str, bytes]], scratch: Path | None = None, mode: int | None = None
) -> dict[str, Digest]:
    """Writes files atomically, replacing existing ones; they are on disk (fsync) when this returns.

    All files are written before any is renamed: syncing 500 pictures one by one takes three times as long.

    Args:
        folder: where to write; created if missing, as are the folders in `files`.
        files: (path relative to the folder, content).
        scratch: folder for temporary files, which a killed process may leave behind; by default `folder`.
        mode: permission bits; by default the system's.

    Returns:
        {path relative to the folder: its digest}

    Raises:
        ConfigError: a path leads out of the folder over a link.
        OSError: a file could not be written; the error names it. Earlier files may exist, each complete.
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
        for parent in {path.parent for path in temporary}:
            if not is_inside(parent, folder):
                where = os.path.realpath(parent)
                raise ConfigError(f"{parent} leads out of {folder} over a link, to {where}; nothing is written there")
        for path, written in temporary.items():
            with naming(path):
                if mode is not None:
                    written.chmod(mode)
                _sync(written)
                path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(written, path)
        for parent in {path.parent for path in temporary}:
            with suppress(OSError):  # some network file systems cannot sync folders
                _sync(parent)
    finally:
        for written in temporary.values():
            written.unlink(missing_ok=True)
    return digests


def is_inside(path: str | Path, folder: str | Path) -> bool:
    """Returns whether a path is a folder or in it when all links are followed; neither has to exist."""
    inner, top = os.path.realpath(path), os.path.realpath(folder)
    return inner == top or inner.startswith(os.path.join(top, ""))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds the path of a file to every OSError; errors of write and fsync lack it."""
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
    """Writes a file atomically, replacing an existing one; its folder is created if missing.

    Args:
        path: the file.
        content: the whole content.
        mode: permission bits; by default the system's.

    Raises:
        OSError: the file could not be written; an existing file is unchanged.
    """
    write_files(path.parent, [(path.name, content)], mode=mode)


def write_report(path: Path, content: str) -> None:
    """Writes a file that only reports, atomically; a failure is a warning, since it must not stop a run."""
    try:
        write_whole(path, content.encode())
    except OSError as err:
        logger.warning("%s could not be written: %s", path, err.strerror)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yields a temporary folder next to `path`, which is renamed to `path` at the end, or removed after an error.

    Raises:
        OSError: the folder could not be created, or `path` already exists.
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
    """Writes a file atomically unless it exists: if several processes write, the first one's file is kept."""
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
    """Returns `read` with its last result cached until the file changes."""
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
