"""STIC (arXiv 2405.19716): self-training from the model's own image descriptions."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

from ...errors import HostMismatchError
from ...hosts.base import Host
from ..base import Method, Plan
from .flags import STICFlags

if TYPE_CHECKING:
    from ..run import Run


class STIC(Method):
    """See `methods.base.Method`. Its second stage has no flag but a command, `vgift stic describe`."""

    Flags = STICFlags
    alone = "it trains on pairs alone, with a loss of its own; mix samples in when you fine-tune afterwards"

    def wanted(self, flags: STICFlags) -> str:
        return "" if flags.preference_data is None else "--preference_data"

    def check(self, flags: STICFlags, host: Host, module: ModuleType) -> None:
        """Checks that the trainer, whose loss is replaced, can be found."""
        try:
            host.trainer(module)
        except HostMismatchError as err:
            raise HostMismatchError(f"--preference_data: {err}") from None

    def plan(self, flags: STICFlags, run: Run) -> Plan | None:
        from .training import plan

        return plan(flags, run)
