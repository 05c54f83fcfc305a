"""ViTP in a training run: the step that drops tokens, tower training, and a note in the model's config."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainerCallback

from ... import __version__
from ...hosts.base import Host
from ..run import Run
from .dropping import DropTokens
from .flags import ViTPFlags
from .tower import TuneTower, stays_frozen

logger = logging.getLogger(__name__)
NOTE = "vgift_plugin"  # key in the model's config.json


def plan(flags: ViTPFlags, run: Run) -> TowerPlan | None:
    """Returns the plan; None if no token is dropped and the tower stays frozen."""
    if flags.visual_token_drop > 0 and not flags.drops_tokens:
        logger.info("--visual_token_drop_prob 0: no visual token is dropped")
    return TowerPlan(flags) if flags.tune_vision_tower or flags.drops_tokens else None


@dataclass
class TowerPlan:
    """See `methods.base.Plan`."""

    flags: ViTPFlags
    facts: dict[str, str] = field(default_factory=dict)

    def apply(self, run: Run) -> None:
        """Adds the step and the callbacks."""
        flags = self.flags
        callbacks: list[TrainerCallback] = [TuneTower(run.host)] if flags.tune_vision_tower else []
        run.add_callbacks(*callbacks, ConfigNote(run.host, run.flags))
        if flags.drops_tokens:
            run.add_step(DropTokens(run.host, flags.visual_token_drop, flags.visual_token_drop_prob))
            chance = (
                "" if flags.visual_token_drop_prob == 1 else f" of {flags.visual_token_drop_prob:.4g} of the samples"
            )
            logger.info("training drops %.4g of the visual tokens%s", flags.visual_token_drop, chance)


class ConfigNote(TrainerCallback):
    """Stores the flags in the model's config, which is part of every checkpoint."""

    def __init__(self, host: Host, flags: dict[str, Any]):
        self.host, self.flags = host, flags

    def on_init_end(self, args, state, control, model=None, **kwargs):
        """Stores the flags under `vgift_plugin`, and logs if the tower stays frozen."""
        own = self.host.model(model)
        setattr(own.config, NOTE, {"version": __version__, **self.flags})
        if stays_frozen(self.host, own):
            logger.info("the vision tower stays frozen: dropping reaches projector and language model alone")
