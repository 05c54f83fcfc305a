"""`vgift doctor`: will this environment train with self-supervised samples? Every line says where it looked."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec

from .errors import HostMismatchError
from .registry import task_names

SHOWN = ("torch", "transformers", "tokenizers", "accelerate", "peft", "deepspeed", "flash-attn", "bitsandbytes")
OURS = ("numpy", "pillow", "matplotlib", "PyYAML", "wrapt")
# What is known to break LLaVA itself: distribution, first version that does, and how.
BREAKS = (
    ("transformers", (4, 38), "LLaVA 1.2.2 is made for 4.36.2 and 4.37.2; from 4.38 on its generate() fails"),
    ("peft", (0, 13), "LLaVA's fine-tuning script fails from 0.13.0 on; 0.4.0 to 0.12.0 work"),
    ("numpy", (2,), "torch and LLaVA of the pinned versions are built for numpy 1"),
)


def examine() -> tuple[str, bool]:
    """Returns the report and whether training with self-supervised samples can work here."""
    lines = [f"python        {sys.version.split()[0]}  {sys.executable}"]
    lines += [f"{name:<13} {_version(name) or 'not installed'}" for name in ("vgift-plugin", *OURS, *SHOWN)]
    lines.append(f"tasks         {', '.join(task_names())}")
    warnings = [
        f"warning: {name} {_version(name)}: {how}" for name, first, how in BREAKS if _release(_version(name)) >= first
    ]
    host, healthy = _host()
    return "\n".join([*lines, *host, *warnings]), healthy


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
    spec = find_spec("llava")
    if spec is None:
        return [
            "llava         not importable: pip install -e PATH_TO_LLAVA here (preview and tasks work without it)",
            "verdict       cannot train here",
        ], False
    offered = packages_distributions().get("llava", [])
    known = ", ".join(f"{name} {_version(name)}" for name in offered) or "no distribution: a checkout on the path"
    lines = [f"llava         {known}  {next(iter(spec.submodule_search_locations or []), spec.origin)}"]
    from .host.hook import ARGUMENTS, HOST, MAKE, check

    try:
        module = importlib.import_module(HOST)
    except Exception as err:
        reason = f"{type(err).__name__}: {err}"
        return [*lines, f"seams         {HOST} cannot be imported: {reason}", "verdict       cannot train here"], False
    try:
        check(module)
    except HostMismatchError as err:
        return [*lines, f"seams         {err}", "verdict       cannot train here"], False
    lines += [f"seam          {HOST}.{name}  {module.__file__}" for name in (ARGUMENTS, MAKE)]
    return [*lines, "verdict       ready: vgift run --ssl_tasks ... -- your training command"], True
