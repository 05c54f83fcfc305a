"""`vgift doctor`: will this environment train with self-supervised samples? Every line says where it looked."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Optional

from . import patch
from .data.arguments import option
from .errors import ConfigError, HostMismatchError
from .hook import DEFAULT, flag_names
from .hosts import DEFAULT_HOST, HOSTS, host_of
from .hosts.base import ARGUMENTS, MAKE, Breaks, Host
from .tasks.registry import task_names

SHOWN = ("torch", "transformers", "tokenizers", "accelerate", "peft", "deepspeed", "flash-attn", "bitsandbytes")
PACKAGES = tuple(dict.fromkeys(name for host in reversed(HOSTS) for name in host.packages if host.modules))
OURS = ("numpy", "pillow", "matplotlib", "PyYAML", "wrapt")


@dataclass(frozen=True)
class Doctor:
    """Check environment, training code and its seams.

    Without options every known package that can be imported is looked at.
    """

    EXAMPLE: ClassVar[str] = "examples:\n  vgift doctor\n  vgift doctor --checkout ~/Bunny"

    module: Optional[str] = option(None, "the module that trains, such as bunny.train.train", metavar="MODULE")
    checkout: Optional[str] = option(None, "a folder with a package that is not installed", metavar="DIR")

    def run(self) -> tuple[str, int]:
        """Returns the report, and 1 where training cannot work here."""
        report, healthy = examine(self.module, self.checkout)
        return report, 0 if healthy else 1


def examine(module: str | None = None, checkout: str | None = None) -> tuple[str, bool]:
    """Returns the report and whether training with self-supervised samples can work here.

    Args:
        module: the module that trains; by default those of all known packages.
        checkout: a folder to look for packages in, instead of everywhere.

    Raises:
        ConfigError: the folder holds no known package.
    """
    lines = [f"python        {sys.version.split()[0]}  {sys.executable}"]
    lines += [f"{name:<13} {_version(name) or 'not installed'}" for name in ("vgift-plugin", *OURS, *SHOWN)]
    lines.append(f"tasks         {', '.join(task_names())}")
    found, healthy, breaks = _look(module, checkout)
    for name, first, how in breaks:
        if _release(_version(name)) >= first and not (name == "transformers" and _newer_fork()):
            found.append(f"warning: {name} {_version(name)}: {how}")
    return "\n".join([*lines, *found]), healthy


def _newer_fork() -> bool:
    """Returns whether a fork of version 1.3 or later is installed (LLaVA-NeXT is 1.7), which pins other versions."""
    offered = [name for package in DEFAULT_HOST.packages for name in packages_distributions().get(package, [])]
    return any(_release(_version(name)) >= (1, 3) for name in offered)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _release(text: str | None) -> tuple[int, ...]:
    """Returns the leading numbers of a version, (4, 37, 2) of `4.37.2.dev0`; () where nothing is installed."""
    numbers: list[int] = []
    for part in (text or "").split("+")[0].split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _look(module: str | None, checkout: str | None) -> tuple[list[str], bool, Breaks]:
    """Returns the lines on training codes, whether flags can train there, and the `breaks` of the hosts found."""
    if checkout is not None:
        if not Path(checkout).is_dir():
            raise ConfigError(f"--checkout {checkout}: there is no such folder")
        sys.path.insert(0, str(Path(checkout).resolve()))
    modules = [module] if module is not None else _modules(checkout)
    if not modules and checkout is not None:
        raise ConfigError(
            f"--checkout {checkout}: has no package {' nor '.join(PACKAGES)}; name the folder that has it"
        )
    if not modules:
        known = ", ".join(PACKAGES[1:])
        missing = "not importable: pip install -e PATH_TO_LLAVA here (preview and tasks work without it)"
        lines = [f"llava         {missing}; nor is {known}", "verdict       cannot train here"]
        return lines, False, DEFAULT_HOST.breaks
    seen = {name: _module(name) for name in modules}
    lines = [line for told, _ in seen.values() for line in told]
    fits = {name: host for name, (_, host) in seen.items() if host is not None}
    breaks = [(host or DEFAULT_HOST).breaks for name, (_, host) in seen.items() if host or name == DEFAULT]
    ready = [name for name, host in fits.items() if not host.refuses]
    if ready:
        which = f" ({' or '.join(ready)})" if len(modules) > 1 else ""
        lines.append(f"verdict       ready: vgift run --ssl_tasks ... -- your training command{which}")
    elif fits:
        why = next(iter(fits.values())).refuses
        lines.append(f"verdict       trains as it does without the plugin; refused is every flag: {why}")
    else:
        lines.append("verdict       cannot train here")
    return lines, bool(ready), tuple(dict.fromkeys(itertools.chain(*breaks)))


def _modules(checkout: str | None) -> list[str]:
    """Returns the training modules of known packages that can be found, or lie in a checkout."""
    found = []
    for host in (DEFAULT_HOST, *HOSTS[:-1]):
        for package in host.packages:
            spec = find_spec(package)
            where = next(iter(spec.submodule_search_locations or []), None) if spec is not None else None
            inside = where is not None and (checkout is None or Path(where).parent == Path(checkout).resolve())
            found += [name for name in host.modules if inside and name.startswith(f"{package}.")]
    return list(dict.fromkeys(found))


def _module(name: str) -> tuple[list[str], Host | None]:
    """Returns the lines on one training module, and whose it is; None where it is no known host's."""
    package = name.partition(".")[0]
    spec = find_spec(package)
    if spec is None:
        return [f"{package:<13} not importable"], None
    offered = packages_distributions().get(package, [])
    known = ", ".join(f"{one} {_version(one)}" for one in offered) or "no distribution: a checkout on the path"
    where = str(next(iter(spec.submodule_search_locations or []), spec.origin))
    lines = [f"{package:<13} {known}  {where}"]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            module = importlib.import_module(name)
    except Exception as err:
        return [*lines, f"seams         {name} cannot be imported: {type(err).__name__}: {err}"], None
    try:
        host = host_of(module)
    except HostMismatchError as err:
        return [*lines, f"seams         {err}"], None
    lines.append(f"host          {host.name}")
    lines += [f"seam          {name}.{seam}  {module.__file__}" for seam in (ARGUMENTS, MAKE)]
    names = flag_names(module, getattr(module, ARGUMENTS))
    lines += [f"flag          --{flag} is --{own} in its scripts" for flag, own in names.items() if flag != own]
    lines += [f"refused       --{names[flag]}: {why}" for flag, why in host.refused.items()]
    with contextlib.suppress(ConfigError):
        lines.append(f"patch         {patch.run('status', where)[0].splitlines()[0]} (vgift run needs none)")
    return lines, host
