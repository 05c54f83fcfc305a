"""L2T, first called LIT (arXiv 2503.22215): a loss on instructions as well as responses."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

from ...hosts.base import Host
from ..base import Plan
from .flags import L2TFlags

if TYPE_CHECKING:
    from ..run import Run


class L2T:
    """See `methods.base.Method`."""

    name = "L2T"
    Flags = L2TFlags
    alone = False

    def wanted(self, flags: L2TFlags) -> str:
        return "" if flags.instruct_loss == "none" else "the loss on instructions"

    def check(self, flags: L2TFlags, host: Host, module: ModuleType) -> None:
        """Checks nothing beyond the flags."""

    def plan(self, flags: L2TFlags, run: Run) -> Plan | None:
        from .training import plan

        return plan(flags, run)
