"""Flipped tile: which tile of the grid is mirrored? (Spatial-SSRL, InternLM/Spatial-SSRL)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image

from ..errors import UnsuitableImage
from .registry import register
from .task import Params, knob, listed
from .tiles import TiledTask, box_of, difference, paint_tiles, thumbnail

FLIPS = {"left to right": Image.Transpose.FLIP_LEFT_RIGHT, "top to bottom": Image.Transpose.FLIP_TOP_BOTTOM}


@register
@dataclass(frozen=True)
class Flipped(TiledTask):
    """A photograph as a numbered grid in which one tile, each equally likely, is mirrored.

    A tile that looks the same when it is mirrored is not used: the photograph is passed over.
    """

    name: ClassVar[str] = "flipped"
    wordings: ClassVar[tuple[str, ...]] = (
        "The photograph is divided into {n} numbered tiles ({rows} of {columns}), and one of them is mirrored. "
        "Which one? Reply with its number only.",
        "One of the tiles {numbers} was flipped, left to right or top to bottom, and no longer fits its neighbours. "
        "Give the number of that tile.",
        "Look at the numbered grid: every tile but one is shown as in the original photograph. Which tile, of "
        "{numbers}, is its mirror image? Answer with one number.",
        "A single tile of this {n}-tile picture has been reflected. Name its number, nothing else.",
    )

    min_difference: float = knob(6.0, "least mean difference (0 to 255) of a tile from its mirror image")

    @property
    def chance(self) -> float:
        """1/n for n tiles: 1/4 for four."""
        return 1 / self.tiles

    def draw(self, rng: np.random.Generator, images: list[Image.Image]) -> Params:
        """Returns the grid, the mirrored tile (from 0) and the way it is mirrored."""
        (photo,) = images
        params = self.draw_tiles(rng, photo)
        way = list(FLIPS)[int(rng.integers(len(FLIPS)))]
        # Every tile must differ from its mirror image: if only some did, the flat ones would never be the answer.
        for place in range(self.tiles):
            tile = thumbnail(photo, box_of(params, place))
            if difference(tile, tile[:, ::-1] if way == "left to right" else tile[::-1]) < self.min_difference:
                raise UnsuitableImage("symmetric tile")
        return {**params, "way": way, "flipped": int(rng.integers(self.tiles))}

    def words(self, params: Params) -> dict[str, str]:
        """Returns also the numbers of the tiles."""
        rows, columns = params["grid"]
        return {**super().words(params), "numbers": listed(range(1, rows * columns + 1), "and")}

    def render(self, images: list[Image.Image], params: Params) -> Image.Image:
        """Returns the numbered grid with the mirrored tile."""
        rows, columns = params["grid"]
        flip = {params["flipped"]: FLIPS[params["way"]]}
        return paint_tiles(images[0], params, range(rows * columns), flip, label=True)

    def response(self, params: Params) -> str:
        """Returns the number of the mirrored tile, from 1."""
        return str(params["flipped"] + 1)
