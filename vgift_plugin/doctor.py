"""`vgift doctor`: will this environment train with self-supervised samples? Every line says where it looked."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from typing import ClassVar

from . import patch
from .errors import HostMismatchError
from .hosts import HOSTS, host_of
from .hosts.base import ARGUMENTS, MAKE
from .tasks.registry import task_names

SHOWN = ("torch", "transformers", "tokenizers", "accelerate", "peft", "deepspeed", "flash-attn", "bitsandbytes")
PACKAGES = tuple(name for host in reversed(HOSTS) for name in host.packages)
OURS = ("numpy", "pillow", "matplotlib", "PyYAML", "wrapt")
# What is known to break LLaVA itself: distribution, first version that does, and how.
BREAKS = (
    ("transformers", (4, 38), "LLaVA 1.2.2 is made for 4.36.2 and 4.37.2; from 4.38 on its generate() fails"),
    ("peft", (0, 13), "LLaVA's fine-tuning script fails from 0.13.0 on; 0.4.0 to 0.12.0 work"),
    ("numpy", (2,), "torch and LLaVA of the pinned versions are built for numpy 1"),
)


@dataclass(frozen=True)
class Doctor:
    """Check environment, training code and its seams."""

    EXAMPLE: ClassVar[str] = "example:\n  vgift doctor"

    def run(self) -> tuple[str, int]:
        """Returns the report, and 1 where training cannot work here."""
        report, healthy = examine()
        return report, 0 if healthy else 1


def examine() -> tuple[str, bool]:
    """Returns the report and whether training with self-supervised samples can work here."""
    lines = [f"python        {sys.version.split()[0]}  {sys.executable}"]
    lines += [f"{name:<13} {_version(name) or 'not installed'}" for name in ("vgift-plugin", *OURS, *SHOWN)]
    lines.append(f"tasks         {', '.join(task_names())}")
    host, healthy = _host()
    for name, first, how in BREAKS:
        if _release(_version(name)) >= first and not (name == "transformers" and _newer_fork()):
            host.append(f"warning: {name} {_version(name)}: {how}")
    return "\n".join([*lines, *host]), healthy


def _newer_fork() -> bool:
    """Tells whether the llava installed is a fork that counts on from 1.3 (LLaVA-NeXT is 1.7), with its own pins."""
    offered = packages_distributions().get("llava", [])
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


def _host() -> tuple[list[str], bool]:
    found = [name for name in PACKAGES if find_spec(name) is not None]
    if not found:
        return [
            "llava         not importable: pip install -e PATH_TO_LLAVA here (preview and tasks work without it)",
            "verdict       cannot train here",
        ], False
    package = found[0]
    spec = find_spec(package)
    assert spec is not None
    offered = packages_distributions().get(package, [])
    known = ", ".join(f"{name} {_version(name)}" for name in offered) or "no distribution: a checkout on the path"
    where = str(next(iter(spec.submodule_search_locations or []), spec.origin))
    lines = [f"{package:<13} {known}  {where}"]
    name = f"{package}.train.train"
    try:
        module = importlib.import_module(name)
    except Exception as err:
        reason = f"{type(err).__name__}: {err}"
        return [*lines, f"seams         {name} cannot be imported: {reason}", "verdict       cannot train here"], False
    try:
        host_of(module)
    except HostMismatchError as err:
        return [*lines, f"seams         {err}", "verdict       cannot train here"], False
    lines += [f"seam          {name}.{seam}  {module.__file__}" for seam in (ARGUMENTS, MAKE)]
    lines.append(f"patch         {patch.run('status', where)[0].splitlines()[0]} (vgift run needs none)")
    return [*lines, "verdict       ready: vgift run --ssl_tasks ... -- your training command"], True
