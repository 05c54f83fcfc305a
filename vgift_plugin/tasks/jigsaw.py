"""Jigsaw: in which order do the shuffled tiles restore the photograph?

Visual Jigsaw (penghao-wu/visual_jigsaw), Jigsaw-R1 and SSL4RL use this task as a reward for reinforcement learning.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image

from .registry import register
from .task import Params, tidy
from .tiles import TiledTask, box_of, paint_tiles, thumbnail


@register
@dataclass(frozen=True)
class Jigsaw(TiledTask):
    """The tiles of a photograph in a random order, each order equally likely, the right one included."""

    name: ClassVar[str] = "jigsaw"
    wordings: ClassVar[tuple[str, ...]] = (
        "A photograph was cut into {n} tiles ({rows} of {columns}) and the tiles were shuffled. Count the tiles as "
        "they are shown, from 1 at the top left to {n} at the bottom right, row by row. In which order do they "
        "restore the photograph? Reply with the numbers only, separated by commas.",
        "These {n} tiles, in {rows} of {columns}, come from one photograph and are out of order. Give the tile numbers "
        "(1 to {n}, row by row as shown) in the order that rebuilds the photograph row by row, separated by commas.",
        "Solve this puzzle of {rows} of {columns} tiles: which of the shown tiles, numbered 1 to {n} row by row, "
        "goes to the first place, which to the second, and so on? Answer with a list of numbers, nothing else.",
        "The picture shows the {n} pieces of a scene in a random arrangement ({rows} of {columns}). Number them row by "
        "row from 1 and write the numbers in their proper order, separated by commas.",
    )

    @property
    def chance(self) -> float:
        """1/n! for n tiles: 1/24 for four."""
        return 1 / float(np.prod(np.arange(1.0, self.tiles + 1)))

    def draw(self, rng: np.random.Generator, images: list[Image.Image]) -> Params:
        """Returns the grid and `shown`: for each place the place in the photograph of the tile shown there."""
        (photo,) = images
        params = self.draw_tiles(rng, photo)
        self.require_different([thumbnail(photo, box_of(params, place)) for place in range(self.tiles)])
        return {**params, "shown": rng.permutation(self.tiles).tolist()}

    def render(self, images: list[Image.Image], params: Params) -> Image.Image:
        """Returns the shuffled tiles."""
        return paint_tiles(images[0], params, params["shown"])

    def response(self, params: Params) -> str:
        """Returns for each place in the photograph the number of the shown tile that belongs there: `2, 1, 4, 3`."""
        shown = params["shown"]
        return ", ".join(str(shown.index(place) + 1) for place in range(len(shown)))

    def grade(self, reply: str, response: str) -> float:
        """Returns the share of tiles in place; 0 if the reply is no order of all tiles.

        `2, 1, 3, 4` scores 2/4 against `2, 1, 4, 3`, and `1, 1, 1, 1` scores 0.
        """
        given, truth = (re.split(r", ?", text) for text in (tidy(reply), response))
        return sum(map(str.__eq__, given, truth)) / len(truth) if sorted(given) == sorted(truth) else 0.0
