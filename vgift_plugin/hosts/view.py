"""The one-record view: how a sample goes through the host's own preprocessing."""

from __future__ import annotations

import copy
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from ..tasks.registry import get_task
from ..tasks.task import Sample

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # None is the system's folder of temporary files
SAMPLE_PREFIX = "vgift-sample-"


class OneRecordView:
    """Speaks LLaVA: a sample goes through the host's own `__getitem__`, as the only record of a copy of its dataset.

    So padding, anyres, chat template, tokenizer and extra keys are the host's, on upstream LLaVA and on its forks.

    Args:
        base: the host's dataset; it is not changed.
    """

    def __init__(self, base: Any):
        self.base = base

    def __call__(self, sample: Sample, name: str) -> Any:
        """Returns what the host returns for the sample: in LLaVA a dict with input_ids, labels and image."""
        return self.speak(sample.record(f"vgift-{name}", f"{name}.ppm"), [self.picture(sample)])

    def picture(self, sample: Sample) -> Image.Image:
        """Returns the sample's picture, on a square canvas where it must be seen whole and the host would crop it."""
        mean = crops_to_centre(self.base.data_args) if get_task(sample.task).whole else None
        return sample.image if mean is None else ImageOps.pad(sample.image, (max(sample.image.size),) * 2, color=mean)

    def speak(self, record: dict, pictures: list[Image.Image]) -> Any:
        """Returns what the host returns for a record with these pictures in the place of its own."""
        with ExitStack() as files:
            paths = [files.enter_context(lossless_file(picture)) for picture in pictures]
            return self.of({**record, "image": paths if isinstance(record["image"], list) else paths[0]})[0]

    def of(self, record: dict) -> Any:
        """Returns a copy of the host's dataset that has this one record; its paths are absolute."""
        view = copy.copy(self.base)
        if view.data_args.image_folder is None:  # the host joins it with the path
            view.data_args = copy.copy(view.data_args)
            view.data_args.image_folder = ""
        view.list_data_dict = [record]
        return view


def crops_to_centre(data_args: Any) -> tuple[int, int, int] | None:
    """Returns the canvas colour (the processor's mean, as LLaVA pads with) where the host crops; else None.

    `--image_aspect_ratio pad` shows all of a picture, and so do the anyres ways of forks; `square`, the default that
    LLaVA's first scripts leave, cuts off what CLIP's centre crop does.
    """
    processor = getattr(data_args, "image_processor", None)
    if getattr(data_args, "image_aspect_ratio", "square") != "square" or not getattr(
        processor, "do_center_crop", False
    ):
        return None
    return tuple(int(255 * mean) for mean in processor.image_mean)


@contextmanager
def lossless_file(image: Image.Image) -> Iterator[str]:
    """Yields the path of a PPM file that holds the image bit by bit, for as long as the block runs.

    It lies in memory (/dev/shm; about 1 ms), on disk only where the system has no such folder. It has a real name,
    unlike a memfd's /proc/self/fd/N, which Pillow 10.4 resolves to a name that cannot be opened.
    """
    image = image if image.mode == "RGB" else image.convert("RGB")
    with tempfile.NamedTemporaryFile(prefix=SAMPLE_PREFIX, suffix=".ppm", dir=MEMORY) as file:
        image.save(file, "PPM")
        file.flush()
        yield file.name


def sweep(folder: str | None = MEMORY, older_than_s: float = 3600) -> None:
    """Removes samples that killed workers left in memory: own files, far older than a sample lives."""
    for path in Path(folder).glob(f"{SAMPLE_PREFIX}*.ppm") if folder else ():
        with suppress(OSError):  # another user's, or just removed by another rank
            if time.time() - path.stat().st_mtime > older_than_s:
                path.unlink()
