"""What solves a sample without looking at what the picture shows, and the weak classifiers that try it.

Each solver sees one thing about a sample as a row of numbers. A *cheat* sees nothing of the content: where it beats
chance on held-out photographs, the answer has leaked. A *cue* sees a little of the content: beating chance is fair.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..errors import ConfigError
from ..tasks.task import Sample

CHEAT, CUE = "cheat", "cue"
WORD_BUCKETS = 256
NUMBERS = 48  # of an instruction, counted from its start and once more from its end
BLOCK_PX = 8  # of JPEG
PERIODS_PX = np.arange(3.0, 8.05, 0.1)  # of that grid where the picture was resized by 0.4 to 1
EDGE = 16.0  # grey levels; larger steps are edges of what is shown, and would drown the steps between blocks


@dataclass(frozen=True)
class Solver:
    """One way to guess.

    Attributes:
        name: as shown in the table.
        kind: CHEAT or CUE.
        about: one sentence for the page.
        see: sample -> (d,) float array; d may differ between samples. All empty: there is nothing of the kind to see.
    """

    name: str
    kind: str
    about: str
    see: Callable[[Sample], np.ndarray]


def nothing(sample: Sample) -> np.ndarray:
    """Returns one constant: what is left is the most frequent answer."""
    return np.zeros(1)


def instruction_text(sample: Sample) -> np.ndarray:
    """Returns counts of words (hashed into 256 buckets) and the numbers in their order, from the start and from the
    end, since the words before them differ from wording to wording."""
    counts = np.zeros(WORD_BUCKETS)
    for word in re.findall(r"\w+", sample.instruction.lower()):
        counts[zlib.crc32(word.encode()) % WORD_BUCKETS] += 1
    numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", sample.instruction)]
    ordered = np.full((2, NUMBERS), -1.0)
    for row, some in zip(ordered, (numbers[:NUMBERS], numbers[::-1][:NUMBERS]), strict=True):
        row[: len(some)] = some
    return np.concatenate([counts, ordered.ravel()])


def picture_size(sample: Sample) -> np.ndarray:
    """Returns width and height in pixels, and the logarithm of the aspect ratio, signed and unsigned."""
    width, height = sample.image.size
    aspect = np.log(width / height)
    return np.array([width, height, aspect, abs(aspect)])


def padding(sample: Sample) -> np.ndarray:
    """Returns the bars left, above, right and below after LLaVA's `pad` to a square, in pixels and as shares."""
    width, height = sample.image.size
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    bars = np.array([left, top, side - width - left, side - height - top], float)
    return np.concatenate([bars, bars / side])


def thumbnail(sample: Sample) -> np.ndarray:
    """Returns 16×16 grey values, 0 to 255, row by row; the aspect ratio is lost in them."""
    small = sample.image.convert("L").resize((16, 16), Image.Resampling.BOX)
    return np.asarray(small, float).ravel()


def jpeg_grid(sample: Sample) -> np.ndarray:
    """Returns where JPEG's grid of 8×8 blocks begins; it begins in the top left corner of the file, so a picture that
    was turned, mirrored or cut shows it elsewhere. (44,), in which the content has next to no say.

    Measured is the step between neighbouring pixels beyond that of the steps beside it, relative to the mean step.
    First by its place modulo 8, counted from the left, the right, the top and the bottom; then, for pictures that
    were resized, across and down: the strongest period, its strength, and cosine and sine of its phase at both ends.
    """
    grey = np.asarray(sample.image.convert("L"), np.float32)
    phases, waves = [], []
    for pixels in (grey, grey.T):  # steps to the right, then downwards
        steps = np.minimum(np.abs(np.diff(pixels, axis=1)), EDGE).mean(0)
        excess = np.zeros_like(steps)
        excess[1:-1] = (steps[1:-1] - (steps[:-2] + steps[2:]) / 2) / (steps.mean() + 0.05)
        for way in (excess, excess[::-1]):
            places = np.resize(np.arange(BLOCK_PX), len(way))
            counts = np.maximum(np.bincount(places, minlength=BLOCK_PX), 1)
            phases.append(np.bincount(places, way, BLOCK_PX) / counts)
        turns = np.exp(-2j * np.pi * (np.arange(len(excess)) + 1) / PERIODS_PX[:, None])
        strengths = turns @ excess / max(1, len(excess))
        best = np.abs(strengths).argmax()
        first, last = strengths[best], (turns[best] @ excess[::-1]) / max(1, len(excess))
        ends = np.array([first, last]) / max(abs(first), 1e-6)
        waves.append([PERIODS_PX[best], abs(first), *ends.real, *ends.imag])
    return np.concatenate([*phases, *waves])


def fine_detail(sample: Sample) -> np.ndarray:
    """Returns how fine detail differs between across and down: how fast luma falls off towards the finest, and how much
    more of it each chroma channel has, (3,). JPEG's tables and 4:2:2 leave their direction here, but so do trees."""
    planes = np.moveaxis(np.asarray(sample.image.convert("YCbCr"), np.float32), -1, 0)
    across, down = (
        np.log([np.abs(np.diff(planes, k, axis=axis)).mean((1, 2)) + 0.05 for k in (1, 2)]) for axis in (2, 1)
    )
    first, second = across - down  # each (3,): luma and both chroma channels
    return np.array([second[0] - first[0], *(second[1:] - second[0])])


Points = list[tuple[float, float]]


def marked_points(sample: Sample) -> list[tuple[Points, Points]]:
    """Returns groups of marked points, each as (x, y) in its own view and as (x, y) in the picture.

    Dots of pure red are found in the picture. A list of [x, y] among the choices counts as marked where all its points,
    moved by one common step (their view need not begin at the picture's corner), lie on pure red; so it is known which
    point is which. Without such a list: the dots in the order of reading.
    """
    pixels = np.asarray(sample.image)
    red = (pixels[..., 0] == 255) & (pixels[..., 1] == 0) & (pixels[..., 2] == 0)
    dots = _round_spots(red) if red.any() else []
    if not dots:
        return []
    groups = []
    for own in _point_lists(sample.params):
        # One point alone would lie on a dot by some step, whatever it is.
        steps = [(0, 0), *((x - own[0][0], y - own[0][1]) for x, y in dots * (len(own) > 1))]
        for dx, dy in steps:
            seen = [(round(x + dx), round(y + dy)) for x, y in own]
            if all(0 <= x < red.shape[1] and 0 <= y < red.shape[0] and red[y, x] for x, y in seen):
                groups.append((own, seen))
                break
    return groups or [(dots, dots)]


def _round_spots(red: np.ndarray) -> Points:
    """Returns the centres of the round spots of an (h, w) mask, in the order of reading; letters are not round."""
    from scipy import ndimage  # scikit-learn brings it

    labels, _ = ndimage.label(red)
    centres = []
    for k, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        high, wide = rows.stop - rows.start, columns.stop - columns.start
        if wide >= 5 and abs(high - wide) <= 1 and (labels[rows, columns] == k).mean() > 0.7:
            centres.append(((columns.start + columns.stop - 1) // 2, (rows.start + rows.stop - 1) // 2))
    return centres


def _point_lists(value: Any) -> Iterator[Points]:
    """Yields every list of [x, y] in nested choices; an [x, y] that is in no list is a list of one."""

    def is_point(item: Any) -> bool:
        return isinstance(item, (list, tuple)) and len(item) == 2 and all(type(part) in (int, float) for part in item)

    if is_point(value):
        yield [tuple(value)]
    elif isinstance(value, (list, tuple)) and value and all(map(is_point, value)):
        yield [tuple(item) for item in value]
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _point_lists(item)


def marker_positions(sample: Sample) -> np.ndarray:
    """Returns the marked points as shares of the picture's longer side and, for any two of them, their distance, the
    distance across and down, and the sums across and down; all in the coordinates of their own view. So a match at the
    same place of two views has distance 0, and in a mirrored view a constant sum across."""
    points = np.array([xy for own, _ in marked_points(sample) for xy in own], float).reshape(-1, 2)
    points = points / max(sample.image.size)
    first, second = (points[k] for k in np.triu_indices(len(points), 1))
    apart, sums = np.abs(first - second), first + second
    return np.concatenate([points.ravel(), np.linalg.norm(apart, axis=1), apart.ravel(), sums.ravel()])


def brightness_order(sample: Sample) -> np.ndarray:
    """Returns which listed colour falls to each point when points and colours are ordered by brightness, one-hot,
    (N × N,); empty unless the text lists as many (r, g, b) as one group of points has."""
    listed = re.findall(r"\((\d+), ?(\d+), ?(\d+)\)", sample.instruction)
    groups = [seen for _, seen in marked_points(sample) if len(seen) == len(listed) > 1]
    if not groups:
        return np.zeros(0)
    grey = np.asarray(sample.image.convert("L"), float)
    rank = np.argsort(np.argsort([_beside(grey, x, y) for x, y in groups[0]]))
    luma = np.array(listed, float) @ [0.299, 0.587, 0.114]
    return np.eye(len(listed))[np.argsort(luma)[rank]].ravel()


def _beside(grey: np.ndarray, x: int, y: int) -> float:
    """Returns the median of a circle just outside the dot at (x, y), which covers the point itself."""
    angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    reach = next((r for r in range(4, 16) if abs(grey[y, max(0, x - r)] - grey[y, x]) > 100), 6) + 4
    columns = np.clip(np.round(x + reach * np.cos(angles)), 0, grey.shape[1] - 1).astype(int)
    rows = np.clip(np.round(y + reach * np.sin(angles)), 0, grey.shape[0] - 1).astype(int)
    return float(np.median(grey[rows, columns]))


SOLVERS = (
    Solver("answer prior", CHEAT, "the most frequent answer", nothing),
    Solver("instruction text", CHEAT, "words and numbers of the question", instruction_text),
    Solver("picture size", CHEAT, "width, height and aspect ratio", picture_size),
    Solver("padding", CHEAT, "the bars the host pads with", padding),
    Solver("JPEG grid", CHEAT, "where the 8×8 blocks begin", jpeg_grid),
    Solver("marker positions", CHEAT, "where the dots are, and how far apart", marker_positions),
    Solver("16×16 thumbnail", CUE, "the picture in 256 grey values", thumbnail),
    Solver("fine detail", CUE, "finest detail, across against down", fine_detail),
    Solver("brightness order", CUE, "points and listed colours, matched by brightness rank", brightness_order),
)


def require_sklearn() -> None:
    """Raises ConfigError, with the cure, where scikit-learn is missing."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise ConfigError("scikit-learn is needed for this: pip install 'vgift-plugin[audit]'") from None


def table_of(rows: list[np.ndarray]) -> np.ndarray:
    """Returns rows of different lengths as one (n, d) array, filled up with -1."""
    wide = np.full((len(rows), max(map(len, rows), default=0)), -1.0)
    for row, values in zip(wide, rows, strict=True):
        row[: len(values)] = values
    return wide


def guess(seen: np.ndarray, targets: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Learns to answer on one half and answers on the other.

    The mean of two classifiers' probabilities: logistic regression finds what is proportional, boosted trees what is
    not. Nothing is tuned on the held-out half.

    Args:
        seen: (n, d) floats.
        targets: (n,) answers.
        train, test: indices.

    Returns:
        (len(test),) answers.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classes, counts = np.unique(targets[train], return_counts=True)
    varying = np.ptp(seen[train], axis=0) > 0
    if len(classes) < 2 or not varying.any():
        return np.full(len(test), classes[counts.argmax()])
    seen = seen[:, varying]
    models = (
        make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300)),
        HistGradientBoostingClassifier(max_iter=40, max_leaf_nodes=15, early_stopping=False, random_state=0),
    )
    votes = sum(model.fit(seen[train], targets[train]).predict_proba(seen[test]) for model in models)
    return classes[votes.argmax(1)]
