"""A photograph cut into a grid of tiles, as several tasks show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UnsuitableImage
from .drawing import label_box, looks_flat
from .task import Params, Task, knob

BLOCK_PX = 16  # of JPEG, chroma included: tiles of such sides begin at the same place of its grid
THUMB_PX = 8  # sides at which tiles are compared
FONT_PX = 14


def thumbnail(photo: Image.Image, box: tuple[int, int, int, int], side_px: int = THUMB_PX) -> np.ndarray:
    """Returns a part of a photograph as (side, side, 3) float32."""
    return np.asarray(photo.resize((side_px, side_px), Image.Resampling.BOX, box), np.float32)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the mean absolute difference of two pictures, 0 to 255."""
    return float(np.abs(a - b).mean())


@dataclass(frozen=True)
class TiledTask(Task):
    """A task on tiles of equal size. Of each tile a part of its border is not shown.

    Otherwise edges that go on from one tile to the next would tell which tiles are neighbours. The sides of a tile in
    the photograph are multiples of 16 pixels, so that all tiles have the same part of JPEG's grid. Every tile is
    resized by itself.
    """

    rows: int = knob(2, "rows of tiles, 1 to 6")
    columns: int = knob(2, "columns of tiles, 1 to 6")
    size_px: int = knob(336, "longest side of the painted image, in pixels")
    gap_px: int = knob(6, "space between two tiles, in pixels")
    hidden: float = knob(0.15, "share of a tile's side that is not shown, at each of its borders, 0 to 0.4")
    min_difference: float = knob(8.0, "least mean difference (0 to 255) of what must be told apart")
    min_contrast: float = knob(5.0, "photographs whose brightness varies less than this (grey levels) are passed over")
    min_side_px: int = knob(64, "photographs with a shorter side than this are passed over")

    def __post_init__(self):
        super().__post_init__()
        for name in ("rows", "columns"):
            if not 1 <= getattr(self, name) <= 6:
                raise ValueError(f"{name} must be 1 to 6, not {getattr(self, name)}")
        if self.rows * self.columns < 2:
            raise ValueError("rows must be at least 2 where columns is 1")
        if not 0 <= self.hidden <= 0.4:
            raise ValueError(f"hidden must be 0 to 0.4, not {self.hidden:g}")
        if not 0 <= self.gap_px <= self.size_px // 8:
            raise ValueError(f"gap_px must be 0 to an eighth of size_px, not {self.gap_px}")
        if self.size_px < 24 * max(self.rows, self.columns):
            raise ValueError(f"size_px must be at least 24 a tile, not {self.size_px}")

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return self.rows * self.columns

    @property
    def picture_px(self) -> int:
        """`size_px`."""
        return self.size_px

    def draw_tiles(self, rng: np.random.Generator, photo: Image.Image) -> Params:
        """Returns the grid: place and size of the tiles in the photograph, and how they are painted.

        Raises:
            UnsuitableImage: the photograph is too small or shows nothing.
        """
        if min(photo.size) < self.min_side_px:
            raise UnsuitableImage("too small")
        if looks_flat(photo, self.min_contrast):
            raise UnsuitableImage("no contrast")
        parts = (self.columns, self.rows)
        tile = [side // part // BLOCK_PX * BLOCK_PX for side, part in zip(photo.size, parts, strict=True)]
        if min(tile) < BLOCK_PX or max(tile) > 8 * min(tile):
            raise UnsuitableImage("too narrow")
        origin = [
            BLOCK_PX * int(rng.integers((side - part * length) // BLOCK_PX + 1))
            for side, part, length in zip(photo.size, parts, tile, strict=True)
        ]
        hidden = [int(self.hidden * length) for length in tile]
        seen = [length - 2 * edge for length, edge in zip(tile, hidden, strict=True)]
        gaps = [(part - 1) * self.gap_px for part in parts]
        scale = min(1.0, *((self.size_px - gap) / (part * s) for gap, part, s in zip(gaps, parts, seen, strict=True)))
        return {
            "grid": [self.rows, self.columns],
            "origin": origin,
            "tile": tile,
            "hidden": hidden,
            "cell": [max(1, int(length * scale)) for length in seen],
            "gap_px": self.gap_px,
            "wording": self.draw_wording(rng),
        }

    def require_different(self, tiles: Sequence[np.ndarray]) -> None:
        """Raises UnsuitableImage if two of the pictures look alike."""
        if any(difference(*pair) < self.min_difference for pair in combinations(tiles, 2)):
            raise UnsuitableImage("tiles look alike")

    def words(self, params: Params) -> dict[str, str]:
        """Returns the numbers of rows, columns and tiles."""
        rows, columns = params["grid"]
        return {"rows": f"{rows} row{'s' * (rows > 1)}", "columns": str(columns), "n": str(rows * columns)}


def box_of(params: Params, place: int) -> tuple[int, int, int, int]:
    """Returns the visible part of the tile at a place (reading order, from 0): left, top, right, bottom."""
    row, column = divmod(place, params["grid"][1])
    (x, y), (width, height), (dx, dy) = params["origin"], params["tile"], params["hidden"]
    left, top = x + column * width, y + row * height
    return left + dx, top + dy, left + width - dx, top + height - dy


def paint_tiles(
    photo: Image.Image, params: Params, shown: Sequence[int], turned: dict[int, Any] | None = None, label: bool = False
) -> Image.Image:
    """Returns the grid on white.

    Args:
        photo: the photograph.
        params: see `TiledTask.draw_tiles`.
        shown: for each place in reading order the place in the photograph of the tile shown there.
        turned: {place: Pillow transpose} of tiles that are turned or mirrored.
        label: whether to paint each place's number, from 1, into its top left corner.
    """
    (rows, columns), (width, height), gap = params["grid"], params["cell"], params["gap_px"]
    cells = [photo.resize((width, height), Image.Resampling.BILINEAR, box_of(params, source)) for source in shown]
    for place, way in (turned or {}).items():
        cells[place] = cells[place].transpose(way)
    wh = columns * (width + gap) - gap, rows * (height + gap) - gap
    return paint_grid(cells, columns, gap, wh, label)


def paint_grid(
    cells: Sequence[Image.Image], columns: int, gap_px: int, wh: tuple[int, int], label: bool
) -> Image.Image:
    """Returns pictures of one size row by row on white, of size `wh` in all; see `paint_tiles` for `label`."""
    canvas = Image.new("RGB", wh, "white")
    for place, cell in enumerate(cells):
        row, column = divmod(place, columns)
        at = column * (cell.width + gap_px), row * (cell.height + gap_px)
        canvas.paste(cell, at)
        if label:
            canvas.paste(label_box(str(place + 1), FONT_PX), at)
    return canvas
