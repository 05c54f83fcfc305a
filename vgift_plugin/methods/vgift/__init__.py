"""V-GIFT (arXiv 2604.12966): mixes self-supervised samples into instruction tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..base import Method, Plan
from .flags import VgiftFlags

if TYPE_CHECKING:
    from ..run import Run


class VGIFT(Method):
    """See `methods.base.Method`."""

    Flags = VgiftFlags

    def wanted(self, flags: VgiftFlags) -> str:
        return "self-supervised samples" if flags.makes_samples else ""

    def plan(self, flags: VgiftFlags, run: Run) -> Plan | None:
        from .training import plan

        return plan(flags, run)
