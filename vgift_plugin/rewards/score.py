"""The reward of one reply: the task's own score, and what it is worth beside a constant answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..data.seeding import generator
from ..errors import UnsuitableImage
from ..tasks.drawing import test_card
from ..tasks.registry import get_task
from ..tasks.task import Task
from .answer import find_answer

DRAWS = 256  # samples that the chance level of a task with partial credit is measured on


class Reward(NamedTuple):
    """What a reply earns.

    Attributes:
        score: the task's score of the answer, 0 to 1; 0 if there is no answer.
        exact: 1.0 where the score is 1, else 0.0.
        form: 1.0 where the reply has the requested form, else 0.0.
        gain: max(0, `centered`).
        centered: (score - c) / (1 - c), where c is what a constant answer scores on average; at most 1. Its mean over
            samples is 0 for a constant answer. That of `gain` is not, since a guess is right now and then: a constant
            answer has a mean gain of 1/4 in rotation, as a mean score, and of 0.09 in color with five points (0.2).
    """

    score: float
    exact: float
    form: float
    gain: float
    centered: float


KINDS = Reward._fields


def reward(
    task: str | Task, reply: str, params: Mapping[str, Any], *, form: str = "plain", chance: float | None = None
) -> Reward:
    r"""Returns what a reply earns.

    The answer is found by its form (see `find_answer`) and scored by the task, which compares it exactly: nothing is
    found by substring. `reward("rotation", "<answer>90</answer>", params, form="answer")` is 1.0 in all five fields
    where `params["angle_deg"]` is 90.

    Args:
        task: a task, or the name of one.
        reply: the model's reply, without the prompt and without the end-of-turn token.
        params: the sample's params, which hold the right answer.
        form: `plain`, `answer` (`<answer>…</answer>`), `boxed` (`\boxed{…}`) or `any`.
        chance: c, what a constant answer scores on average; by default `expected_by_chance(task)`. Give it, or a task
            with its knobs, where they change the number of choices.

    Raises:
        ConfigError: no task has that name.
        ValueError: there is no such form, or `chance` is not in [0, 1).
        KeyError, TypeError: the params are not of this task.
    """
    task = _named(task) if isinstance(task, str) else task
    c = expected_by_chance(task) if chance is None else chance
    if not 0 <= c < 1:
        raise ValueError(f"chance must be 0 or more and below 1, not {c}")
    answer, has_form = find_answer(reply, form)
    score = 0.0 if answer is None else float(task.score(answer, dict(params)))
    centered = (score - c) / (1 - c)
    return Reward(score, float(score == 1), float(has_form), max(0.0, centered), centered)


@lru_cache(maxsize=64)
def _named(name: str) -> Task:
    return get_task(name)()


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
    drawn = list(_drawn(task))
    if len(drawn) < 2:
        return task.chance
    answers = [task.response(params) for params in drawn]
    scores = np.array([[task.score(answer, params) for params in drawn] for answer in answers])
    others = float((scores.sum() - np.trace(scores)) / (len(drawn) * (len(drawn) - 1)))
    best = scores[scores[:, ::2].mean(1).argmax(), 1::2]
    better = best.mean() - others > 3 * best.std() / math.sqrt(len(best))
    return min(max(float(best.mean()) if better else others, task.chance), 0.999)


def _drawn(task: Task):
    """Yields the params of samples of a task, drawn from the test card."""
    images = [test_card()] * task.images
    for k in range(DRAWS):
        try:
            yield task.draw(generator(0, "chance", task.name, k), images)
        except (UnsuitableImage, NotImplementedError):
            continue
