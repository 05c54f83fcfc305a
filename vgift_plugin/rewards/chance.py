"""What a constant answer scores on average."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from PIL import Image

from ..data.seeding import generator
from ..errors import UnsuitableImage
from ..tasks.drawing import test_card
from ..tasks.task import Params, Task

DRAWS = 256  # samples that the chance level of a task with partial credit is measured on


@lru_cache(maxsize=64)
def expected_by_chance(task: Task) -> float:
    """Returns c: what the best constant answer scores on average.

    Where an answer is right or wrong it is `task.chance`, since answers are uniform. Where it earns partial credit, c
    is measured on samples drawn from the test card: the mean score of one sample's answer on another sample or, where
    answers are not alike, what the answer that is best on one half of the samples scores on the other half, if that is
    more by three standard errors. Colour matching of five points has a chance of 1/120 and a c of about 1/5. It takes
    up to a second, once for each task in a process.

    Args:
        task: a task; its knobs count.
    """
    kind = type(task)
    if kind.grade is Task.grade and kind.score is Task.score:
        return task.chance
    drawn = list(drawn_params(task, DRAWS))
    if len(drawn) < 2:
        return task.chance
    answers = [task.response(params) for params in drawn]
    scores = np.array([[task.score(answer, params) for params in drawn] for answer in answers])
    others = float((scores.sum() - np.trace(scores)) / (len(drawn) * (len(drawn) - 1)))
    best = scores[scores[:, ::2].mean(1).argmax(), 1::2]
    better = best.mean() - others > 3 * best.std() / math.sqrt(len(best))
    return min(max(float(best.mean()) if better else others, task.chance), 0.999)


def drawn_params(task: Task, draws: int) -> Iterator[Params]:
    """Yields the params of samples of a task, drawn from the test card (and textures, where it takes several images).

    There are fewer than `draws` where some draws are unsuitable, and none for a task that is made from stored pairs.
    """
    images = [test_card(), *(_texture(k) for k in range(1, task.images))]
    for k in range(draws):
        try:
            yield task.draw(generator(0, "chance", task.name, k), images)
        except (UnsuitableImage, NotImplementedError):
            continue


def _texture(k: int) -> Image.Image:
    """Returns coloured noise of 640×480 pixels, another for each k."""
    coarse = generator(0, "texture", k).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)
