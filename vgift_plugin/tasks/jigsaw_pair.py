"""Jigsaw, one tile: to which place in the photograph does a shown tile belong? (Jigsaw-R1)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image

from .jigsaw import Jigsaw
from .registry import register
from .task import Params, Task


@register
@dataclass(frozen=True)
class JigsawPair(Jigsaw):
    """The shuffled tiles of `jigsaw`, and a question about one of them."""

    name: ClassVar[str] = "jigsaw_pair"
    wordings: ClassVar[tuple[str, ...]] = (
        "A photograph was cut into {n} tiles ({rows} of {columns}) and the tiles were shuffled. Places are counted "
        "from 1 at the top left to {n} at the bottom right, row by row. To which place of the photograph does the "
        "tile at place {tile} belong? Reply with the number only.",
        "These {n} tiles, in {rows} of {columns}, are out of order. Counted row by row from 1, where does the tile now "
        "shown at place {tile} go when the photograph is restored? Give just the number of the place.",
        "In this puzzle of {rows} of {columns} tiles, look at tile {tile} (row by row, from 1). What is its place, "
        "1 to {n}, in the original photograph? Answer with one number.",
    )

    @property
    def chance(self) -> float:
        """1/n for n tiles: 1/4 for four."""
        return 1 / self.tiles

    def draw(self, rng: np.random.Generator, images: list[Image.Image]) -> Params:
        """Returns the choices of `jigsaw` and the place that is asked about, from 0."""
        return {**super().draw(rng, images), "asked": int(rng.integers(self.tiles))}

    def words(self, params: Params) -> dict[str, str]:
        """Returns also the number of the tile that is asked about."""
        return {**super().words(params), "tile": str(params["asked"] + 1)}

    def response(self, params: Params) -> str:
        """Returns the number of the place in the photograph, from 1."""
        return str(params["shown"][params["asked"]] + 1)

    def grade(self, reply: str, response: str) -> float:
        """Returns 1 for the number alone."""
        return Task.grade(self, reply, response)
