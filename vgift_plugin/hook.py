"""The hook: two names of the host's training module are replaced, after a check that they are what they should be.

LLaVA's `train()` looks up `DataArguments` and `make_supervised_data_module` as globals of its module when it is called,
and hands all that the latter returns to the trainer. Replacing these two names is therefore enough: flags parse in the
host's own parser, and dataset and callback reach the host's own trainer, which stays as it is. With `--preference_data`
alone a third one, `LLaVATrainer`, is a subclass of the host's until `train()` has made its trainer.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import sys
from collections.abc import Callable
from dataclasses import field, fields, is_dataclass, make_dataclass
from types import ModuleType
from typing import Any, get_type_hints

from .errors import HostMismatchError
from .methods.l2t.templates import read as read_templates
from .methods.vgift.flags import Flags

logger = logging.getLogger(__name__)
HOST = "llava.train.train"
ARGUMENTS, MAKE = "DataArguments", "make_supervised_data_module"
MAKE_PARAMETERS = ("tokenizer", "data_args")

_originals: dict[ModuleType, dict[str, Any]] = {}


def attach(
    module: ModuleType | None = None,
    defaults: dict[str, Any] | None = None,
    notify: Callable[[str], None] = lambda event: None,
) -> None:
    """Lets LLaVA's training code parse the plugin's flags and do what they ask for. Attaching twice is harmless.

    Args:
        module: the training module; `llava.train.train` by default.
        defaults: {flag: value} for flags that the command line does not have.
        notify: told `attached`, and `mixed` or `plain` once the data module was made with or without samples.

    Raises:
        HostMismatchError: the module has not the two names, or not as expected; nothing was changed.
    """
    module = importlib.import_module(HOST) if module is None else module
    if module in _originals:
        return
    check(module)
    show_log()
    given = defaults or {}
    _originals[module] = {name: getattr(module, name) for name in (ARGUMENTS, MAKE)}
    setattr(module, ARGUMENTS, _with_flags(module, getattr(module, ARGUMENTS), Flags.of(given)))
    setattr(module, MAKE, _with_samples(module, getattr(module, MAKE), given, notify))
    notify("attached")


def detach(module: ModuleType | None = None) -> None:
    """Puts the two replaced names back, the very same objects. Detaching what is not attached is harmless."""
    module = sys.modules.get(HOST) if module is None else module
    for name, original in _originals.pop(module, {}).items():
        setattr(module, name, original)


def check(module: ModuleType) -> None:
    """Checks the seams the plugin needs.

    Raises:
        HostMismatchError: naming each seam with what was expected and what was found.
    """
    problems = []
    arguments, make = getattr(module, ARGUMENTS, None), getattr(module, MAKE, None)
    if not (isinstance(arguments, type) and is_dataclass(arguments)):
        problems.append(f"{ARGUMENTS}: expected a dataclass, found {arguments!r}")
    elif missing := {"data_path", "image_folder"} - {f.name for f in fields(arguments)}:
        problems.append(f"{ARGUMENTS}: expected the fields data_path and image_folder, {sorted(missing)} missing")
    if not callable(make):
        problems.append(f"{MAKE}: expected a function of ({', '.join(MAKE_PARAMETERS)}), found {make!r}")
    elif not set(MAKE_PARAMETERS) <= set(inspect.signature(make).parameters):
        problems.append(
            f"{MAKE}: expected the parameters ({', '.join(MAKE_PARAMETERS)}), found {inspect.signature(make)}"
        )
    train = getattr(module, "train", None)
    if inspect.isfunction(train):  # absent while the module is still being executed
        unused = [name for name in (ARGUMENTS, MAKE) if name not in train.__code__.co_names]
        problems += [f"{name}: expected train() to look it up as a global, it does not" for name in unused]
    if problems:
        where = getattr(module, "__file__", None) or module.__name__
        raise HostMismatchError(
            "\n".join(
                [
                    f"{where} is not a LLaVA training module this version of vgift-plugin can extend:",
                    *(f"  - {problem}" for problem in problems),
                    "Nothing was changed. Tested hosts are listed in the README; a fork needs these two names in the "
                    "module that trains (or pass that module to vgift_plugin.attach).",
                ]
            )
        )


def show_log() -> None:
    """Makes this package's messages visible on stderr, all on rank 0, warnings elsewhere: LLaVA sets up no logging."""
    from .methods.vgift.callbacks import is_rank_zero

    package = logging.getLogger("vgift_plugin")
    if not package.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("[vgift] %(message)s"))
        package.addHandler(handler)
        package.setLevel(logging.INFO if is_rank_zero() else logging.WARNING)
        package.propagate = False


def _with_flags(module: ModuleType, base: type, defaults: Flags) -> type:
    """Returns a subclass of the host's argument dataclass with the flags, which checks them as they are parsed."""
    from .methods.stic.preference import check as check_preferences

    def __post_init__(self):
        if hasattr(base, "__post_init__"):
            base.__post_init__(self)
        flags = Flags.of(self)
        flags.resolve()
        if flags.instruct_templates is not None:
            read_templates(flags.instruct_templates)
        check_preferences(module, flags)

    hints = get_type_hints(Flags)
    added = [
        (f.name, hints[f.name], field(default=getattr(defaults, f.name), metadata=f.metadata)) for f in fields(Flags)
    ]
    inherited = {"__post_init__": __post_init__, "__module__": module.__name__, "__doc__": base.__doc__}
    return make_dataclass(base.__name__, added, bases=(base,), namespace=inherited)


def _with_samples(module: ModuleType, original: Callable, given: dict[str, Any], notify: Callable) -> Callable:
    """Returns the host's function, whose result holds a mixture or pairs and callbacks where the flags ask for them."""
    from .methods.stic.preference import TRAINER, preferring, trainer_of
    from .methods.vgift.mixture import mixed
    from .methods.vitp.training import with_methods

    signature = inspect.signature(original)

    @functools.wraps(original)
    def make_supervised_data_module(*args, **kwargs):
        arguments = signature.bind(*args, **kwargs).arguments
        data_module = original(*args, **kwargs)
        flags = Flags.of(arguments["data_args"])
        for name, value in given.items():
            if getattr(flags, name) != value:
                own = getattr(flags, name)
                logger.info("--%s: the training script's own %s wins over %s from vgift run", name, own, value)
        asks = flags.resolve()
        mixes = bool(asks and flags.ssl_ratio > 0) or flags.ssl_replay is not None or flags.learns_instructions
        if flags.preference_data is not None:
            setattr(module, TRAINER, _originals[module].setdefault(TRAINER, trainer_of(module)))
            data_module = preferring(module, data_module, flags, arguments["tokenizer"], arguments["data_args"])
            notify("mixed")
        elif mixes:
            data_module = mixed(module, data_module, flags, asks, arguments["tokenizer"], arguments["data_args"])
            notify("mixed")
        else:
            if asks:
                logger.info("--ssl_ratio 0: no self-supervised sample is mixed in, the training set is LLaVA's own")
            notify("plain")
        return with_methods(data_module, flags, arguments["data_args"], compared=mixes)

    return make_supervised_data_module
