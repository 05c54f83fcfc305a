"""Mixes self-supervised, visually grounded samples into LLaVA fine-tuning, without editing LLaVA.

Importing this package loads neither torch nor llava: public names are imported on first use.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "attach": "launch",
    "detach": "hook",
    "Sample": "tasks.task",
    "Task": "tasks.task",
    "UnsuitableImage": "errors",
    "VgiftError": "errors",
    "generator": "data.seeding",
    "get_task": "tasks.registry",
    "knob": "tasks.task",
    "register": "tasks.registry",
    "task_names": "tasks.registry",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__():
    return sorted([*globals(), *__all__])
