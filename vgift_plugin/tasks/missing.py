"""Missing part: which candidate fills the hole? (Spatial-SSRL, InternLM/Spatial-SSRL; SSL-R1, arXiv 2604.20705)"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import numpy as np
from PIL import Image

from ..errors import UnsuitableImage
from .drawing import looks_flat, side_by_side
from .registry import register
from .task import Params, knob
from .tiles import difference, paint_grid
from .two_pictures import GAP_PX, NumberedCandidates

CELL_GAP_PX = 8
TRIES = 8  # places tried before the photograph is passed over
TURNS = {90: Image.Transpose.ROTATE_270, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_90}  # clockwise
COMPARED_PX = 16


@register
@dataclass(frozen=True)
class Missing(NumberedCandidates):
    """A square photograph with a black hole on the left, and on the right four numbered candidates for the hole.

    The candidates are the missing part and three others made of it: turned, at another scale, and both. Scale and turn
    are drawn, and each of the four is the answer equally often, so the candidates alone do not tell. All are shrunk to
    half of the size at which they are shown and enlarged from there, so that sharpness does not tell either.
    """

    name: ClassVar[str] = "missing"
    candidates = 4  # no knob
    first: ClassVar[int] = 1
    wordings: ClassVar[tuple[str, ...]] = (
        "A square part of the left photograph is blacked out. Which of the pictures {numbers} on the right fills "
        "the hole as it was? Reply with the number only.",
        "The black square hides a part of the photograph. One of the candidates {numbers} is that part, neither turned "
        "nor enlarged nor shrunk. Give its number.",
        "Choose the missing piece: which of {numbers} continues the photograph across the black square? Answer with "
        "one number.",
    )

    size_px: int = knob(160, "side of the photograph, and of the four candidates together; both and the gap make 336")
    hole: float = knob(0.4, "side of the hole as a share of the photograph's shorter side, 0.2 to 0.5")
    zoom: float = knob(1.5, "how much larger or smaller the scale of the wrong candidates is, 1.2 to 2")
    min_difference: float = knob(10.0, "least mean difference (0 to 255) between two candidates")
    min_contrast: float = knob(8.0, "parts whose brightness varies less than this (grey levels) are not used")
    min_side_px: int = knob(128, "photographs with a shorter side than this are passed over")

    def __post_init__(self):
        super().__post_init__()
        if not 0.2 <= self.hole <= 0.5:
            raise ValueError(f"hole must be 0.2 to 0.5, not {self.hole:g}")
        if not 1.2 <= self.zoom <= 2:
            raise ValueError(f"zoom must be 1.2 to 2, not {self.zoom:g}")
        if self.size_px < 64:
            raise ValueError(f"size_px must be at least 64, not {self.size_px}")

    def draw(self, rng: np.random.Generator, images: list[Image.Image]) -> Params:
        """Returns the square, the hole in it, and the candidates: [turn in degrees, side in the photograph] of each."""
        (photo,) = images
        if min(photo.size) < self.min_side_px:
            raise UnsuitableImage("too small")
        for _ in range(TRIES):
            params = self._choose(rng, photo)
            if not looks_flat(photo.crop(_box(params["centre"], params["hole"])), self.min_contrast):
                shown = (_candidate(photo, params, k, COMPARED_PX) for k in range(self.candidates))
                pairs = combinations([np.asarray(one, np.float32) for one in shown], 2)
                if all(difference(*pair) >= self.min_difference for pair in pairs):
                    return params
        raise UnsuitableImage("candidates look alike")

    def _choose(self, rng: np.random.Generator, photo: Image.Image) -> Params:
        side = min(photo.size)
        square = [int(rng.integers(length - side + 1)) for length in photo.size]
        hole = int(self.hole * side)
        other = int(hole * (self.zoom if rng.random() < 0.5 else 1 / self.zoom))
        reach = max(hole, other)  # what the largest candidate shows
        centre = [start + int(rng.integers(reach // 2, side - (reach + 1) // 2 + 1)) for start in square]
        turn = int(rng.choice(list(TURNS)))
        kinds = [[0, hole], [turn, hole], [0, other], [turn, other]]
        order = rng.permutation(self.candidates).tolist()
        return {
            "square": [*square, side],
            "centre": centre,
            "hole": hole,
            "candidates": [kinds[k] for k in order],
            "answer": order.index(0),
            "size_px": self.size_px,
            "wording": self.draw_wording(rng),
        }

    def render(self, images: list[Image.Image], params: Params) -> Image.Image:
        """Returns the photograph with its hole, and the candidates in two rows."""
        (photo,), size = images, params["size_px"]
        left, top, side = params["square"]
        whole = photo.resize((size, size), Image.Resampling.BILINEAR, (left, top, left + side, top + side), 2.0)
        hole = params["hole"]
        scale = size / side
        corner = [(at - hole // 2 - start) * scale for at, start in zip(params["centre"], (left, top), strict=True)]
        edge = round(hole * scale)
        whole.paste((0, 0, 0), (round(corner[0]), round(corner[1]), round(corner[0]) + edge, round(corner[1]) + edge))
        cell = (size - CELL_GAP_PX) // 2
        cells = [
            _candidate(photo, params, k, cell // 2).resize((cell, cell), Image.Resampling.BILINEAR)
            for k in range(self.candidates)
        ]
        panel = paint_grid(cells, 2, CELL_GAP_PX, (size, size), True)
        return side_by_side(whole, panel, GAP_PX)


def _box(centre: list[int], side: int) -> tuple[int, int, int, int]:
    left, top = (at - side // 2 for at in centre)
    return left, top, left + side, top + side


def _candidate(photo: Image.Image, params: Params, k: int, side_px: int) -> Image.Image:
    turn, side = params["candidates"][k]
    small = photo.resize((side_px, side_px), Image.Resampling.BILINEAR, _box(params["centre"], side))
    return small.transpose(TURNS[turn]) if turn else small
