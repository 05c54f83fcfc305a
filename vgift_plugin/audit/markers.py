"""Features of the marked points of a picture: where the dots are, and how bright the picture is beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..tasks.task import Sample

Points = list[tuple[float, float]]
RED = np.array([255, 0, 0, 255], np.uint8).view(np.uint32)[0]  # one pixel of an RGBX picture as one number
LEAST_DOT_PX = 5


def marked_points(sample: Sample) -> list[tuple[Points, Points]]:
    """Returns groups of marked points, each as (x, y) in its own view and as (x, y) in the picture.

    Dots of pure red are found in the picture. A list of [x, y] in the sample's params counts as marked if all its
    points lie on pure red after one common translation (a view need not begin at the picture's corner). Such a list
    also tells which point is which. If there is none, the dots are returned in reading order.
    """
    pixels = np.asarray(sample.image.convert("RGBX")).view(np.uint32)[..., 0]
    red = pixels == RED
    dots = _round_spots(red) if red.any() else []
    if not dots:
        return []
    groups = []
    for own in _point_lists(sample.params):
        # A list of one point is only tried in place: some translation takes any single point to a dot.
        steps = [(0, 0), *((x - own[0][0], y - own[0][1]) for x, y in dots * (len(own) > 1))]
        for dx, dy in steps:
            seen: Points = [(round(x + dx), round(y + dy)) for x, y in own]
            if all(0 <= x < red.shape[1] and 0 <= y < red.shape[0] and red[int(y), int(x)] for x, y in seen):
                groups.append((own, seen))
                break
    return groups or [(dots, dots)]


def _round_spots(red: np.ndarray) -> Points:
    """Returns the centres of the round spots of an (h, w) mask in reading order; red letters are not round."""
    from scipy import ndimage  # a dependency of scikit-learn

    labels, _ = ndimage.label(red)
    centres = []
    for k, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        high, wide = rows.stop - rows.start, columns.stop - columns.start
        if wide >= LEAST_DOT_PX and abs(high - wide) <= 1 and (labels[rows, columns] == k).mean() > 0.7:
            centres.append(((columns.start + columns.stop - 1) // 2, (rows.start + rows.stop - 1) // 2))
    return centres


def _point_lists(value: Any) -> Iterator[Points]:
    """Yields every list of [x, y] in nested params; an [x, y] outside any list is yielded as a list of one."""

    def is_point(item: Any) -> bool:
        return isinstance(item, (list, tuple)) and len(item) == 2 and all(type(part) in (int, float) for part in item)

    if is_point(value):
        yield [tuple(value)]
    elif isinstance(value, (list, tuple)) and value and all(map(is_point, value)):
        yield [tuple(item) for item in value]
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _point_lists(item)


def position_features(groups: list[tuple[Points, Points]], longest_px: int) -> np.ndarray:
    """Returns coordinates of the marked points and, for each pair of them, distance, |dx|, |dy|, sum of x, sum of y.

    All are in the coordinates of each point's own view, as shares of the picture's longer side. So a match at the same
    place of two views has distance 0, and in a mirrored view a constant sum of x.
    """
    points = np.array([xy for own, _ in groups for xy in own], float).reshape(-1, 2) / longest_px
    first, second = (points[k] for k in np.triu_indices(len(points), 1))
    apart, sums = np.abs(first - second), first + second
    return np.concatenate([points.ravel(), np.linalg.norm(apart, axis=1), apart.ravel(), sums.ravel()])


def brightness_features(groups: list[tuple[Points, Points]], instruction: str, grey: np.ndarray) -> np.ndarray:
    """Returns which listed colour each point gets when points and colours are both sorted by brightness.

    Args:
        groups: see `marked_points`.
        instruction: the colours are its (r, g, b).
        grey: (h, w) grey values.

    Returns:
        One-hot, (N * N,); empty unless the text lists as many colours as one group has points.
    """
    listed = re.findall(r"\((\d+), ?(\d+), ?(\d+)\)", instruction)
    shown = [seen for _, seen in groups if len(seen) == len(listed) > 1]
    if not shown:
        return np.zeros(0)
    rank = np.argsort(np.argsort([_beside(grey, int(x), int(y)) for x, y in shown[0]]))
    luma = np.array(listed, float) @ [0.299, 0.587, 0.114]
    return np.eye(len(listed))[np.argsort(luma)[rank]].ravel()


def _beside(grey: np.ndarray, x: int, y: int) -> float:
    """Returns the median on a circle just outside the dot at (x, y); the dot covers the point itself."""
    angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    at = int(grey[y, x])
    reach = next((r for r in range(4, 16) if abs(int(grey[y, max(0, x - r)]) - at) > 100), 6) + 4
    columns = np.clip(np.round(x + reach * np.cos(angles)), 0, grey.shape[1] - 1).astype(int)
    rows = np.clip(np.round(y + reach * np.sin(angles)), 0, grey.shape[0] - 1).astype(int)
    return float(np.median(grey[rows, columns]))
