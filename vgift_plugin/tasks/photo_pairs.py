"""Point correspondence between two different photographs, as in V-GIFT (arXiv 2604.12966, section 3.2).

The matches are read from the output of `vgift pairs` or from V-GIFT's published metadata.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from ..errors import UnsuitableImage
from .drawing import Marker, PublishedMarker, side_by_side
from .task import PairTask, Params, knob
from .two_pictures import GAP_PX, OneOrTwoImages

PUBLISHED_MARKER = PublishedMarker(radius_px=12, rim="red", rim_px=3, font_px=50, offset=(8, -5), padding_px=5)
PUBLISHED_HEIGHT_PX = 512
MARKER = Marker(radius_px=4, font_px=14)


@dataclass(frozen=True)
class PhotoPairs(OneOrTwoImages, PairTask):
    """Two photographs side by side: a query point in the left one, candidates in the right one."""

    name: ClassVar[str] = "correspondence"
    wordings: ClassVar[tuple[str, ...]] = (
        "Two photographs stand side by side. Which of the numbered points on the right ({numbers}) lies on the same "
        "part of an object as the point Q on the left? Reply with the number only.",
        "The left photograph marks a spot with Q; the right one, of something similar, marks {numbers}. "
        "Which number marks the corresponding spot? Give just the number.",
        "Find the point of the right-hand photograph that corresponds in meaning to Q in the left-hand one. "
        "Candidates: {numbers}. Answer with one number.",
        "Q sits on a part of what the left photograph shows. One of {numbers} sits on the matching part in the right "
        "photograph. Name that number, nothing else.",
    )
    two_image_wordings: ClassVar[tuple[str, ...]] = (
        "Which of the numbered points in the second image ({numbers}) lies on the same part of an object as the point "
        "Q in the first? Reply with the number only.",
        "The first image marks a spot with Q; the second, of something similar, marks {numbers}. "
        "Which number marks the corresponding spot? Give just the number.",
        "Find the point of the second image that corresponds in meaning to Q in the first. "
        "Candidates: {numbers}. Answer with one number.",
        "Q sits on a part of what the first image shows. One of {numbers} sits on the matching part in the second. "
        "Name that number, nothing else.",
    )

    candidates: int = knob(3, "how many points are offered, 2 to 6")
    size_px: int = knob(160, "longest width of each photograph, in pixels; its height is at most 1.5 times that")

    def draw_match(self, match: Mapping[str, Any], rng: np.random.Generator) -> Params:
        """Returns the choices of a sample: distractors and the number of the match. See `PairTask.draw_match`."""
        point, others, wh = match["match"], match["distractors"], match["wh2"]
        for x, y in (match["query"], point, *others):
            if type(x) is not int or type(y) is not int:
                raise ValueError(f"[{x!r}, {y!r}] is no point, such as [123, 45]")
        if len(others) < self.candidates - 1:
            raise ValueError(f"{len(others)} distractors are too few for {self.candidates} candidates")
        scale = _scale(wh, self.size_px)
        panel = int(wh[0] * scale), int(wh[1] * scale)
        kept = [point]
        for k in rng.permutation(len(others)):
            places = [(int(x * scale), int(y * scale)) for x, y in (others[k], *kept)]
            if len(kept) < self.candidates and all(MARKER.clear_of(places[0], place, panel) for place in places[1:]):
                kept.append(others[k])
        if len(kept) < self.candidates:
            raise UnsuitableImage("candidates too close")
        distractors = kept[1:]
        answer = int(rng.integers(self.candidates))
        params = {
            "kind": "pair",
            "size_px": self.size_px,
            "query": match["query"],
            "candidates": [*distractors[:answer], point, *distractors[answer:]],
            "answer": answer,
            "wording": self.draw_wording(rng),
        }
        return self.drawn(params)

    def sizes(self, images: list[Image.Image], params: Params) -> list[tuple[int, int]]:
        """Returns the size of both photographs as they are shown."""
        return [_shown(photo.size, params["size_px"]) for photo in images]

    def render(self, images: list[Image.Image], params: Params) -> Image.Image:
        """Returns both photographs side by side with Q and the numbers.

        Each photograph is fitted into 1×1.5 times `size_px` pixels. With `kind` `published`, the result is the
        composite of V-GIFT's release.
        """
        if params["kind"] == "published":
            return _published(images, params)
        panels = []
        for photo, points, labels in zip(images, *marks(params, "Q"), strict=True):
            scale = _scale(photo.size, params["size_px"])
            shown = _shown(photo.size, params["size_px"])
            panel = photo.resize(shown, Image.Resampling.BILINEAR, reducing_gap=2.0)
            for (x, y), label in zip(points, labels, strict=True):
                MARKER.paint(panel, (int(x * scale), int(y * scale)), label)
            panels.append(panel)
        left, right = panels
        return side_by_side(left, right, GAP_PX)


def marks(params: Params, query: str) -> tuple[list, list]:
    """Returns the points of both photographs and their labels; `query` is the label of the query point."""
    candidates = params["candidates"]
    return [[params["query"]], candidates], [[query], list(map(str, range(len(candidates))))]


def _scale(wh: Sequence[int], size_px: int) -> float:
    return min(size_px / wh[0], 1.5 * size_px / wh[1])


def _shown(wh: Sequence[int], size_px: int) -> tuple[int, int]:
    scale = _scale(wh, size_px)
    return max(1, int(wh[0] * scale)), max(1, int(wh[1] * scale))


def _published(photos: list[Image.Image], params: Params) -> Image.Image:
    """Returns the release's composite: both photographs at a height of 512 px, edge to edge, `Query` on the left."""
    scales = [PUBLISHED_HEIGHT_PX / photo.height for photo in photos]
    panels = [
        photo.resize((int(photo.width * scale), PUBLISHED_HEIGHT_PX))  # bicubic, Pillow's default
        for photo, scale in zip(photos, scales, strict=True)
    ]
    canvas = side_by_side(panels[0], panels[1], 0)
    for left, scale, points, labels in zip((0, panels[0].width), scales, *marks(params, "Query"), strict=True):
        for (x, y), label in zip(points, labels, strict=True):
            PUBLISHED_MARKER.paint(canvas, (left + int(x * scale), int(y * scale)), label)
    return canvas
