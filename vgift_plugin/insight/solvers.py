"""What solves a sample without looking at what the picture shows, and the weak classifiers that try it.

Each solver sees one thing about a sample as a row of numbers. A *cheat* sees nothing of the content: where it beats
chance on held-out photographs, the answer has leaked. A *cue* sees a little of the content: beating chance is fair.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..errors import ConfigError
from ..task import Sample
from .dots import marked_points, rings

CHEAT, CUE = "cheat", "cue"
WORD_BUCKETS = 256
NUMBERS = 48  # of an instruction, counted from its start and once more from its end
BLOCK_PX = 8  # of JPEG
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


def compression(sample: Sample) -> np.ndarray:
    """Returns traces of JPEG's 8×8 grid and of resampling, freed of the content's own direction.

    32 numbers: the step between neighbouring pixels beyond that of the neighbouring steps, by its place modulo 8,
    counted from the left, the right, the top and the bottom, relative to the mean step in that direction; JPEG's grid
    begins in one corner, so they tell which. Then, horizontal against vertical: how fast luma falls off towards the
    finest detail, and how much finer detail each chroma channel has beside luma (4:2:2 halves it one way only).
    """
    planes = np.moveaxis(np.asarray(sample.image.convert("YCbCr"), np.float32), -1, 0)
    phases, slopes, detail = [], [], []
    for turned in (planes, planes.transpose(0, 2, 1)):  # steps to the right, then downwards
        first = np.abs(np.diff(turned, axis=2))
        second = np.abs(np.diff(turned, 2, axis=2)).mean((1, 2)) + 0.05
        detail.append(np.log(second))
        slopes.append(np.log(second[0] / (first[0].mean() + 0.05)))
        phases += _by_phase(np.minimum(first[0], EDGE).mean(0))
    across, down = detail
    chroma = (across - down)[1:] - (across - down)[0]
    return np.concatenate([*phases, [slopes[0] - slopes[1]], chroma])


def _by_phase(steps: np.ndarray) -> list[np.ndarray]:
    """Returns the mean excess of (n,) steps by place modulo 8, counted from the first and from the last: two (8,)."""
    if len(steps) < 2 * BLOCK_PX:
        return [np.zeros(BLOCK_PX)] * 2
    excess = np.zeros_like(steps)
    excess[1:-1] = (steps[1:-1] - (steps[:-2] + steps[2:]) / 2) / (steps.mean() + 0.05)
    return [np.array([way[k::BLOCK_PX].mean() for k in range(BLOCK_PX)]) for way in (excess, excess[::-1])]


def marker_positions(sample: Sample) -> np.ndarray:
    """Returns the marked points as shares of the picture's longer side, and all distances between two of them; in the
    coordinates of their own view, so that a match at the same place of both views has distance 0."""
    points = np.array([xy for some in marked_points(sample) for xy in some.own], float).reshape(-1, 2)
    points = points / max(sample.image.size)
    first, second = np.triu_indices(len(points), 1)
    return np.concatenate([points.ravel(), np.linalg.norm(points[first] - points[second], axis=1)])


def brightness_order(sample: Sample) -> np.ndarray:
    """Returns which listed colour falls to each point when points and colours are ordered by brightness, one-hot,
    (N × N,); empty unless the text lists as many (r, g, b) as one group of points has."""
    listed = re.findall(r"\((\d+), ?(\d+), ?(\d+)\)", sample.instruction)
    lists = [some for some in marked_points(sample) if len(some.own) == len(listed) > 1]
    if not lists:
        return np.zeros(0)
    luma = np.array(listed, float) @ [0.299, 0.587, 0.114]
    rank = np.argsort(np.argsort(rings(sample.image, lists[0].seen)))
    return np.eye(len(listed))[np.argsort(luma)[rank]].ravel()


SOLVERS = (
    Solver("answer prior", CHEAT, "the most frequent answer", nothing),
    Solver("instruction text", CHEAT, "words and numbers of the question", instruction_text),
    Solver("picture size", CHEAT, "width, height and aspect ratio", picture_size),
    Solver("padding", CHEAT, "the bars the host pads with", padding),
    Solver("compression traces", CHEAT, "JPEG's 8×8 grid and traces of resampling", compression),
    Solver("marker positions", CHEAT, "where the dots are, and how far apart", marker_positions),
    Solver("16×16 thumbnail", CUE, "the picture in 256 grey values", thumbnail),
    Solver("brightness order", CUE, "points and listed colours, matched by brightness rank", brightness_order),
)


def require_sklearn() -> None:
    """Raises ConfigError, with the cure, where scikit-learn is missing."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise ConfigError("vgift audit needs scikit-learn: pip install 'vgift-plugin[audit]'") from None


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
