"""The training codes: one file per family, and what they share. `HOSTS` lists the families."""

from __future__ import annotations

from types import ModuleType

from ..errors import HostMismatchError
from .base import Host
from .descendants import VILA, Bunny, Cambrian, MoELLaVA, ShareGPT4V
from .llava import LLaVA
from .qwen_vl import QwenSeries, QwenVL
from .tinyllava import TinyLLaVA

IGNORE_INDEX = -100  # torch's label for "no loss here", which all of them use
HOSTS: tuple[Host, ...] = (
    *(TinyLLaVA(), QwenVL(), QwenSeries()),
    *(Bunny(), MoELLaVA(), ShareGPT4V(), VILA(), Cambrian()),
    LLaVA(),
)
DEFAULT_HOST = HOSTS[-1]


def host_of(module: ModuleType) -> Host:
    """Returns the first host that a training module lacks nothing of.

    Raises:
        HostMismatchError: it is no host's; naming each seam of the nearest one with what was expected and found.
    """
    missing = {host: host.missing(module) for host in HOSTS}
    for host, problems in missing.items():
        if not problems:
            return host
    host = min(missing, key=lambda one: len(missing[one]))
    where = getattr(module, "__file__", None) or module.__name__
    raise HostMismatchError(
        "\n".join(
            [
                f"{where} is not a training module this version of vgift-plugin can extend (nearest is {host.name}'s):",
                *(f"  - {problem}" for problem in missing[host]),
                "Nothing was changed. Tested hosts are listed in the README; a fork needs these names in the module "
                "that trains (or pass that module to vgift_plugin.attach).",
            ]
        )
    )
