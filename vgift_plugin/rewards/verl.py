"""The reward function of verl, for the files of `vgift export --format verl`.

    custom_reward_function.path=pkg://vgift_plugin.rewards.verl custom_reward_function.name=compute_score

verl may also load this file by its path, without its package, so imports are absolute.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from vgift_plugin.rewards.score import KINDS, reward
from vgift_plugin.tasks.registry import get_task
from vgift_plugin.tasks.task import Task


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    *,
    form: str = "any",
    kind: str = "score",
    **others: Any,
) -> dict[str, float]:
    """Returns {"score": the reward, "exact", "form", "gain"}; verl logs all of them.

    Args:
        data_source: as exported, such as `vgift/rotation`; not read.
        solution_str: the reply.
        ground_truth: the right answer; not read, since `extra_info` holds all of the sample's choices.
        extra_info: as exported: task, knobs and params, the latter two as JSON.
        form: see `reward`; set by `custom_reward_function.reward_kwargs`.
        kind: the field of `Reward` that is the reward.
        others: further arguments of later versions, ignored.

    Raises:
        ValueError: the row was not written by `vgift export --format verl`, or there is no such form or kind.
    """
    if not extra_info or not {"task", "params"} <= extra_info.keys():
        raise ValueError(f"a row of {data_source} has no task and params; was it written by `vgift export`?")
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    task = _task(extra_info["task"], extra_info.get("knobs") or "{}")
    earned = reward(task, solution_str, json.loads(extra_info["params"]), form=form)
    return {"score": getattr(earned, kind), "exact": earned.exact, "form": earned.form, "gain": earned.gain}


@lru_cache(maxsize=64)
def _task(name: str, knobs: str) -> Task:
    return get_task(name)(**json.loads(knobs))
