"""Rotation prediction: by what angle was this photograph rotated? (V-GIFT, arXiv 2604.12966, section 3.2)"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image

from ..errors import UnsuitableImage
from .drawing import fitted, looks_flat
from .registry import register
from .task import Params, Task, knob, listed

BLOCK_PX = 8  # side of a JPEG block
# Clockwise, in degrees; Pillow names its lossless transposes counter-clockwise.
ANGLES_DEG = {
    0: None,
    90: Image.Transpose.ROTATE_270,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_90,
}
STEPS_DEG = (90, 60, 45, 30, 15)


@register
@dataclass(frozen=True)
class Rotation(Task):
    """A photograph rotated losslessly clockwise by 0, 90, 180 or 270 degrees, each equally likely.

    First a square is cut out, of 465 to 472 px for a photograph of 640×480. Otherwise a quarter turn would give
    480×640, and the bars of the host's padding would leak the parity of the angle. The size and position of the square
    vary modulo 8, since the borders of JPEG's 8×8 blocks would also leak the angle.

    With a `step_deg` below 90, the picture is the largest square that every angle leaves inside the photograph, so that
    no corner tells the angle, and every angle is resampled alike, 0 degrees included.
    """

    name: ClassVar[str] = "rotation"
    whole: ClassVar[bool] = False  # the host may crop it like any other photograph
    wordings: ClassVar[tuple[str, ...]] = (
        "This photograph was turned clockwise by one of these angles: {or_} degrees. "
        "Which one? Reply with the number only.",
        "How many degrees clockwise has the picture been rotated from its upright position? "
        "Choose {or_} and write just that number.",
        "The image may have been rotated clockwise in steps of {step}. "
        "Give the rotation in degrees ({or_}), nothing else.",
        "Find the clockwise rotation that was applied to this image. "
        "Possible answers are {and_} degrees; answer with a single number.",
        "Compared with how the scene stands in reality, by what clockwise angle is this image turned? Answer {or_}.",
    )

    size_px: int = knob(336, "longest side of the painted image; smaller photographs stay as they are")
    square: bool = knob(
        True, "cut out a square first, for shape and JPEG blocks give the angle away; false: as published"
    )
    step_deg: int = knob(90, "the angles are its multiples below 360: 90, 60, 45, 30 or 15")
    min_side_px: int = knob(32, "photographs with a shorter side than this are passed over")
    min_contrast: float = knob(3.0, "photographs whose brightness varies less than this (grey levels) are passed over")

    def __post_init__(self):
        super().__post_init__()
        if self.size_px < 32:
            raise ValueError(f"size_px must be at least 32, not {self.size_px}")
        if self.step_deg not in STEPS_DEG:
            raise ValueError(f"step_deg must be one of {', '.join(map(str, STEPS_DEG))}, not {self.step_deg}")

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
        if self.step_deg != 90:
            return self._fine(rng, photo.size)
        return {
            "angle_deg": int(rng.choice(list(ANGLES_DEG))),
            "crop": self._square(rng, photo.size) if self.square else None,
            "size_px": self.size_px,
            "wording": self.draw_wording(rng),
        }

    def _fine(self, rng: np.random.Generator, wh: tuple[int, int]) -> Params:
        """Returns the choices for angles below a quarter turn: also the centre, at a random part of a pixel."""
        side = int(min(wh) / math.sqrt(2)) - 2
        return {
            "angle_deg": self.step_deg * int(rng.integers(360 // self.step_deg)),
            "step_deg": self.step_deg,
            "centre": [round(length / 2 + float(rng.uniform(0.2, 0.8)), 3) for length in wh],
            "side": side,
            "size_px": min(self.size_px, side // 2),
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
        if "step_deg" in params:
            return _turned(photo, params)
        if params["crop"] is not None:
            photo = photo.crop(tuple(params["crop"]))
        if params["size_px"] is not None and max(photo.size) > params["size_px"]:
            photo = fitted(photo, params["size_px"])
        transpose = ANGLES_DEG[params["angle_deg"]]
        return photo.copy() if transpose is None else photo.transpose(transpose)

    def words(self, params: Params) -> dict[str, str]:
        """Returns the possible angles, with `or` and with `and`, and the step."""
        step = params.get("step_deg", 90)
        angles = range(0, 360, step)
        name = "a quarter turn" if step == 90 else f"{step} degrees"
        return {"or_": listed(angles, "or"), "and_": listed(angles, "and"), "step": name}

    def response(self, params: Params) -> str:
        """Returns the angle in degrees, such as `90`."""
        return str(params["angle_deg"])

    @property
    def chance(self) -> float:
        """1/4; `step_deg`/360."""
        return self.step_deg / 360


def _turned(photo: Image.Image, params: Params) -> Image.Image:
    """Returns a square of the photograph, turned clockwise by any angle; shrunk by 2 or more after it was resampled."""
    angle, size, side = math.radians(params["angle_deg"]), params["size_px"], params["side"]
    factor = max(1, side // (2 * size))  # a photograph much too large is shrunk first
    small = photo.reduce(factor)
    fine = 2 * size
    scale = side / factor / fine
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    x, y = (at / factor for at in params["centre"])
    middle = fine / 2
    # Pillow asks where each pixel of the result comes from: turned back, counter-clockwise.
    affine = (cos, sin, x - middle * (cos + sin), -sin, cos, y - middle * (cos - sin))
    square = small.transform((fine, fine), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    return square.resize((size, size), Image.Resampling.BOX)
