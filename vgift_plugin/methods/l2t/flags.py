"""The flags of L2T."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Optional

from ...data.arguments import option
from ...errors import ConfigError
from ..base import MethodFlags
from .templates import read

MODES = ("none", "full", "no_system", "no_template")  # the rows of the paper's ablation


@dataclass(frozen=True)
class L2TFlags(MethodFlags):
    """Flags for training on instructions."""

    PATHS: ClassVar[tuple[str, ...]] = ("instruct_templates",)

    instruct_loss: str = option(
        "none",
        "L2T, the loss on instructions: none, full (all but BOS and the picture), no_system (human texts) or "
        "no_template (human texts without task templates: the method itself)",
    )
    instruct_templates: Optional[str] = option(
        None, "task templates from `vgift templates` (JSON); by default they are found in the base records"
    )
    instruct_loss_text: bool = option(False, "whether instructions of records without a picture are learned too")
    instruct_loss_weight: float = option(
        1.0, "weight of an instruction's token beside a response's, from 0 up; 1 is the paper's"
    )

    def mistakes(self) -> list[str]:
        """See `MethodFlags.mistakes`."""
        mistakes = []
        if self.instruct_loss not in MODES:
            near = difflib.get_close_matches(str(self.instruct_loss), MODES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it is one of {', '.join(MODES)}"
            mistakes.append(f"--instruct_loss {self.instruct_loss}: {hint}")
        if self.instruct_templates is not None and self.instruct_loss != "no_template":
            mistakes.append(f"--instruct_templates needs --instruct_loss no_template, not {self.instruct_loss}")
        if self.instruct_templates is not None and not Path(self.instruct_templates).is_file():
            mistakes.append(
                f"--instruct_templates {self.instruct_templates}: there is no such file; `vgift templates` writes one"
            )
        elif self.instruct_templates is not None:
            try:
                read(self.instruct_templates)
            except ConfigError as err:
                mistakes.append(str(err))
        if self.instruct_loss_text and self.instruct_loss == "none":
            mistakes.append("--instruct_loss_text True needs an --instruct_loss other than none")
        if not (math.isfinite(self.instruct_loss_weight) and self.instruct_loss_weight >= 0):
            mistakes.append(f"--instruct_loss_weight {self.instruct_loss_weight:g}: must be a finite number, 0 or more")
        if self.instruct_loss_weight != 1 and self.instruct_loss == "none":
            mistakes.append("--instruct_loss_weight needs an --instruct_loss other than none")
        return mistakes
