"""Pictures for models that look at them as they are, such as Qwen-VL: sides in multiples of a step, limited areas."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from ...errors import ConfigError
from ...hosts.encoder import on_grid
from ...tasks.task import Sample, Task
from .flags import TaskSpec

Grid = tuple[int, int, int]
HELP = (
    "paint for Qwen-VL: step of a picture's sides (28 for Qwen2.5-VL, 32 for Qwen3-VL), min_pixels and max_pixels of "
    "the run, such as 28,784,50176"
)


def grid_of(text: str | None) -> Grid | None:
    """Returns (step, least area, largest area) in pixels of a flag such as `28,784,50176`; None without it.

    Raises:
        ConfigError: it is malformed.
    """
    if text is None:
        return None
    try:
        step, least, most = map(int, text.split(","))
    except ValueError:
        raise ConfigError(f"--grid {text}: three whole numbers are needed, such as 28,784,50176") from None
    if not (step >= 1 and step**2 <= most and 1 <= least <= most):
        raise ConfigError(f"--grid {text}: step² and min_pixels must be at most max_pixels, and all above 0")
    return step, least, most


def fitted(specs: Iterable[TaskSpec], grid: Grid | None) -> tuple[TaskSpec, ...]:
    """Returns tasks, scaled up if necessary so that the host does not enlarge their pictures; see `Host.grid`."""
    return tuple(specs) if grid is None else tuple(replace(spec, task=_fitted(spec.task, grid)) for spec in specs)


def _fitted(task: Task, grid: Grid) -> Task:
    size_px = task.picture_px
    if size_px is None or size_px**2 >= grid[1]:
        return task
    step, least, _ = grid
    return task.scaled(math.ceil(math.sqrt(least) / step) * step / size_px)


def seen(sample: Sample, grid: Grid | None) -> Sample:
    """Returns the sample with its picture as such a model looks at it; several images are shown as they are painted."""
    return sample if grid is None or sample.boxes else replace(sample, image=on_grid(sample.image, *grid))
