"""The flags of STIC's stage 1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Optional

from ...data.arguments import option
from ...errors import ConfigError
from ..base import MethodFlags
from .preferences import read


@dataclass(frozen=True)
class STICFlags(MethodFlags):
    """Flags for training on preference pairs."""

    PATHS: ClassVar[tuple[str, ...]] = ("preference_data",)

    preference_data: Optional[str] = option(
        None,
        "pairs of responses (JSON lines, from vgift stic prefer): the run trains on them alone, with STIC's DPO loss; "
        "needs --lora_enable True",
    )
    dpo_beta: float = option(
        0.1, "how firmly DPO ties the model to what it was, above 0: beta in DPO's paper, lambda in STIC's"
    )
    dpo_alpha: float = option(
        1 / 1024, "weight of the preferred response's log-probability (summed over its tokens), from 0 up"
    )

    def mistakes(self) -> list[str]:
        """See `MethodFlags.mistakes`."""
        mistakes = []
        if not (math.isfinite(self.dpo_beta) and self.dpo_beta > 0):
            mistakes.append(f"--dpo_beta {self.dpo_beta:g}: must be above 0; STIC and DPO take 0.1")
        if not (math.isfinite(self.dpo_alpha) and self.dpo_alpha >= 0):
            mistakes.append(f"--dpo_alpha {self.dpo_alpha:g}: must be 0 or more; STIC takes 1/1024")
        if self.preference_data is None:
            return mistakes + [f"--{name} needs --preference_data" for name in self.changed()]
        if not Path(self.preference_data).is_file():
            mistakes.append(
                f"--preference_data {self.preference_data}: there is no such file; `vgift stic prefer` writes one"
            )
        else:
            try:
                read(self.preference_data)
            except ConfigError as err:
                mistakes.append(f"--preference_data {err}")
        return mistakes
