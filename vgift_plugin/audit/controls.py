"""The control of the cheat that sees pixels: samples that have the content and not the artefact.

JPEG's block borders are looked for in pixels, and pixels show content as well. On drawn scenes that were never JPEG
files, the JPEG grid solver gets 45 % of the rotations right (chance is 25 %), because one long horizon is enough. So
this cheat is compared with itself on samples that are drawn with the same seeds from the same photographs after each
was shifted by -4 to 3 pixels in both directions. The grid then begins at every place modulo 8 equally often, so its
place tells nothing. Everything else stays: the content, its sharpness, and the size of the photograph, hence nearly all
that a task draws. On those scenes this control gets 45 % as well.

Resampling the photographs by a random factor of 0.7 to 0.95 would also remove the grid, but it blurs the content: on
those scenes such a control gets 30 %, and the difference would be reported as a leak.

Limit: the blocks themselves stay. If their mere presence or direction tells the answer, as for a task that turns
pictures by 45 degrees, this control has it as well, and the leak is not found.
"""

from __future__ import annotations

import os

import numpy as np
from PIL import Image

from ..data.proxy import Proxy
from ..data.seeding import generator
from ..tasks.task import Params
from .solvers import BLOCK_PX


class ShiftedSource(Proxy):
    """The photographs or rows of another source, every photograph shifted by a random step that its name determines.

    Args:
        base: an ImageSource or a RowSource.
    """

    def __init__(self, base):
        self.base = base

    def __len__(self) -> int:
        return len(self.base)

    def open(self, index: int, longest_px: int | None = None) -> Image.Image:
        """Returns the shifted photograph; see `ImageSource.open`."""
        return shifted(self.base.open(index, longest_px), self.base.path(index))

    def load(self, row: dict, rng: np.random.Generator) -> tuple[list[Image.Image], Params]:
        """Returns a row's shifted photographs and its choices; see `RowSource.load`."""
        images, params = self.base.load(row, rng)
        paths = self.base.paths(row)
        return [shifted(image, path) for image, path in zip(images, paths, strict=True)], params


def shifted(photo: Image.Image, path: str) -> Image.Image:
    """Returns a photograph of the same size with its content moved by -4 to 3 pixels right and down.

    The uncovered border of 4 pixels at most keeps its old pixels. The step depends on the file's name alone.
    """
    name = os.path.basename(path).encode(errors="surrogateescape").decode(errors="replace")
    step = generator(0, "audit", name).integers(-BLOCK_PX // 2, BLOCK_PX // 2, 2)
    moved = photo.copy()
    moved.paste(photo, tuple(step.tolist()))
    return moved
