"""Same scene: which view shows the photograph on the left? (SSL4RL, "contrastive"; SSL-R1, "visual similarity")"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image

from ..errors import UnsuitableImage
from .drawing import looks_flat, side_by_side
from .registry import register
from .task import Params, knob
from .tiles import difference, paint_grid, thumbnail
from .two_pictures import GAP_PX, NumberedCandidates

CELL_GAP_PX = 8
POOL = 8  # photographs a sample


@register
@dataclass(frozen=True)
class SameScene(NumberedCandidates):
    """A photograph on the left, and on the right numbered views: crops, some mirrored, one of them of it.

    The others are of the most similar of seven more photographs (by thumbnails). Every view gets the mean colour and
    the contrast of the left picture, so that neither tells the answer.
    """

    name: ClassVar[str] = "same_scene"
    images: ClassVar[int] = POOL
    first: ClassVar[int] = 1
    wordings: ClassVar[tuple[str, ...]] = (
        "One of the small pictures {numbers} on the right shows a part of the scene on the left, perhaps mirrored. "
        "Which one? Reply with the number only.",
        "Which of the views {numbers} was cut out of the left photograph? It may be mirrored and its colours changed. "
        "Give just the number.",
        "Find the picture on the right that belongs to the same scene as the left one. Candidates: {numbers}. "
        "Answer with one number.",
    )

    candidates: int = knob(4, "how many views are offered, 2 to 6")
    size_px: int = knob(160, "side of the left picture, and of the views together; both and the gap make 336")
    min_share: float = knob(0.5, "least side of a view as a share of its photograph's shorter side, 0.2 to 1")
    max_share: float = knob(0.8, "largest side of a view, likewise")
    match_colors: bool = knob(True, "give all views the mean colour and contrast of the left picture")
    min_difference: float = knob(12.0, "least mean difference (0 to 255) between two of the photographs")
    min_contrast: float = knob(8.0, "photographs whose brightness varies less than this (grey levels) are passed over")
    min_side_px: int = knob(96, "photographs with a shorter side than this are passed over")

    def __post_init__(self):
        super().__post_init__()
        if not 2 <= self.candidates <= 6:
            raise ValueError(f"candidates must be 2 to 6, not {self.candidates}")
        if not 0.2 <= self.min_share <= self.max_share <= 1:
            raise ValueError(
                f"min_share and max_share must be 0.2 to 1, in order, not {self.min_share:g} and {self.max_share:g}"
            )
        if self.size_px < 64:
            raise ValueError(f"size_px must be at least 64, not {self.size_px}")

    @property
    def longest_px(self) -> int:
        """Twice `size_px`: eight photographs are decoded for a sample."""
        return 2 * self.size_px

    def draw(self, rng: np.random.Generator, images: list[Image.Image]) -> Params:
        """Returns the views, each as [number of its photograph, left, top, side, mirrored], and the answer."""
        for photo in images:
            if min(photo.size) < self.min_side_px:
                raise UnsuitableImage("too small")
        if looks_flat(images[0], self.min_contrast):
            raise UnsuitableImage("no contrast")
        small = [thumbnail(photo, _square(photo)) for photo in images]
        apart = {k: difference(small[0], small[k]) for k in range(1, len(images))}
        near = [k for k in sorted(apart, key=lambda k: (apart[k], k)) if apart[k] >= self.min_difference]
        near = [k for k in near if not looks_flat(images[k], self.min_contrast)][: self.candidates - 1]
        if len(near) < self.candidates - 1:
            raise UnsuitableImage("photographs look alike")
        answer = int(rng.integers(self.candidates))
        shown = [int(near[k]) for k in rng.permutation(len(near))]
        shown.insert(answer, 0)
        return {
            "views": [self._view(rng, images[k], k) for k in shown],
            "answer": answer,
            "match_colors": self.match_colors,
            "size_px": self.size_px,
            "wording": self.draw_wording(rng),
        }

    def _view(self, rng: np.random.Generator, photo: Image.Image, number: int) -> list[int]:
        left, top, right, _ = _square(photo)
        side = int(rng.uniform(self.min_share, self.max_share) * (right - left))
        moved = rng.integers(right - left - side + 1, size=2).tolist()
        return [number, left + moved[0], top + moved[1], side, int(rng.integers(2))]

    def words(self, params: Params) -> dict[str, str]:
        """Returns the numbers of the views."""
        return self.numbers(len(params["views"]))

    def render(self, images: list[Image.Image], params: Params) -> Image.Image:
        """Returns the left photograph's central square, and the views in two columns."""
        size, views = params["size_px"], params["views"]
        whole = images[0].resize((size, size), Image.Resampling.BILINEAR, _square(images[0]))
        rows = -(-len(views) // 2)
        cell = (size - CELL_GAP_PX * (rows - 1 if rows > 2 else 1)) // max(2, rows)
        cells = []
        for number, left, top, side, mirrored in views:
            box = (left, top, left + side, top + side)
            view = images[number].resize((cell, cell), Image.Resampling.BILINEAR, box)
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else view
            cells.append(_with_colors(view, whole) if params["match_colors"] else view)
        panel = paint_grid(cells, 2, CELL_GAP_PX, (2 * cell + CELL_GAP_PX, size), True)
        return side_by_side(whole, panel, GAP_PX)


def _square(photo: Image.Image) -> tuple[int, int, int, int]:
    """Returns the largest central square of a photograph."""
    side = min(photo.size)
    left, top = ((length - side) // 2 for length in photo.size)
    return left, top, left + side, top + side


def _with_colors(view: Image.Image, like: Image.Image) -> Image.Image:
    """Returns a view whose mean colour and standard deviation, in each channel, are those of another picture."""
    pixels, wanted = np.asarray(view, np.float32), np.asarray(like, np.float32)
    mean, std = pixels.mean((0, 1)), pixels.std((0, 1)) + 1e-3
    changed = (pixels - mean) / std * wanted.std((0, 1)) + wanted.mean((0, 1))
    return Image.fromarray(np.clip(changed.round(), 0, 255).astype(np.uint8))
