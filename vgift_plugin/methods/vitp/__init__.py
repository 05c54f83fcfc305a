"""ViTP (arXiv 2509.17562): drops visual tokens in training, and trains the vision tower."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

from ...hosts.base import Host
from ..base import Plan
from .flags import ViTPFlags

if TYPE_CHECKING:
    from ..run import Run


class ViTP:
    """See `methods.base.Method`."""

    name = "ViTP"
    Flags = ViTPFlags
    alone = False

    def wanted(self, flags: ViTPFlags) -> str:
        names = [name for name in ("visual_token_drop", "tune_vision_tower") if getattr(flags, name)]
        return " and ".join(f"--{name}" for name in names)

    def check(self, flags: ViTPFlags, host: Host, module: ModuleType) -> None:
        """Checks nothing: the model does not exist yet."""

    def plan(self, flags: ViTPFlags, run: Run) -> Plan | None:
        from .training import plan

        return plan(flags, run)
