"""Colour matching: which colour did each marked point have before the photograph was made grey?

V-GIFT (arXiv 2604.12966), section 3.2 and the release's constants: longest side 512, five points, 20 px margin, mean of
a 5×5 patch, pairwise RGB distance of 40. Here the image is painted at LLaVA-1.5's 336 px with the margin to scale, and
the points have similar brightness: otherwise ranking their grey values answers most items (`vgift audit`).
"""

from __future__ import annotations

import math
import re
import string
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image

from ..errors import UnsuitableImage
from .colors import colorfulness, nearest_names
from .drawing import LUMA, Marker, PublishedMarker, fitted
from .registry import register
from .task import Params, Task, knob, tidy

MARKER = Marker(radius_px=6, font_px=18)
PUBLISHED_MARKER = PublishedMarker(radius_px=8, rim="white", rim_px=2, font_px=28, offset=(5, -3), padding_px=3)
PATCH_PX = 5
CANDIDATES = 256  # points tried, in order, before the photograph is rejected
STARTS = 16  # how many of them are tried as the first point kept


@register
@dataclass(frozen=True)
class Color(Task):
    """A greyscale copy with N lettered dots, to be matched with their N original colours, given in shuffled order."""

    name: ClassVar[str] = "color"
    wordings: ClassVar[tuple[str, ...]] = (
        "The picture is a greyscale copy of a colour photograph with {n} marked points: {letters}. "
        "Their original colours, in shuffled order, are:\n{colors}\n"
        "Assign a colour number to every point. Answer in the form {form}.",
        "All colour was removed from this photograph. Here are the true colours of the points {letters}, "
        "listed in random order:\n{colors}\n"
        "Which number belongs to which letter? Reply as {form}.",
        "Look at the points {letters} in this black-and-white version of a photograph. "
        "Match each of them with the colour it had:\n{colors}\n"
        "Write your answer like this: {form}.",
        "{n} points are labelled in this greyscale image ({letters}). "
        "Decide from the scene which of these colours each point really has:\n{colors}\n"
        "Give all pairs in the format {form}.",
    )

    informative: ClassVar[tuple[str, ...]] = ("colors",)

    points: int = knob(5, "how many points are marked, 2 to 9")
    size_px: int = knob(336, "longest side of the painted image, in pixels")
    margin_px: int = knob(14, "least distance of a point from the border, in pixels")
    min_distance: float = knob(40.0, "least distance between two of the colours (Euclidean, RGB 0 to 255)")
    max_brightness_range: float = knob(
        70.0, "most that points may differ in grey value (0 to 255); with 255, their order by brightness tells most"
    )
    min_colorfulness: float = knob(
        15.0, "photographs below this colourfulness (Hasler and Süsstrunk 2003) are near-grey"
    )
    published_markers: bool = knob(False, "paint the markers of V-GIFT's release, which are larger")
    min_side_px: int = knob(64, "photographs with a shorter side than this are passed over")

    def __post_init__(self):
        super().__post_init__()
        if not 2 <= self.points <= 9:
            raise ValueError(f"points must be 2 to 9, not {self.points}")
        if not 0 <= self.max_brightness_range <= 255:
            raise ValueError(f"max_brightness_range must be 0 to 255, not {self.max_brightness_range:g}")
        if self.margin_px < PATCH_PX // 2:
            raise ValueError(
                f"margin_px must be at least {PATCH_PX // 2}, so that the patch is inside; not {self.margin_px}"
            )
        if self.size_px < 4 * self.margin_px + 64:
            raise ValueError(f"size_px must be at least 4 × margin_px + 64, not {self.size_px}")

    @property
    def picture_px(self) -> int:
        """`size_px`."""
        return self.size_px

    def draw(self, rng: np.random.Generator, images: list[Image.Image]) -> Params:
        """Returns the points (pixels of the painted image), their colours, and the order in which these are listed."""
        (photo,) = images
        if min(photo.size) < self.min_side_px:
            raise UnsuitableImage("too small")
        small = fitted(photo, self.size_px)
        if min(small.size) <= 2 * self.margin_px + PATCH_PX:
            raise UnsuitableImage("too narrow")
        if colorfulness(np.asarray(small.reduce(max(1, max(small.size) // 64)))) < self.min_colorfulness:
            raise UnsuitableImage("near-grey")
        points, colors = self._choose(rng, np.asarray(small))
        order = rng.permutation(self.points)
        return {
            "size_px": self.size_px,
            "points": points,
            "colors": colors,
            "order": order.tolist(),
            "published": self.published_markers,
            "wording": self.draw_wording(rng),
        }

    def _choose(self, rng: np.random.Generator, pixels: np.ndarray) -> tuple[list, list]:
        """Returns points and colours: the first set that fits the rules, over several random starting points."""
        height, width, _ = pixels.shape
        margin = self.margin_px
        xs = rng.integers(margin, width - margin, CANDIDATES)
        ys = rng.integers(margin, height - margin, CANDIDATES)
        dy, dx = np.divmod(np.arange(PATCH_PX**2)[:, None], PATCH_PX)
        patches = pixels[ys + dy - PATCH_PX // 2, xs + dx - PATCH_PX // 2]  # (25, candidates, 3)
        colors = patches.mean(0).astype(int)  # rounded down, as the release does
        points = list(zip(xs.tolist(), ys.tolist(), strict=True))
        for start in range(STARTS):
            kept = self._kept(start, points, colors, (width, height))
            if len(kept) == self.points:
                return [list(points[k]) for k in kept], colors[kept].tolist()
        raise UnsuitableImage("too few distinct colours")

    def _kept(self, start: int, points: list, colors: np.ndarray, wh: tuple[int, int]) -> list[int]:
        """Returns the indices of the points kept: `start`, then in order every point that fits all kept so far.

        A point fits if it is far enough away in place and colour and close enough in brightness. At most `points`
        points are kept.
        """
        grey = colors @ LUMA
        fits = np.ones(len(points), bool)
        kept: list[int] = []
        pick = start
        while True:
            if all(MARKER.clear_of(points[pick], points[k], wh) for k in kept):
                kept.append(pick)
                fits &= np.abs(grey - grey[pick]) <= self.max_brightness_range
                fits &= ((colors - colors[pick]) ** 2).sum(1) >= self.min_distance**2
            fits[pick] = False
            if len(kept) == self.points or np.count_nonzero(fits) < self.points - len(kept):
                return kept
            pick = int(fits.argmax())

    def render(self, images: list[Image.Image], params: Params) -> Image.Image:
        """Returns the greyscale copy, as RGB, at a longest side of `size_px`, with dots and letters."""
        (photo,) = images
        canvas = fitted(photo, params["size_px"]).convert("L").convert("RGB")
        marker = PUBLISHED_MARKER if params["published"] else MARKER
        for letter, xy in zip(string.ascii_uppercase, params["points"], strict=False):
            marker.paint(canvas, tuple(xy), letter)
        return canvas

    def words(self, params: Params) -> dict[str, str]:
        """Returns the letters, the numbered colours and the form of the answer."""
        order, names = params["order"], nearest_names(np.array(params["colors"]))
        letters = string.ascii_uppercase[: len(order)]
        listed = (
            f"{number}. RGB({', '.join(map(str, params['colors'][k]))}) ({names[k]})"
            for number, k in enumerate(order, 1)
        )
        form = ", ".join(f"{letter}-number" for letter in letters)
        return {"n": str(len(order)), "letters": ", ".join(letters), "colors": "\n".join(listed), "form": form}

    def response(self, params: Params) -> str:
        """Returns every letter with the number of its colour: `A-3, B-1, C-5, D-2, E-4`."""
        order = params["order"]
        return ", ".join(
            f"{letter}-{order.index(k) + 1}" for k, letter in enumerate(string.ascii_uppercase[: len(order)])
        )

    def grade(self, reply: str, response: str) -> float:
        """Returns the share of correct pairs, compared in order; 0 if the number of pairs is wrong.

        `A-2, B-1, x` scores 2/3 against `A-2, B-1, C-3`.
        """
        pairs, truth = (re.split(r", ?", text) for text in (tidy(reply), response))
        return sum(map(str.__eq__, pairs, truth)) / len(truth) if len(pairs) == len(truth) else 0.0

    @property
    def chance(self) -> float:
        """1/N! for N points: 1/120 for five."""
        return 1 / math.factorial(self.points)
