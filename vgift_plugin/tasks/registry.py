"""Registry of tasks by name. Built-in tasks register on import, others by the entry-point group `vgift_plugin.tasks`.

Another package can add a task:

    [project.entry-points."vgift_plugin.tasks"]
    mirror = "my_package.mirror:Mirror"
"""

from __future__ import annotations

import difflib
import importlib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from ..errors import ConfigError
from .task import Task

GROUP = "vgift_plugin.tasks"
_registered: dict[str, type[Task]] = {}


def register(task: type[Task]) -> type[Task]:
    """Returns the task, registered under its `name`; a class decorator.

    Raises:
        ConfigError: the class is not a `Task` with a name and wordings, or another class has that name.
    """
    if not (isinstance(task, type) and issubclass(task, Task) and task.name and task.wordings):
        raise ConfigError(f"{task!r} cannot be registered: a task is a subclass of Task with a name and wordings")
    _built_in()
    other = _registered.setdefault(task.name, task)
    if other is not task:
        raise ConfigError(f"two tasks are called {task.name!r}: {_where(other)} and {_where(task)}; rename one")
    return task


def _built_in() -> None:
    """Registers the built-in tasks, so that no other task can take one of their names."""
    importlib.import_module(__package__)


def _where(task: type[Task]) -> str:
    return f"{task.__module__}.{task.__qualname__}"


def _offered() -> dict[str, EntryPoint]:
    _built_in()
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in _registered}


def presets() -> dict[str, Path]:
    """Returns {name: file} of the shipped settings of knobs, one for a paper."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "presets").glob("*.yaml"))}


def task_names() -> list[str]:
    """Returns the names of all tasks, built-in ones first, without importing other packages' tasks."""
    offered = sorted(_offered())
    return [*_registered, *offered]


def get_task(name: str) -> type[Task]:
    """Returns the task class called `name`.

    Raises:
        ConfigError: no task has that name (a close match is suggested), or the package that provides it fails.
    """
    _built_in()
    if name in _registered:  # skips the scan of installed packages, since this is called for every sample
        return _registered[name]
    offered = _offered()
    if name not in offered:
        known = task_names()
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known tasks: {', '.join(known)}"
        raise ConfigError(f"no task is called {name!r}; {hint}")
    point = offered[name]
    try:
        task = point.load()
    except Exception as err:
        raise ConfigError(f"task {name!r} ({point.value}) cannot be loaded: {type(err).__name__}: {err}") from err
    if getattr(task, "name", None) != name:
        raise ConfigError(f"entry point {name!r} leads to {point.value}, whose name is {getattr(task, 'name', None)!r}")
    return register(task)
