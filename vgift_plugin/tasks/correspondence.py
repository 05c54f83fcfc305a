"""Point correspondence: where is the marked point of one view in the other view?

V-GIFT (arXiv 2604.12966), section 3.2, uses pairs of different photographs, matched by DINOv2 features. Here both views
come from one photograph under known warps, so the match is exact and needs no label, mask or model; photo_pairs.py
uses pairs of different photographs with stored matches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image

from ..errors import UnsuitableImage
from .drawing import relit, side_by_side
from .photo_pairs import MARKER, PhotoPairs
from .registry import register
from .task import PairTask, Params, knob
from .two_pictures import GAP_PX, OneOrTwoImages

TRIES = 8  # pairs of views tried before the photograph is rejected
POINTS = 96  # points tried in each pair of views
FLIP = (1, 0, 3, 2)  # order of the corners of a mirrored view
LIGHTS = 3  # brightness, contrast, saturation


def homography(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Returns the 3×3 matrix, bottom right 1, that maps four points to four others; both of shape (4, 2)."""
    rows, right = [], []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        right += [u, v]
    return np.append(np.linalg.solve(np.array(rows, float), np.array(right, float)), 1.0).reshape(3, 3)


def warp(matrix: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Returns points of shape (n, 2) mapped by a homography."""
    out = np.column_stack([xy, np.ones(len(xy))]) @ matrix.T
    return out[:, :2] / out[:, 2:]


def corners(size_px: int) -> np.ndarray:
    """Returns the corners of a square view, clockwise from the top left, as shape (4, 2)."""
    return np.array([[0, 0], [size_px, 0], [size_px, size_px], [0, size_px]], float)


@register
@dataclass(frozen=True)
class Correspondence(OneOrTwoImages):
    """Two square views of one photograph side by side: a query point in the left one, candidates in the right one.

    The views differ in crop, scale, perspective, light, by a random quarter turn and, in half of the samples, by a
    mirror, so the position of the query says nothing about the position of the match. A view is stored as its `quad`:
    the pixels of the photograph at its four corners, which define crop, scale, flip and perspective. All candidates are
    points that both views show, at least `min_distance_px` apart in the right view and with different surroundings.
    Which of them is the match is drawn last, so positions alone do not reveal it.
    """

    name: ClassVar[str] = "correspondence"
    wordings: ClassVar[tuple[str, ...]] = (
        "Two views of the same scene stand side by side. Which of the numbered points on the right ({numbers}) lies "
        "on the spot marked Q on the left? Reply with the number only.",
        "The left view marks a place with Q; the right view shows the scene differently and marks {numbers}. "
        "Which number marks the same place? Give just the number.",
        "Find the point of the right-hand picture that corresponds to Q in the left-hand picture. "
        "Candidates: {numbers}. Answer with one number.",
        "Q on the left and one of {numbers} on the right sit on the same part of the photograph. "
        "Name that number, nothing else.",
    )
    two_image_wordings: ClassVar[tuple[str, ...]] = (
        "The two images are views of the same scene. Which of the numbered points in the second one ({numbers}) lies "
        "on the spot marked Q in the first? Reply with the number only.",
        "The first image marks a place with Q; the second shows the scene differently and marks {numbers}. "
        "Which number marks the same place? Give just the number.",
        "Find the point of the second image that corresponds to Q in the first one. "
        "Candidates: {numbers}. Answer with one number.",
        "Q in the first image and one of {numbers} in the second sit on the same part of the photograph. "
        "Name that number, nothing else.",
    )
    pairs: ClassVar[type[PairTask]] = PhotoPairs

    candidates: int = knob(3, "how many points are offered, 2 to 6")
    size_px: int = knob(160, "side of each square view, in pixels; two and the gap make 336")
    min_scale: float = knob(0.5, "least side of a view as a share of the photograph's shorter side, up to 1")
    turn: bool = knob(True, "turn the right view by a random quarter; otherwise position alone can tell the match")
    max_perspective: float = knob(0.08, "how far a corner may move inwards, as a share of the view's side, 0 to 0.25")
    max_light: float = knob(0.25, "brightness, contrast and saturation change by up to this share, 0 to 0.9")
    min_distance_px: int = knob(30, "least distance between two candidates in the right view, in pixels")
    min_difference: float = knob(10.0, "least mean difference (0 to 255) of what surrounds two candidates")
    margin_px: int = knob(10, "least distance of a point from the border of its view, in pixels")
    min_side_px: int = knob(96, "photographs with a shorter side than this are passed over")

    def __post_init__(self):
        super().__post_init__()
        if not 2 <= self.candidates <= 6:
            raise ValueError(f"candidates must be 2 to 6, not {self.candidates}")
        if not 0.1 <= self.min_scale <= 1:
            raise ValueError(f"min_scale must be 0.1 to 1, not {self.min_scale}")
        if not 0 <= self.max_perspective <= 0.25:
            raise ValueError(f"max_perspective must be 0 to 0.25, not {self.max_perspective}")
        if not 0 <= self.max_light <= 0.9:
            raise ValueError(f"max_light must be 0 to 0.9, not {self.max_light}")
        if self.size_px < 2 * self.margin_px + 2 * self.min_distance_px:
            raise ValueError(f"size_px must be at least 2 × (margin_px + min_distance_px), not {self.size_px}")

    @property
    def longest_px(self) -> int:
        """Twice `size_px` divided by `min_scale`, so that the smallest views need little or no enlarging."""
        return round(2 * self.size_px / self.min_scale)

    def draw(self, rng: np.random.Generator, images: list[Image.Image]) -> Params:
        """Returns two views, the candidates, and which of them matches the query. Points are pixels of their view."""
        (photo,) = images
        if min(photo.size) < self.min_side_px:
            raise UnsuitableImage("too small")
        small = photo.reduce(max(1, max(photo.size) // 256))
        for _ in range(TRIES):
            quads = [self._quad(rng, photo.size), self._quad(rng, photo.size)]
            if rng.random() < 0.5:
                quads[1] = quads[1][list(FLIP)]
            if self.turn:
                quads[1] = np.roll(quads[1], rng.integers(4), axis=0)
            light = (1 + self.max_light * rng.uniform(-1, 1, (2, LIGHTS))).round(3)
            chosen = self._choose(rng, photo.size, small, quads)
            if chosen is not None:
                break
        else:
            raise UnsuitableImage("nothing to tell apart")
        queries, candidates = chosen
        answer = int(rng.integers(self.candidates))
        params = {
            "kind": "views",
            "size_px": self.size_px,
            "views": [
                {"quad": quad.astype(int).tolist(), "light": factors.tolist()}
                for quad, factors in zip(quads, light, strict=True)
            ],
            "query": queries[answer],
            "candidates": candidates,
            "answer": answer,
            "wording": self.draw_wording(rng),
        }
        return self.drawn(params)

    def sizes(self, images: list[Image.Image], params: Params) -> list[tuple[int, int]]:
        """Returns the size of both views."""
        return [(params["size_px"],) * 2] * 2

    def _quad(self, rng: np.random.Generator, wh: tuple[int, int]) -> np.ndarray:
        """Returns the four corners, in whole pixels of the photograph, of a square with its corners moved inwards."""
        side = rng.uniform(self.min_scale, 1.0) * min(wh)
        left, top = rng.uniform(0, wh[0] - side), rng.uniform(0, wh[1] - side)
        inwards = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * rng.uniform(0, self.max_perspective, (4, 2)) * side
        return np.floor(np.array([left, top]) + corners(1) * side + inwards)

    def _choose(self, rng: np.random.Generator, wh: tuple[int, int], small: Image.Image, quads: list[np.ndarray]):
        """Returns (queries, candidates), matching pixels of both views, or None if too few points qualify."""
        to_left, from_right = homography(quads[0], corners(self.size_px)), homography(corners(self.size_px), quads[1])
        inner = self.margin_px, self.size_px - self.margin_px
        right = rng.integers(*inner, (POINTS, 2))
        on_photo = warp(from_right, right + 0.5)
        left = np.floor(warp(to_left, on_photo)).astype(int)
        visible = ((left >= inner[0]) & (left < inner[1])).all(1)
        if visible.sum() < self.candidates:
            return None
        right, left, on_photo = right[visible], left[visible], on_photo[visible]
        around = self._surroundings(wh, small, on_photo, np.ptp(quads[1], axis=0).max() / 10)
        kept: list[int] = []
        for k in range(len(right)):
            if all(self._apart(right[k], right[j], around[k], around[j]) for j in kept):
                kept.append(k)
            if len(kept) == self.candidates:
                return left[kept].tolist(), right[kept].tolist()
        return None

    def _apart(self, xy: np.ndarray, other: np.ndarray, around: np.ndarray, around_other: np.ndarray) -> bool:
        """Returns whether two candidates are distinct in distance, markers and surroundings."""
        return (
            math.dist(xy, other) >= self.min_distance_px
            and MARKER.clear_of(tuple(xy.tolist()), tuple(other.tolist()), (self.size_px, self.size_px))
            and float(np.abs(around - around_other).mean()) >= self.min_difference
        )

    @staticmethod
    def _surroundings(wh: tuple[int, int], small: Image.Image, xy: np.ndarray, reach: float) -> np.ndarray:
        """Returns the colours on a 9×9 grid of half-width `reach` around each point, shape (n, 81, 3).

        Points and reach are in pixels of a photograph of size `wh`, of which `small` is a reduced copy.
        """
        steps = np.linspace(-reach, reach, 9)
        grid = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
        at = ((xy[:, None] + grid) * (np.array(small.size) / wh)).astype(int)
        x, y = np.clip(at[..., 0], 0, small.width - 1), np.clip(at[..., 1], 0, small.height - 1)
        return np.asarray(small, np.float32)[y, x]

    def render(self, images: list[Image.Image], params: Params) -> Image.Image:
        """Returns both views on one canvas, 16 px apart: 336×160 for views of 160 px."""
        (photo,) = images
        left, right = (
            self._view(photo, np.array(view["quad"], float), view["light"], params["size_px"])
            for view in params["views"]
        )
        MARKER.paint(left, tuple(params["query"]), "Q")
        for number, xy in enumerate(params["candidates"]):
            MARKER.paint(right, tuple(xy), str(number))
        return side_by_side(left, right, GAP_PX)

    @staticmethod
    def _view(photo: Image.Image, quad: np.ndarray, light: list[float], size_px: int) -> Image.Image:
        """Returns one view. A cut-out over 1.5 times as large is shrunk before it is warped, to avoid aliasing."""
        box = (*quad.min(0).astype(int).tolist(), *quad.max(0).astype(int).tolist())
        shrink = math.ceil(max(box[2] - box[0], box[3] - box[1]) / size_px / 1.5)
        cut = photo.reduce(shrink, box)
        coefficients = homography(corners(size_px), (quad - box[:2]) / shrink).ravel()[:8].tolist()
        size = (size_px, size_px)
        view = cut.transform(size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)
        return relit(view, *light)
