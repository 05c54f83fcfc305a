"""From flags to what acts inside the model while it trains: the trainer's callbacks."""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerCallback

from ... import __version__
from ...errors import ConfigError
from ...hosts import ranks as agreement
from ...hosts.model_hooks import find_host, with_step
from ..vgift.flags import Flags
from .dropping import DropTokens
from .tower import TuneTower, stays_frozen

logger = logging.getLogger(__name__)
NOTE = "vgift_plugin"  # the key of the model's config.json


def with_methods(data_module: dict, flags: Flags, data_args: Any, compared: bool) -> dict:
    """Returns the host's data module with the callbacks that the flags ask for; without such flags the very same one.

    Args:
        data_module: what the host's trainer gets; it is not changed.
        flags: the run's flags.
        data_args: the run's data arguments.
        compared: the ranks have compared their flags already.

    Raises:
        ConfigError: the run has no vision tower, or the ranks differ.
    """
    if flags.visual_token_drop > 0 and not flags.drops_tokens:
        logger.info("--visual_token_drop_prob 0: no visual token is dropped")
    if not (flags.tune_vision_tower or flags.drops_tokens):
        return data_module
    if not getattr(data_args, "is_multimodal", False):
        raise ConfigError(
            "--visual_token_drop and --tune_vision_tower need a model that sees: this run has no --vision_tower"
        )
    if not compared:
        agreement.compare(agreement.inside_facts(flags))
    callbacks: list[TrainerCallback] = [TuneTower()] if flags.tune_vision_tower else []
    callbacks.append(Note(flags))
    if flags.drops_tokens:
        data_module = with_step(data_module, DropTokens(flags.visual_token_drop, flags.visual_token_drop_prob))
        chance = "" if flags.visual_token_drop_prob == 1 else f" of {flags.visual_token_drop_prob:.4g} of the samples"
        logger.info("training drops %.4g of the visual tokens%s", flags.visual_token_drop, chance)
    return {**data_module, "callbacks": [*data_module.get("callbacks", ()), *callbacks]}


class Note(TrainerCallback):
    """Notes in the model's config, which every checkpoint carries, how its tower was trained."""

    def __init__(self, flags: Flags):
        self.noted = flags.changed()

    def on_init_end(self, args, state, control, model=None, **kwargs):
        """Writes the flags under `vgift_plugin`; says so where the tower learns nothing from them."""
        host = find_host(model)
        setattr(host.config, NOTE, {"version": __version__, **self.noted})
        if stays_frozen(host):
            logger.info("the vision tower stays frozen: dropping reaches projector and language model alone")
