"""Relative rotation: by what angle is the right picture turned against the left one? (SSL4RL, PKU-ML/SSL4RL)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from PIL import Image

from .drawing import side_by_side
from .registry import register
from .rotation import Rotation
from .task import Params, knob
from .two_pictures import GAP_PX, TwoPictures


@register
@dataclass(frozen=True)
class RelativeRotation(TwoPictures, Rotation):
    """The picture of `rotation`, with the same part of the photograph upright on its left."""

    name: ClassVar[str] = "relative_rotation"
    whole: ClassVar[bool] = True
    wordings: ClassVar[tuple[str, ...]] = (
        "The picture on the right is the left one, turned clockwise. By how many degrees: {or_}? Reply with the number "
        "only.",
        "How far, clockwise, must the left picture be rotated to become the right one? Possible angles are {and_} "
        "degrees; write just that number.",
        "Compare both pictures: the right one is rotated clockwise against the left one in steps of {step}. Give "
        "the angle in degrees ({or_}), nothing else.",
    )

    size_px: int = knob(160, "longest side of each of the two pictures, in pixels; two and the gap make 336")

    def render(self, images: list[Image.Image], params: Params) -> Image.Image:
        """Returns the upright and the turned picture, side by side."""
        upright = super().render(images, {**params, "angle_deg": 0})
        return side_by_side(upright, super().render(images, params), GAP_PX)
