"""From a record or a sample to the host's own item: it goes through the host's own `__getitem__`."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from ..errors import ConfigError
from ..tasks.registry import get_task
from ..tasks.task import Sample
from .base import Host

logger = logging.getLogger(__name__)
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # None is the system's folder of temporary files
SAMPLE_PREFIX = "vgift-sample-"
JUST_MADE_S = 1  # a younger file may not be locked yet


class Encoder:
    """Encodes records with a copy of the host's dataset that holds only that record; its picture is a lossless file.

    So padding, tiles, chat template, tokenizer and extra keys are the host's.

    Args:
        host: the training code's family.
        dataset: the host's dataset; it is not changed.
    """

    def __init__(self, host: Host, dataset: Any):
        self.host, self.dataset = host, dataset

    def sample(self, sample: Sample, name: str) -> Any:
        """Returns the host's item for a sample: in LLaVA a dict with input_ids, labels and image."""
        return self.record(sample.record(f"vgift-{name}", f"{name}.ppm"), self.pictures(sample))

    def pictures(self, sample: Sample) -> list[Image.Image]:
        """Returns the sample's pictures as the host will look at them: on a square canvas where they must be seen whole
        and the host would crop them, on the host's grid of patches where it looks at pictures as they are."""
        if (grid := self.host.grid(self.dataset)) is not None:
            return pictures_on(sample, grid)
        color = self.host.crop_canvas(self.dataset) if get_task(sample.task).whole else None
        if color is None:
            return sample.pictures()
        return [ImageOps.pad(picture, (max(picture.size),) * 2, color=color) for picture in sample.pictures()]

    def record(self, record: dict, pictures: Sequence[Image.Image]) -> Any:
        """Returns the host's item for a record with these pictures in the place of its own."""
        if not pictures:
            return self.host.item(self.dataset, record)
        with ExitStack() as files:
            paths = [files.enter_context(lossless_file(picture)) for picture in pictures]
            image = paths if isinstance(record["image"], list) else paths[0]
            return self.host.item(self.dataset, {**record, "image": image})

    def lengths(self, sample: Sample) -> dict[str, int]:
        """Returns the length attributes of the host's dataset for this sample alone; no picture is read."""
        return self.host.lengths(self.dataset, sample.record("vgift-length", "image.ppm"))


def on_grid(image: Image.Image, step: int, least: int, most: int) -> Image.Image:
    """Returns a picture that the host does not resize: sides in multiples of `step`, area in [least, most].

    It is shrunk as a whole where it is larger, so that markers stay in proportion, and filled up with grey on the right
    and below. With step 28 and 784 to 50,176 pixels 336×160 becomes 291×138 on a canvas of 308×140.
    """
    wh: tuple[int, ...] = image.size
    scale = 1.0
    while (canvas := [-(-side // step) * step for side in wh])[0] * canvas[1] > most and min(wh) > 1:
        scale *= 0.99
        wh = tuple(max(1, int(side * scale)) for side in image.size)
    while canvas[0] * canvas[1] < least:
        canvas[canvas[0] > canvas[1]] += step
    small = image if wh == image.size else image.resize((wh[0], wh[1]), Image.Resampling.LANCZOS)
    if (canvas[0], canvas[1]) == small.size:
        return small
    result = Image.new("RGB", (canvas[0], canvas[1]), (128, 128, 128))
    result.paste(small, (0, 0))
    return result


def pictures_on(sample: Sample, grid: tuple[int, int, int] | None) -> list[Image.Image]:
    """Returns the sample's pictures on the host's grid of patches, see `on_grid`; as they are painted without one."""
    return sample.pictures() if grid is None else [on_grid(picture, *grid) for picture in sample.pictures()]


@contextmanager
def lossless_file(image: Image.Image) -> Iterator[str]:
    """Yields the path of a PPM file that holds the image bit by bit, for as long as the block runs.

    It lies in memory (/dev/shm; about 1 ms), or on disk where the system has no such folder or it is full. It has a
    real name, unlike a memfd's /proc/self/fd/N, which Pillow 10.4 resolves to a name that cannot be opened.

    Raises:
        ConfigError: there is no room in memory nor on disk.
    """
    image = image if image.mode == "RGB" else image.convert("RGB")
    content = b"P6\n%d %d\n255\n" % image.size + image.tobytes()
    fd, path = _written(content)
    try:
        yield path
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)
        os.close(fd)


def _written(content: bytes) -> tuple[int, str]:
    """Returns the descriptor, locked, and the path of a new file with this content."""
    folders = [*([MEMORY] if MEMORY else []), tempfile.gettempdir()]
    for folder in folders:
        try:
            return _write(folder, content)
        except OSError as err:
            if folder == folders[-1]:
                raise ConfigError(
                    f"no room for the picture of a sample, {len(content):,} bytes, in {' nor in '.join(folders)}: "
                    f"{err.strerror}. Name another folder with the variable TMPDIR"
                ) from err
            _warn_once(folder, folders[-1], err.strerror or "")
    raise AssertionError


def _write(folder: str, content: bytes) -> tuple[int, str]:
    fd, path = tempfile.mkstemp(prefix=SAMPLE_PREFIX, suffix=".ppm", dir=folder)
    try:
        _lock(fd)
        left = memoryview(content)
        while left:  # a full file system accepts a part, and fails at the next write
            left = left[os.write(fd, left) :]
    except BaseException:
        os.close(fd)
        os.unlink(path)
        raise
    return fd, path


@cache
def _warn_once(folder: str, instead: str, why: str) -> None:
    logger.warning("%s: %s; pictures of samples are written to %s while that lasts", folder, why, instead)


def _lock(fd: int) -> bool:
    """Returns whether this process now holds the file, which it does until it closes it or ends."""
    try:
        import fcntl

        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except (ImportError, OSError):  # no locks on this system, or another process holds it
        return False


def warn_if_tight(sample_bytes: int, processes: int) -> None:
    """Warns if the samples that so many processes hold at a time may not fit into the memory folder."""
    if MEMORY is None:
        return
    status = os.statvfs(MEMORY)
    free, needed = status.f_bavail * status.f_frsize, sample_bytes * processes
    if needed > free / 2:
        logger.warning(
            "%s has %.1f MB left, and samples take up to %.1f MB there (%d processes), beside what data loaders put "
            "there. What does not fit is written to %s. In a container: --shm-size",
            MEMORY,
            free / 1e6,
            needed / 1e6,
            processes,
            tempfile.gettempdir(),
        )


def remove_stale_files(folder: str | None = MEMORY) -> None:
    """Removes files of samples that killed processes left; those that a living process holds are locked."""
    for path in Path(folder).glob(f"{SAMPLE_PREFIX}*.ppm") if folder else ():
        with suppress(OSError):  # another user's, or just removed by another rank
            fd = os.open(path, os.O_RDONLY)
            try:
                if time.time() - os.fstat(fd).st_mtime > JUST_MADE_S and _lock(fd):
                    path.unlink()
            finally:
                os.close(fd)
