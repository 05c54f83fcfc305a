"""Position of a crop: which quarter of the photograph does this part come from? (SSL4RL, PKU-ML/SSL4RL)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image

from ..errors import UnsuitableImage
from .drawing import looks_flat, relit, side_by_side
from .registry import register
from .task import Params, knob
from .two_pictures import GAP_PX, TwoPictures

TRIES = 8  # places tried before the photograph is passed over
QUARTERS = ("top left", "top right", "bottom left", "bottom right")


@register
@dataclass(frozen=True)
class Position(TwoPictures):
    """A photograph on the left and an enlarged, relit part of it on the right.

    The part lies in one quarter of the photograph, each equally likely; none straddles the middle.
    """

    name: ClassVar[str] = "position"
    wordings: ClassVar[tuple[str, ...]] = (
        "The right picture is an enlarged part of the photograph on the left. Which quarter of the photograph does it "
        "come from: top left, top right, bottom left or bottom right? Reply with that name only.",
        "From which corner region of the left photograph was the picture on the right cut out? Choose top left, top "
        "right, bottom left or bottom right, and write nothing else.",
        "A detail of the left photograph is shown on the right. Where in the photograph does it lie? Answer top left, "
        "top right, bottom left or bottom right.",
    )

    size_px: int = knob(160, "longest side of each of the two pictures, in pixels; two and the gap make 336")
    min_share: float = knob(0.25, "least side of the part as a share of the photograph's shorter side, 0.1 to 0.45")
    max_share: float = knob(0.4, "largest side of the part, likewise")
    max_light: float = knob(0.25, "brightness, contrast and saturation change by up to this share, 0 to 0.9")
    min_contrast: float = knob(5.0, "parts whose brightness varies less than this (grey levels) are not used")
    min_side_px: int = knob(96, "photographs with a shorter side than this are passed over")

    def __post_init__(self):
        super().__post_init__()
        if not 0.1 <= self.min_share <= self.max_share <= 0.45:
            raise ValueError(
                f"min_share and max_share must be 0.1 to 0.45, in order, not {self.min_share:g} and {self.max_share:g}"
            )
        if not 0 <= self.max_light <= 0.9:
            raise ValueError(f"max_light must be 0 to 0.9, not {self.max_light:g}")
        if self.size_px < 32:
            raise ValueError(f"size_px must be at least 32, not {self.size_px}")

    @property
    def chance(self) -> float:
        """1/4."""
        return 1 / len(QUARTERS)

    def draw(self, rng: np.random.Generator, images: list[Image.Image]) -> Params:
        """Returns the quarter, the part as left, top, right, bottom in pixels of the photograph, and its light."""
        (photo,) = images
        if min(photo.size) < self.min_side_px:
            raise UnsuitableImage("too small")
        for _ in range(TRIES):
            side = int(rng.uniform(self.min_share, self.max_share) * min(photo.size))
            moved = [int(rng.integers(length // 2 - side + 1)) for length in photo.size]
            boxes = [_box(photo.size, quarter, side, moved) for quarter in range(len(QUARTERS))]
            # All four must show something: if only the answer's had to, a plain sky would make the top a rare answer.
            if not any(looks_flat(photo.crop(box), self.min_contrast) for box in boxes):
                break
        else:
            raise UnsuitableImage("no contrast")
        quarter = int(rng.integers(len(QUARTERS)))
        return {
            "quarter": quarter,
            "box": list(boxes[quarter]),
            "light": (1 + self.max_light * rng.uniform(-1, 1, 3)).round(3).tolist(),
            "size_px": self.size_px,
            "wording": self.draw_wording(rng),
        }

    def render(self, images: list[Image.Image], params: Params) -> Image.Image:
        """Returns the photograph and its part, side by side."""
        (photo,), size = images, params["size_px"]
        scale = size / max(photo.size)
        wh = tuple(max(1, int(side * scale)) for side in photo.size)
        whole = photo.resize((wh[0], wh[1]), Image.Resampling.BILINEAR, reducing_gap=2.0)
        part = photo.resize((size, size), Image.Resampling.BILINEAR, tuple(params["box"]))
        return side_by_side(whole, relit(part, *params["light"]), GAP_PX)

    def response(self, params: Params) -> str:
        """Returns `top left`, `top right`, `bottom left` or `bottom right`."""
        return QUARTERS[params["quarter"]]


def _box(wh: tuple[int, int], quarter: int, side: int, moved: list[int]) -> tuple[int, int, int, int]:
    """Returns a square inside a quarter, `moved` pixels from the photograph's border: left, top, right, bottom."""
    left = moved[0] if quarter % 2 == 0 else wh[0] - side - moved[0]
    top = moved[1] if quarter < 2 else wh[1] - side - moved[1]
    return left, top, left + side, top + side
