"""The flags of ViTP."""

from __future__ import annotations

from dataclasses import dataclass

from ...data.arguments import option
from ..base import MethodFlags


@dataclass(frozen=True)
class ViTPFlags(MethodFlags):
    """Flags for dropping visual tokens and for training the tower."""

    visual_token_drop: float = option(
        0.0, "share of each sample's visual tokens that training drops, 0 to below 1: ViTP's ratio, 0.75 in the paper"
    )
    visual_token_drop_prob: float = option(
        1.0, "chance of a sample to have visual tokens dropped: 1 in ViTP's paper, 0.25 in what its released code does"
    )
    tune_vision_tower: bool = option(
        False, "train the vision tower with the rest of the model, and save it with the checkpoint"
    )

    @property
    def drops_tokens(self) -> bool:
        """Whether any visual tokens may be dropped."""
        return self.visual_token_drop > 0 and self.visual_token_drop_prob > 0

    def mistakes(self) -> list[str]:
        """See `MethodFlags.mistakes`."""
        mistakes = []
        if not 0 <= self.visual_token_drop < 1:
            percent = f"; {self.visual_token_drop:g} percent is {self.visual_token_drop / 100:g}"
            mistakes.append(
                f"--visual_token_drop {self.visual_token_drop:g}: must be 0 or more and below 1, the share of visual "
                "tokens to drop" + (percent if 1 < self.visual_token_drop < 100 else "")
            )
        if not 0 <= self.visual_token_drop_prob <= 1:
            mistakes.append(
                f"--visual_token_drop_prob {self.visual_token_drop_prob:g}: must be 0 to 1, the chance of a sample"
            )
        if self.visual_token_drop == 0 and "visual_token_drop_prob" in self.changed():
            mistakes.append("--visual_token_drop_prob needs --visual_token_drop, the share to drop; 0.75 in the paper")
        return mistakes
