"""Opens one photograph, as upright RGB, or gives a reason why it cannot be used."""

from __future__ import annotations

import errno
import logging
import math
import os
import stat
import threading
import time
from collections.abc import Callable
from io import BufferedReader, BytesIO
from typing import TypeVar

from PIL import Image, ImageFile, ImageOps

from ..errors import PhotoReadError, UnsuitableImage

logger = logging.getLogger(__name__)
ORIENTATION = 0x0112  # the EXIF tag
T = TypeVar("T")
# The formats that training data has. Pillow knows more, some of which crash or take half a minute on broken files.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 64_000_000  # decoded; such a picture takes about 450 MB
PILLOW_MAX_PIXELS = 178_956_970  # in the header; Pillow's own limit, whatever the process has set
PAUSES_S = (0.2, 1.0, 3.0)  # before another try, where the system failed
# Errors caused by the file. All others (EIO, ESTALE, EMFILE, ENOMEM, EACCES, ...) are the system's and are retried.
FILE_ERRORS: dict[int | None, str] = {
    None: "unreadable",  # raised by Pillow, not by the system
    errno.ENOENT: "missing file",
    errno.ENOTDIR: "missing file",
    errno.ENAMETOOLONG: "missing file",
    errno.EISDIR: "not a file",
    errno.ELOOP: "unreadable",
}


def open_photo(
    path: str, upright: bool = True, longest_px: int | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Returns the photograph as RGB, turned upright by its EXIF orientation; the first frame of an animation.

    The result depends on the file alone, not on Pillow's settings in this process.

    Args:
        path: the file.
        upright: False ignores the EXIF orientation.
        longest_px: the longest side needed. JPEG files are decoded at 1/2, 1/4 or 1/8 of their size if that is still
            large enough; other formats keep their size.
        max_pixels: the largest number of pixels to decode.

    Raises:
        UnsuitableImage: the file is missing, not a regular file, unreadable, in another format than `FORMATS`, too
            large, or has more than 8 bits per channel (the host would clip it to white).
        PhotoReadError: the system failed several times to read the file.
    """

    def decode() -> Image.Image:
        with _open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > 8 * max_pixels:
                raise UnsuitableImage("too many bytes")
            content = BytesIO(file.read())  # whatever Pillow raises from here on, the file is the reason
        with Image.open(content, formats=FORMATS) as image:
            if image.mode.startswith(("I", "F")):
                raise UnsuitableImage("more than 8 bits")
            whole = image.width * image.height
            if longest_px is not None:
                scale = longest_px / max(image.size)
                image.draft("RGB", (math.ceil(image.width * scale), math.ceil(image.height * scale)))
            if whole > PILLOW_MAX_PIXELS or image.width * image.height > max_pixels:
                raise UnsuitableImage("too many pixels")
            if upright and image.getexif().get(ORIENTATION, 1) != 1:
                turned = ImageOps.exif_transpose(image)
                assert turned is not None  # None is for `in_place`
                return turned.convert("RGB")
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")  # convert() copies, 9 MB at 2000×1500

    return _read(path, decode)


def photo_size(path: str, upright: bool = True) -> tuple[int, int]:
    """Returns width and height of a photograph in pixels, from its header alone; see `open_photo`."""

    def header() -> tuple[int, int]:
        with _open_regular(path) as file, Image.open(file, formats=FORMATS) as image:
            turned = upright and image.getexif().get(ORIENTATION, 1) >= 5
            return (image.height, image.width) if turned else image.size

    return _read(path, header)


def _open_regular(path: str) -> BufferedReader:
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a FIFO would wait for ever
        raise UnsuitableImage("not a file")
    return open(path, "rb")


def _read(path: str, read: Callable[[], T]) -> T:
    """Returns what `read` returns. Errors of the file raise UnsuitableImage; errors of the system are retried."""
    for pause_s in (*PAUSES_S, None):
        try:
            with _pillow_settings:
                return read()
        except UnsuitableImage:
            raise
        except (OSError, MemoryError) as err:
            if isinstance(err, OSError) and err.errno in FILE_ERRORS:
                raise UnsuitableImage(FILE_ERRORS[err.errno]) from None
            if pause_s is None:
                what = err.strerror if isinstance(err, OSError) else "out of memory"
                raise PhotoReadError(
                    f"{path}: {what}, {1 + len(PAUSES_S)} times within {sum(PAUSES_S):g} seconds. This says nothing of "
                    "the picture: look at the disk, the network file system, permissions, and limits on open files "
                    "and memory, then resume"
                ) from err
            time.sleep(pause_s)
        except Exception:  # Pillow raises almost anything on broken files
            raise UnsuitableImage("unreadable") from None
    raise AssertionError


class _PillowSettings:
    """While it is entered, by any number of threads, Pillow refuses truncated files and leaves sizes to `open_photo`.

    Hosts set `LOAD_TRUNCATED_IMAGES`, which makes samples of torn files, and `MAX_IMAGE_PIXELS`.
    """

    def __init__(self):
        self._lock, self._depth = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            self._depth += 1
            if self._depth == 1:
                self._before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
                ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, None

    def __exit__(self, *error) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = self._before


_pillow_settings = _PillowSettings()
