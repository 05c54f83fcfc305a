"""ViTP (arXiv 2509.17562): drops visual tokens in training, and trains the vision tower."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..base import Method, Plan
from .flags import ViTPFlags

if TYPE_CHECKING:
    from ..run import Run


class ViTP(Method):
    """See `methods.base.Method`."""

    Flags = ViTPFlags

    def wanted(self, flags: ViTPFlags) -> str:
        names = [name for name in ("visual_token_drop", "tune_vision_tower") if getattr(flags, name)]
        return " and ".join(f"--{name}" for name in names)

    def plan(self, flags: ViTPFlags, run: Run) -> Plan | None:
        from .training import plan

        return plan(flags, run)
