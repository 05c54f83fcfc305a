"""Correspondence between two different photographs: choices stored as rows, by V-GIFT's release or by `vgift pairs`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..errors import UnsuitableImage
from .drawing import Marker, PublishedMarker, side_by_side
from .task import Params, Stored

if TYPE_CHECKING:
    from .correspondence import Correspondence

PUBLISHED_MARKER = PublishedMarker(radius_px=12, rim="red", rim_px=3, font_px=50, offset=(8, -5), padding_px=5)
PUBLISHED_HEIGHT_PX = 512
MARKER = Marker(radius_px=4, font_px=14)
GAP_PX = 16

WORDINGS = (
    "Two photographs stand side by side. Which of the numbered points on the right ({numbers}) lies on the same part "
    "of an object as the point Q on the left? Reply with the number only.",
    "The left photograph marks a spot with Q; the right one, of something similar, marks {numbers}. "
    "Which number marks the corresponding spot? Give just the number.",
    "Find the point of the right-hand photograph that corresponds in meaning to Q in the left-hand one. "
    "Candidates: {numbers}. Answer with one number.",
    "Q sits on a part of what the left photograph shows. One of {numbers} sits on the matching part in the right "
    "photograph. Name that number, nothing else.",
)


def _xy(text: str) -> list[int]:
    """Reads `(123, 45)`."""
    match = re.fullmatch(r"\(\s*(\d+),\s*(\d+)\s*\)", text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no point, such as '(123, 45)'")
    return [int(match[1]), int(match[2])]


def _recall_published(task: Correspondence, row: Mapping, rng: np.random.Generator) -> Params:
    """Reads a row of the release: id, image1_name, image2_name, point_img1, points_img2, correspondence_index."""
    candidates, answer = [_xy(text) for text in row["points_img2"]], row["correspondence_index"]
    if type(answer) is not int or not 0 <= answer < len(candidates):
        raise ValueError(f"correspondence_index {answer!r} is none of the {len(candidates)} points_img2")
    return {
        "kind": "published",
        "query": _xy(row["point_img1"]),
        "candidates": candidates,
        "answer": answer,
        "wording": task.draw_wording(rng),
    }


def _recall_pair(task: Correspondence, row: Mapping, rng: np.random.Generator) -> Params:
    """Reads a row of `vgift pairs`; chooses among its distractors, and which number the match gets.

    Raises:
        UnsuitableImage: too few distractors are left whose markers do not touch.
    """
    match, others, wh = row["match"], row["distractors"], row["wh2"]
    for x, y in (row["query"], match, *others):
        if type(x) is not int or type(y) is not int:
            raise ValueError(f"[{x!r}, {y!r}] is no point, such as [123, 45]")
    if len(others) < task.candidates - 1:
        raise ValueError(f"{len(others)} distractors are too few for {task.candidates} candidates")
    scale = _scale(wh, task.size_px)
    panel = tuple(int(side * scale) for side in wh)
    kept = [match]
    for k in rng.permutation(len(others)):
        places = [tuple(int(c * scale) for c in xy) for xy in (others[k], *kept)]
        if len(kept) < task.candidates and all(MARKER.clear_of(places[0], place, panel) for place in places[1:]):
            kept.append(others[k])
    if len(kept) < task.candidates:
        raise UnsuitableImage("candidates too close")
    chosen = kept[1:]
    answer = int(rng.integers(task.candidates))
    return {
        "kind": "pair",
        "size_px": task.size_px,
        "query": row["query"],
        "candidates": [*chosen[:answer], match, *chosen[answer:]],
        "answer": answer,
        "wording": task.draw_wording(rng),
    }


PUBLISHED = Stored(
    _recall_published,
    ("image1_name", "image2_name"),
    False,  # its pictures are painted from the pixels as they lie, though its points were chosen on upright ones
    ("point_correspondence_metadata.json", "point_correspondence_onevision_metadata.json"),
    r"(?P<id>.+)_(?P<part>correspondence|img1|img2)\.jpg",
)
PAIRS = Stored(_recall_pair, ("image1", "image2"))


def paint_pair(photos: list[Image.Image], params: Params) -> Image.Image:
    """Returns both photographs side by side, each fitted into 1×1.5 times `size_px` pixels, with Q and the numbers."""
    panels = []
    for photo, points, labels in zip(photos, *_marks(params, "Q"), strict=True):
        scale = _scale(photo.size, params["size_px"])
        wh = tuple(max(1, int(side * scale)) for side in photo.size)
        panel = photo.resize(wh, Image.Resampling.BILINEAR, reducing_gap=2.0)
        for (x, y), label in zip(points, labels, strict=True):
            MARKER.paint(panel, (int(x * scale), int(y * scale)), label)
        panels.append(panel)
    return side_by_side(*panels, GAP_PX)


def _scale(wh: tuple[int, int], size_px: int) -> float:
    return min(size_px / wh[0], 1.5 * size_px / wh[1])


def paint_published(photos: list[Image.Image], params: Params) -> Image.Image:
    """Returns the release's composite: both photographs at a height of 512 px, edge to edge, `Query` on the left."""
    scales = [PUBLISHED_HEIGHT_PX / photo.height for photo in photos]
    panels = [
        photo.resize((int(photo.width * scale), PUBLISHED_HEIGHT_PX))  # bicubic, Pillow's default
        for photo, scale in zip(photos, scales, strict=True)
    ]
    canvas = side_by_side(*panels, 0)
    for left, scale, points, labels in zip((0, panels[0].width), scales, *_marks(params, "Query"), strict=True):
        for (x, y), label in zip(points, labels, strict=True):
            PUBLISHED_MARKER.paint(canvas, (left + int(x * scale), int(y * scale)), label)
    return canvas


def paint_part(photos: list[Image.Image], params: Params, part: str) -> Image.Image:
    """Returns one of the two pictures of the release's two-image form (OneVision): `img1` with Q, `img2` with numbers;
    each photograph at its own size."""
    side = int(part == "img2")
    picture = photos[side].copy()
    points, labels = _marks(params, "Q")
    for xy, label in zip(points[side], labels[side], strict=True):
        PUBLISHED_MARKER.paint(picture, tuple(xy), label)
    return picture


def _marks(params: Params, query: str) -> tuple[list, list]:
    """Returns the points of both photographs, and their labels."""
    candidates = params["candidates"]
    return [[params["query"]], candidates], [[query], list(map(str, range(len(candidates))))]
