"""The solvers of the audit: what each one knows of a sample, as a row of numbers.

A *cheat* is given nothing that depends on what the picture shows, or next to nothing. Where it beats its control on
held-out photographs, the answer has leaked. A *cue* is given some of the content, so it may beat chance.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from PIL import Image

from ..errors import ConfigError
from ..tasks.task import Sample
from .markers import Points, brightness_features, marked_points, position_features

CHEAT, CUE = "cheat", "cue"
CHANCE, PRIOR, SHIFTED = "chance", "answer prior", "shifted photographs"  # the controls, as the table names them
WORD_BUCKETS = 256
NUMBERS = 48  # of an instruction, counted from its start and once more from its end
BLOCK_PX = 8  # of JPEG
PERIODS_PX = np.arange(3.0, 8.05, 0.1)  # of the block grid after the picture was resized by 0.4 to 1
EDGE = 16  # grey levels; larger steps between pixels are edges of the content, and would outweigh the block borders
OUTLIER = 3.0  # times the median; larger excesses are lines of the content, and are clipped


class SolverInput:
    """A sample with what several solvers need of it, each computed once.

    Attributes:
        sample: the sample.
    """

    def __init__(self, sample: Sample):
        self.sample = sample

    @cached_property
    def grey_image(self) -> Image.Image:
        """The picture in grey values."""
        return self.sample.image.convert("L")

    @cached_property
    def grey(self) -> np.ndarray:
        """(h, w) grey values, 0 to 255, uint8."""
        return np.asarray(self.grey_image)

    @cached_property
    def points(self) -> list[tuple[Points, Points]]:
        """Groups of marked points; see `marked_points`."""
        return marked_points(self.sample)


@dataclass(frozen=True)
class Solver:
    """One way to guess.

    Attributes:
        name: as shown in the table.
        kind: CHEAT or CUE.
        about: one sentence for the page.
        see: input -> (d,) float array; d may differ between samples. If all are empty, the task has nothing of the
            kind to see.
        control: what a cheat is compared with. CHANCE; PRIOR for what sees no pixel, so that content cannot help it:
            chance, or the most frequent answer where that beats chance; SHIFTED for what sees pixels: the same solver
            on samples of shifted photographs (see controls.py). "" for a cue.
    """

    name: str
    kind: str
    about: str
    see: Callable[[SolverInput], np.ndarray]
    control: str = ""


def nothing(seen: SolverInput) -> np.ndarray:
    """Returns a constant, which leaves the most frequent answer as the best guess."""
    return np.zeros(1)


def instruction_text(seen: SolverInput) -> np.ndarray:
    """Returns counts of words, hashed into 256 buckets, and the numbers of the text in their order.

    The numbers are listed from the start and again from the end, since wordings differ in what comes before them.
    """
    counts = np.zeros(WORD_BUCKETS)
    for word in re.findall(r"\w+", seen.sample.instruction.lower()):
        counts[zlib.crc32(word.encode()) % WORD_BUCKETS] += 1
    numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", seen.sample.instruction)]
    ordered = np.full((2, NUMBERS), -1.0)
    for row, some in zip(ordered, (numbers[:NUMBERS], numbers[::-1][:NUMBERS]), strict=True):
        row[: len(some)] = some
    return np.concatenate([counts, ordered.ravel()])


def picture_size(seen: SolverInput) -> np.ndarray:
    """Returns width and height in pixels, and the logarithm of the aspect ratio, signed and unsigned."""
    width, height = seen.sample.image.size
    aspect = np.log(width / height)
    return np.array([width, height, aspect, abs(aspect)])


def padding(seen: SolverInput) -> np.ndarray:
    """Returns the bars left, above, right and below after LLaVA's `pad` to a square, in pixels and as shares."""
    width, height = seen.sample.image.size
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    bars = np.array([left, top, side - width - left, side - height - top], float)
    return np.concatenate([bars, bars / side])


def thumbnail(seen: SolverInput) -> np.ndarray:
    """Returns 16×16 grey values, 0 to 255, row by row; the aspect ratio is lost."""
    return np.asarray(seen.grey_image.resize((16, 16), Image.Resampling.BOX), float).ravel()


def jpeg_grid(seen: SolverInput) -> np.ndarray:
    """Returns the phase of JPEG's grid of 8×8 blocks, (44,).

    The grid begins in the top left corner of the file. A picture that was turned, mirrored or cut shows it elsewhere.
    Measured is by how much the mean step between two neighbouring columns (or rows) exceeds the mean steps beside it.
    Large excesses are clipped, so that one strong line of the content, such as a horizon, counts little beside 20 or
    more block borders. It still counts, hence the control.

    The features are the mean excess by place modulo 8, counted from the left, the right, the top and the bottom. For
    pictures that were resized, the strongest period across and down is added with its strength, and cosine and sine of
    its phase at both ends.
    """
    grey = seen.grey.astype(np.int16)
    phases, waves = [], []
    for axis in (1, 0):  # steps to the right, then downwards
        steps = np.minimum(np.abs(np.diff(grey, axis=axis)), EDGE).mean(1 - axis)
        excess = np.zeros_like(steps)
        excess[1:-1] = steps[1:-1] - (steps[:-2] + steps[2:]) / 2
        limit = max(OUTLIER * float(np.median(np.abs(excess))), 0.02)
        excess = np.clip(excess, -limit, limit) / limit
        for way in (excess, excess[::-1]):
            places = np.resize(np.arange(BLOCK_PX), len(way))
            counts = np.maximum(np.bincount(places, minlength=BLOCK_PX), 1)
            phases.append(np.bincount(places, way, BLOCK_PX) / counts)
        turns = _turns(len(excess))
        strengths = turns @ excess / max(1, len(excess))
        best = np.abs(strengths).argmax()
        first, last = strengths[best], (turns[best] @ excess[::-1]) / max(1, len(excess))
        ends = np.array([first, last]) / max(abs(first), 1e-6)
        waves.append([PERIODS_PX[best], abs(first), *ends.real, *ends.imag])
    return np.concatenate([*phases, *waves])


@lru_cache(maxsize=256)  # a few sizes recur in thousands of samples
def _turns(length: int) -> np.ndarray:
    """Returns the complex exponentials of PERIODS_PX at places 1 to `length`, (periods, length)."""
    return np.exp(-2j * np.pi * (np.arange(length) + 1) / PERIODS_PX[:, None])


def fine_detail(seen: SolverInput) -> np.ndarray:
    """Returns how fine detail differs between the horizontal and the vertical direction, (3,).

    First how fast luma falls off towards the finest detail, then how much more of it each chroma channel has than luma.
    JPEG's tables and 4:2:2 subsampling leave their direction here, but so do trees.
    """
    second = np.zeros(3)  # of luma and both chroma channels
    for channel, band in enumerate(seen.sample.image.convert("YCbCr").split()):
        plane = np.asarray(band, np.int16)
        across, down = (_log_mean(np.diff(plane, 2, axis)) for axis in (1, 0))
        second[channel] = across - down
        if channel == 0:
            first = _log_mean(np.diff(plane, 1, 1)) - _log_mean(np.diff(plane, 1, 0))
    return np.array([second[0] - first, *(second[1:] - second[0])])


def _log_mean(differences: np.ndarray) -> float:
    return float(np.log(np.abs(differences, out=differences).mean() + 0.05))


def marker_positions(seen: SolverInput) -> np.ndarray:
    """Returns where the marked points are and how far apart; see `position_features`."""
    return position_features(seen.points, max(seen.sample.image.size))


def brightness_order(seen: SolverInput) -> np.ndarray:
    """Returns points and listed colours, matched by brightness; see `brightness_features`."""
    return brightness_features(seen.points, seen.sample.instruction, seen.grey)


# Marker positions contain no image content, so that solver has the same control as those that see no pixels.
SOLVERS = (
    Solver("answer prior", CHEAT, "the most frequent answer", nothing, CHANCE),
    Solver("instruction text", CHEAT, "words and numbers of the question", instruction_text, PRIOR),
    Solver("picture size", CHEAT, "width, height and aspect ratio", picture_size, PRIOR),
    Solver("padding", CHEAT, "the bars the host pads with", padding, PRIOR),
    Solver("JPEG grid", CHEAT, "where the 8×8 blocks begin", jpeg_grid, SHIFTED),
    Solver("marker positions", CHEAT, "where the dots are, and how far apart", marker_positions, PRIOR),
    Solver("16×16 thumbnail", CUE, "the picture in 256 grey values", thumbnail),
    Solver("fine detail", CUE, "finest detail, horizontal against vertical", fine_detail),
    Solver("brightness order", CUE, "points and listed colours, matched by brightness rank", brightness_order),
)


def require_sklearn() -> None:
    """Raises ConfigError, and names the package to install, if scikit-learn is missing."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise ConfigError("scikit-learn is needed for this: pip install 'vgift-plugin[audit]'") from None
