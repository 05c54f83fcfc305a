"""`vgift tasks`: lists every task with its knobs and a sample."""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from typing import ClassVar

from ..data.seeding import generator
from ..errors import UnsuitableImage
from .drawing import test_card
from .registry import get_task, task_names
from .task import Task


@dataclass(frozen=True)
class ListTasks:
    """List the tasks: chance level, knobs, one sample."""

    EXAMPLE: ClassVar[str] = "example:\n  vgift tasks"

    def run(self) -> str:
        """Returns text on every task: images needed, chance level, knobs and one sample."""
        return "\n\n".join(_described(get_task(name)) for name in task_names())


def summary(kind: type[Task]) -> str:
    """Returns the first paragraph of a task's docstring, which describes the task in one sentence."""
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())


def _described(kind: type[Task]) -> str:
    task = kind()
    lines = [f"{kind.name}   needs {kind.images} image{'s' * (kind.images > 1)}, chance {task.chance:.2%}"]
    lines += textwrap.wrap(summary(kind), 100, initial_indent="  ", subsequent_indent="  ")
    lines.append("  knobs, set in --ssl_config:")
    for name, (default, help) in kind.knobs().items():
        lines.append(f"    {name + ' = ' + json.dumps(default):<28} {help}")
    lines.append("  a sample:")
    try:
        params = task.draw(generator(0, "tasks", kind.name), [test_card()] * kind.images)
        instruction, response = task.ask(params)
        lines.append(textwrap.indent(f"{instruction}\n→ {response}", "    "))
    except UnsuitableImage as unsuitable:
        lines.append(f"    (the built-in picture does not suit it: {unsuitable.reason})")
    return "\n".join(lines)
