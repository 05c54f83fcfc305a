"""The hook: two names of the host's training module are replaced, after a check that they are what they should be.

Every host's `train()` looks up `DataArguments` and `make_supervised_data_module` as globals of its module when it is
called, and hands all that the latter returns to its trainer. So replacing these two is enough: flags parse in the
host's own parser, and datasets and callbacks reach the host's own trainer. Methods may ask for more names to be
replaced until the trainer is made.

(The module is not called `attach`, which is the name of the package's public function.)
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import field, fields, is_dataclass, make_dataclass
from importlib.metadata import version
from types import ModuleType
from typing import Any, get_type_hints

from . import __version__
from .errors import ConfigError
from .hosts import HOSTS, host_of
from .hosts.base import ARGUMENTS, MAKE, Host
from .methods.settings import Settings, all_fields, all_flags, all_paths, reporting

logger = logging.getLogger(__name__)
DEFAULT = HOSTS[-1].modules[0]

_originals: dict[ModuleType, dict[str, Any]] = {}


def attach(
    module: ModuleType | None = None,
    defaults: Mapping[str, Any] | None = None,
    notify: Callable[[str], None] = lambda event: None,
) -> None:
    """Lets a training module parse the plugin's flags and do what they ask for. Attaching twice is harmless.

    Args:
        module: the training module; `llava.train.train` by default.
        defaults: {flag: value} for flags that the command line does not have.
        notify: called with `attached`, and with `applied` or `plain` once the data module was made.

    Raises:
        HostMismatchError: it is no training module of a known host; nothing was changed.
    """
    module = importlib.import_module(DEFAULT) if module is None else module
    if module in _originals:
        return
    host = host_of(module)
    show_log()
    given = dict(defaults or {})
    _originals[module] = {name: getattr(module, name) for name in (ARGUMENTS, MAKE)}
    setattr(module, ARGUMENTS, _with_flags(host, module, getattr(module, ARGUMENTS), given))
    setattr(module, MAKE, _with_methods(host, module, getattr(module, MAKE), given, notify))
    notify("attached")


def detach(module: ModuleType | None = None) -> None:
    """Puts every replaced name back, the very same objects. Detaching what is not attached is harmless."""
    module = sys.modules.get(DEFAULT) if module is None else module
    for name, original in _originals.pop(module, {}).items():  # type: ignore[arg-type]
        setattr(module, name, original)


def show_log() -> None:
    """Makes this package's messages visible on stderr, all on rank 0, warnings elsewhere: hosts set up no logging."""
    from .hosts.trainer import is_rank_zero

    package = logging.getLogger("vgift_plugin")
    if not package.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("[vgift] %(message)s"))
        package.addHandler(handler)
        package.setLevel(logging.INFO if is_rank_zero() else logging.WARNING)
        package.propagate = False


def _with_flags(host: Host, module: ModuleType, base: type, defaults: Mapping[str, Any]) -> type:
    """Returns a subclass of the host's argument dataclass with the flags, which checks them as they are parsed."""
    names = flag_names(module, base)
    if renamed := [f"--{flag} is --{name}" for flag, name in names.items() if flag != name]:
        logger.info("this training code has flags of the same name: in its scripts %s", ", ".join(renamed))

    def __post_init__(self):
        if hasattr(base, "__post_init__"):
            base.__post_init__(self)
        self.vgift_flags = {flag: getattr(self, name) for flag, name in names.items()}
        settings = Settings(self.vgift_flags)
        if host.refuses and settings.wanted():
            raise ConfigError(f"{settings.words()} cannot be had here: {host.refuses}. Nothing was changed.")
        if mistakes := [f"--{flag}: {host.refused[flag]}" for flag in settings.changed() if flag in host.refused]:
            raise ConfigError.of(mistakes)
        settings.check()
        for method, flags in settings.wanted():
            method.check(flags, host, module)
        if settings.wanted():
            host.check_run(self, int(os.environ.get("WORLD_SIZE", "1")))  # no process group yet, but for the launcher's

    hints = {name: hint for kind in all_flags() for name, hint in get_type_hints(kind).items()}
    added = []
    for one in all_fields():
        default = defaults.get(one.name, one.default)
        added.append(
            (names[one.name], hints[one.name], field(default=default, metadata={"help": one.metadata["help"]}))
        )
    inherited = {"__post_init__": __post_init__, "__module__": module.__name__, "__doc__": base.__doc__}
    return make_dataclass(base.__name__, added, bases=(base,), namespace=inherited)


def flag_names(module: ModuleType, base: type) -> dict[str, str]:
    """Returns {flag: its name in this training code}: `vgift_` is put before those that its own dataclasses have.

    For argparse takes no flag twice, and the code must start as it does without the plugin.
    """
    parsed = [one for one in vars(module).values() if isinstance(one, type) and is_dataclass(one)]
    taken = {one.name for kind in {base, *parsed} for one in fields(kind)}
    return {one.name: f"vgift_{one.name}" if one.name in taken else one.name for one in all_fields()}


def _with_methods(
    host: Host, module: ModuleType, original: Callable, given: Mapping[str, Any], notify: Callable[[str], None]
) -> Callable:
    """Returns the host's function; what it returns is changed by the methods that the flags ask for."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def make_supervised_data_module(*args, **kwargs):
        _put_back(module)
        arguments = signature.bind(*args, **kwargs).arguments
        data_module, data_args = original(*args, **kwargs), arguments["data_args"]
        settings = Settings(data_args.vgift_flags)
        for name, value in given.items():
            own = settings.as_dict()[name]
            if own != value:
                logger.info("--%s: the training script's own %s wins over %s from vgift run", name, own, value)
        changed = apply(settings, host, module, host.tokenizer(arguments), data_args, data_module)
        notify("plain" if changed is data_module else "applied")
        return changed

    return make_supervised_data_module


def apply(
    settings: Settings, host: Host, module: ModuleType, tokenizer: Any, data_args: Any, data_module: dict[str, Any]
) -> dict[str, Any]:
    """Returns the data module as changed by all methods that are wanted; the very same object where none is.

    Raises:
        ConfigError: the run has no vision tower; a file or a folder is not usable; the ranks differ.
        HostMismatchError, SelfTestError, NoSuitableImageError: a method does not fit this run.
    """
    wanted = settings.wanted()
    if not wanted:
        return data_module
    from .hosts import ranks
    from .hosts.encoder import remove_stale_files
    from .methods.resume import ResumeCheck
    from .methods.run import Run

    if not host.sees(data_args):
        raise ConfigError(f"{settings.words()}: needs a model that sees; this run has no --vision_tower")
    compared = {name: str(value) for name, value in settings.as_dict().items() if name not in all_paths()}
    versions = {"vgift-plugin": __version__, **{name: version(name) for name in ("numpy", "Pillow")}}
    ranks.require_equal({**{f"--{name}": value for name, value in compared.items()}, **versions})
    remove_stale_files()
    run = Run(host, module, tokenizer, data_args, data_module, settings.changed(), settings.as_dict())
    plans = [plan for method, flags in wanted if (plan := method.plan(flags, run)) is not None]
    facts = {name: value for plan in plans for name, value in plan.facts.items()}
    ranks.require_equal(facts)
    if plans:
        begun_with = {f"--{name}": value for name, value in compared.items() if name not in reporting()}
        facts = {"vgift-plugin": __version__, **begun_with, **facts}
        run.add_callbacks(ResumeCheck(facts, settings.run.ssl_resume_anyway, run.notes))
    for plan in plans:
        plan.apply(run)
    if run.replaced:
        _replace(module, run)
    return run.data_module


def _put_back(module: ModuleType) -> None:
    """Puts names back that were replaced for an earlier data module of which no trainer was made."""
    for name, own in _originals.get(module, {}).items():
        if name not in (ARGUMENTS, MAKE):
            setattr(module, name, own)


def _replace(module: ModuleType, run: Any) -> None:
    """Replaces further names of the module until its trainer is made."""
    from .hosts.trainer import on_trainer_made

    before = {name: getattr(module, name) for name in run.replaced}
    if module in _originals:
        _originals[module].update({name: _originals[module].get(name, own) for name, own in before.items()})

    def restore():
        for name, own in before.items():
            setattr(module, name, own)

    for name, value in run.replaced.items():
        setattr(module, name, value)
    run.change(callbacks=[on_trainer_made(restore), *run.data_module.get("callbacks", ())])
