"""Files that are there whole or not at all, whatever kills the process that writes them."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


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
