"""V-GIFT's release (arXiv 2604.12966): its metadata files, the format of their rows, and the names of its pictures."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...data.photos import PUBLISHED
from ...tasks.color import Color
from ...tasks.photo_pairs import PUBLISHED_MARKER, PhotoPairs, marks
from ...tasks.rotation import ANGLES_DEG, Rotation
from ...tasks.task import Params, Task
from .rows import RowFormat

PHOTOS = ("coco/train2017", "COCO/images/train2017")  # in the image folder, as used by LLaVA and by the release
COLOR_SIZE_PX = 512


@dataclass(frozen=True)
class PublishedTask:
    """One task of the release.

    Attributes:
        task: the task whose samples were published.
        format: the format of its metadata rows.
        files: names of its metadata files, the preferred one first.
        parts: the possible parts of its pictures' names, which are `<row's id>_<part>.jpg`.
    """

    task: type[Task]
    format: RowFormat
    files: tuple[str, ...]
    parts: frozenset[str] = field(default_factory=frozenset)

    def metadata(self, folder: str) -> list[Path]:
        """Returns the metadata files that exist in a folder."""
        return [Path(folder, name) for name in self.files if Path(folder, name).is_file()]


def _rotation(task: Rotation, row: Mapping, rng: np.random.Generator) -> Params:
    """Returns the params of a row with id, source_image, rotation_degrees."""
    angle = row["rotation_degrees"]
    if type(angle) is not int or angle not in ANGLES_DEG:
        raise ValueError(f"rotation_degrees is {angle!r}, not 0, 90, 180 or 270")
    return {"angle_deg": angle, "crop": None, "size_px": None, "wording": task.draw_wording(rng)}


def _color(task: Color, row: Mapping, rng: np.random.Generator) -> Params:
    """Returns the params of a row with id, source_image, points (label, x, y, original_color), shuffled_colors,
    answer_mapping."""
    marked, slots = row["points"], row["answer_mapping"]
    letters = list(string.ascii_uppercase[: len(marked)])
    if [point["label"] for point in marked] != letters:
        raise ValueError(f"points are labelled {[point['label'] for point in marked]}, not {letters}")
    if sorted(slots.values()) != list(range(1, len(marked) + 1)):
        raise ValueError(f"answer_mapping {slots} does not number the points from 1 to {len(marked)}")
    for point in marked:
        numbers = [point["x"], point["y"], *point["original_color"]]
        if not all(type(number) is int for number in numbers) or not all(0 <= number <= 255 for number in numbers[2:]):
            raise ValueError(f"{point!r:.200} needs whole numbers x and y, and three colours from 0 to 255")
    order = sorted(range(len(marked)), key=lambda k: slots[letters[k]])
    colors = [point["original_color"] for point in marked]
    if row["shuffled_colors"] != [colors[k] for k in order]:
        raise ValueError("shuffled_colors and answer_mapping contradict each other")
    return {
        "size_px": COLOR_SIZE_PX,
        "points": [[point["x"], point["y"]] for point in marked],
        "colors": colors,
        "order": order,
        "published": True,
        "wording": task.draw_wording(rng),
    }


def _correspondence(task: PhotoPairs, row: Mapping, rng: np.random.Generator) -> Params:
    """Returns the params of a row with id, image1_name, image2_name, point_img1, points_img2, correspondence_index."""
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


def _xy(text: str) -> list[int]:
    """Returns [123, 45] for `(123, 45)`."""
    match = re.fullmatch(r"\(\s*(\d+),\s*(\d+)\s*\)", text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no point, such as '(123, 45)'")
    return [int(match[1]), int(match[2])]


def _color_points(params: Params) -> tuple[list, int]:
    return [params["points"]], COLOR_SIZE_PX


def _pair_points(params: Params) -> tuple[list, None]:
    return marks(params, "Q")[0], None


# Rotation and correspondence ignore the EXIF orientation, although the points of the latter were chosen on upright
# photographs; color uses the upright photograph.
RELEASE = (
    PublishedTask(
        Color,
        RowFormat(_color, ("source_image",), points=_color_points),
        ("colorization_metadata.json",),
        frozenset({"colorization"}),
    ),
    PublishedTask(
        PhotoPairs,
        RowFormat(_correspondence, ("image1_name", "image2_name"), False, points=_pair_points),
        ("point_correspondence_metadata.json", "point_correspondence_onevision_metadata.json"),
        frozenset({"correspondence", "img1", "img2"}),
    ),
    PublishedTask(
        Rotation,
        RowFormat(_rotation, ("source_image",), False),
        ("rotation_metadata.json",),
        frozenset(f"rot{angle}" for angle in ANGLES_DEG),
    ),
)


def of_task(name: str) -> PublishedTask | None:
    """Returns the published form of a task; None if it was not published."""
    return next((one for one in RELEASE if one.task.name == name), None)


def reading(name: str) -> tuple[PublishedTask, str, str] | None:
    """Returns (published task, row's id, part) from the name of a published picture; None for other names."""
    match = PUBLISHED.fullmatch(name.rpartition("/")[2])
    if match is None:
        return None
    return next(one for one in RELEASE if match["part"] in one.parts), match["id"], match["part"]


def paint(task: Task, images: list[Image.Image], params: Params, part: str) -> Image.Image:
    """Returns the picture of a row for the given `part` of its name.

    It is the task's picture, or one of the two pictures of the two-image form (OneVision): `img1` with Q, `img2` with
    numbers, each photograph at its own size.
    """
    if part not in ("img1", "img2"):
        return task.render(images, params)
    side = int(part == "img2")
    picture = images[side].copy()
    points, labels = marks(params, "Q")
    for xy, label in zip(points[side], labels[side], strict=True):
        PUBLISHED_MARKER.paint(picture, tuple(xy), label)
    return picture


def with_stored_knobs(kind: type[Task], task: Any) -> Task:
    """Returns a task of class `kind` with the knobs that it shares with `task` copied."""
    return kind(**{name: getattr(task, name) for name in kind.knobs() if hasattr(task, name)})
