"""L2T, first called LIT (arXiv 2503.22215): a loss on instructions as well as responses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..base import Method, Plan
from .flags import L2TFlags

if TYPE_CHECKING:
    from ..run import Run


class L2T(Method):
    """See `methods.base.Method`."""

    Flags = L2TFlags

    def wanted(self, flags: L2TFlags) -> str:
        return "" if flags.instruct_loss == "none" else "the loss on instructions"

    def plan(self, flags: L2TFlags, run: Run) -> Plan | None:
        from .training import plan

        return plan(flags, run)
