"""The reward of one reply: the task's own score, and what it is worth beside a constant answer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from ..tasks.registry import get_task
from ..tasks.task import Task
from .answer import find_answer
from .chance import expected_by_chance


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
