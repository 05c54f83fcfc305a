"""V-GIFT (arXiv 2604.12966): mixes self-supervised samples into instruction tuning."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

from ...hosts.base import Host
from ..base import Plan
from .flags import VgiftFlags

if TYPE_CHECKING:
    from ..run import Run


class VGIFT:
    """See `methods.base.Method`."""

    name = "V-GIFT"
    Flags = VgiftFlags
    alone = False

    def wanted(self, flags: VgiftFlags) -> str:
        return "self-supervised samples" if flags.makes_samples else ""

    def check(self, flags: VgiftFlags, host: Host, module: ModuleType) -> None:
        """Checks nothing beyond the flags: the records do not exist yet."""

    def plan(self, flags: VgiftFlags, run: Run) -> Plan | None:
        from .training import plan

        return plan(flags, run)
