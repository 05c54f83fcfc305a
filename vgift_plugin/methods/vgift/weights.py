"""Weights of tasks from what a checkpoint can do already (`--ssl_weights_from`): the JSON of `vgift probe`.

Which self-supervised task helps depends on the model: one that is solved gives no signal, and one that is too hard does
harm (SSL4RL; see the README of tasks).
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from ...data.strict import read_settings
from ...errors import ConfigError
from ...tasks.task import Task

SOLVED = 0.9  # accuracy from which a task counts as solved
REDUCED = Fraction(1, 4)  # what is left of the weight of a task that is solved, or at chance


def factors(path: str, tasks: Mapping[str, Task]) -> dict[str, tuple[Fraction, str]]:
    """Returns {task: (factor of its weight, reason)}: 1/4 for tasks that are solved or at chance, else 1.

    A task is at chance if the 95 % interval of its accuracy does not begin above chance.

    Raises:
        ConfigError: the file is not one of `vgift probe --json` with these tasks and these knobs.
    """
    try:
        content = read_settings(path)
        results, settings = dict(content["tasks"]), dict(content["settings"])
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise ConfigError(
            f"--ssl_weights_from {path}: is not what `vgift probe --ssl_tasks ... --json FILE` writes ({err})"
        ) from err
    missing = [name for name in tasks if name not in results]
    if missing:
        raise ConfigError(f"--ssl_weights_from {path}: {', '.join(missing)} was not probed, only {', '.join(results)}")
    for name, task in tasks.items():
        if settings.get(f"--ssl_tasks, {name}") != repr(task):
            raise ConfigError(
                f"--ssl_weights_from {path}: {name} was probed with other knobs, "
                f"{settings.get(f'--ssl_tasks, {name}')}, and trains with {task!r}"
            )
    try:
        return {name: _factor(results[name]) for name in tasks}
    except (KeyError, TypeError, ValueError) as err:
        raise ConfigError(f"--ssl_weights_from {path}: is damaged ({type(err).__name__}: {err})") from err


def _factor(result: Mapping[str, Any]) -> tuple[Fraction, str]:
    accuracy, low, chance = (float(x) for x in (*(result["sighted"][k] for k in ("accuracy", "low")), result["chance"]))
    if not 0 <= low <= accuracy <= 1:
        raise ValueError(f"accuracy {accuracy} with an interval from {low}")
    if accuracy >= SOLVED:
        return REDUCED, f"solved, {accuracy:.1%} right"
    if low <= chance:
        return REDUCED, f"at chance, {accuracy:.1%} right by {chance:.1%}"
    return Fraction(1), f"learnable, {accuracy:.1%} right"
