"""Rotation prediction: by what angle was this photograph rotated? (V-GIFT, arXiv 2604.12966, section 3.2)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image

from ..errors import UnsuitableImage
from .drawing import fitted, looks_flat
from .registry import register
from .task import Params, Task, knob

BLOCK_PX = 8  # side of a JPEG block
# Clockwise, in degrees; Pillow names its lossless transposes counter-clockwise.
ANGLES_DEG = {
    0: None,
    90: Image.Transpose.ROTATE_270,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_90,
}


@register
@dataclass(frozen=True)
class Rotation(Task):
    """A photograph rotated losslessly clockwise by 0, 90, 180 or 270 degrees, each equally likely.

    First a square is cut out, of 465 to 472 px for a photograph of 640×480. Otherwise a quarter turn would give
    480×640, and the bars of the host's padding would leak the parity of the angle. The size and position of the square
    vary modulo 8, since the borders of JPEG's 8×8 blocks would also leak the angle.
    """

    name: ClassVar[str] = "rotation"
    whole: ClassVar[bool] = False  # the host may crop it like any other photograph
    wordings: ClassVar[tuple[str, ...]] = (
        "This photograph was turned clockwise by one of these angles: 0, 90, 180 or 270 degrees. "
        "Which one? Reply with the number only.",
        "How many degrees clockwise has the picture been rotated from its upright position? "
        "Choose 0, 90, 180 or 270 and write just that number.",
        "The image may have been rotated clockwise in steps of a quarter turn. "
        "Give the rotation in degrees (0, 90, 180 or 270), nothing else.",
        "Find the clockwise rotation that was applied to this image. "
        "Possible answers are 0, 90, 180 and 270 degrees; answer with a single number.",
        "Compared with how the scene stands in reality, by what clockwise angle is this image turned? "
        "Answer 0, 90, 180 or 270.",
    )

    size_px: int = knob(336, "longest side of the painted image; smaller photographs stay as they are")
    square: bool = knob(
        True, "cut out a square first, for shape and JPEG blocks give the angle away; false: as published"
    )
    min_side_px: int = knob(32, "photographs with a shorter side than this are passed over")
    min_contrast: float = knob(3.0, "photographs whose brightness varies less than this (grey levels) are passed over")

    def __post_init__(self):
        super().__post_init__()
        if self.size_px < 32:
            raise ValueError(f"size_px must be at least 32, not {self.size_px}")

    @property
    def picture_px(self) -> int:
        """`size_px`."""
        return self.size_px

    def draw(self, rng: np.random.Generator, images: list[Image.Image]) -> Params:
        """Returns the angle and, with the knob `square`, the square. See `Task.draw`."""
        (photo,) = images
        if min(photo.size) < self.min_side_px:
            raise UnsuitableImage("too small")
        if looks_flat(photo, self.min_contrast):
            raise UnsuitableImage("no contrast")
        return {
            "angle_deg": int(rng.choice(list(ANGLES_DEG))),
            "crop": self._square(rng, photo.size) if self.square else None,
            "size_px": self.size_px,
            "wording": self.draw_wording(rng),
        }

    @staticmethod
    def _square(rng: np.random.Generator, wh: tuple[int, int]) -> list[int]:
        """Returns left, top, right and bottom of a square near the centre, side and position random modulo 8."""
        side = min(wh) - BLOCK_PX - int(rng.integers(BLOCK_PX))
        left, top = (
            (length - side - BLOCK_PX) // 2 + moved
            for length, moved in zip(wh, rng.integers(1, BLOCK_PX + 1, 2).tolist(), strict=True)
        )
        return [left, top, left + side, top + side]

    def render(self, images: list[Image.Image], params: Params) -> Image.Image:
        """Returns the rotated photograph, at most `size_px` long; 90 and 270 degrees swap width and height."""
        (photo,) = images
        if params["crop"] is not None:
            photo = photo.crop(tuple(params["crop"]))
        if params["size_px"] is not None and max(photo.size) > params["size_px"]:
            photo = fitted(photo, params["size_px"])
        transpose = ANGLES_DEG[params["angle_deg"]]
        return photo.copy() if transpose is None else photo.transpose(transpose)

    def response(self, params: Params) -> str:
        """Returns `0`, `90`, `180` or `270`."""
        return str(params["angle_deg"])

    @property
    def chance(self) -> float:
        """1/4."""
        return 1 / len(ANGLES_DEG)
