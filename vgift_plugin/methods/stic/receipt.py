"""`vgift_preferences.json`, the record of a preference training run, and how much `--model_max_length` cuts off."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ...data.files import write_report
from ...errors import ConfigError
from ...hosts.base import Host
from ...hosts.trainer import is_rank_zero
from .dataset import SIDES, Extent

logger = logging.getLogger(__name__)
RECEIPT_FILE = "vgift_preferences.json"


class Receipt(TrainerCallback):
    """Reports before the first step what is cut off and which model wrote the pairs; writes `vgift_preferences.json`.

    Args:
        host: the training code's family.
        receipt: the content of the file, JSON-able.
        extents: for each pair those of its two responses.
    """

    def __init__(self, host: Host, receipt: dict[str, Any], extents: list[tuple[Extent, Extent]]):
        self.host, self.receipt, self.extents = host, receipt, extents

    def on_init_end(self, args, state, control, model=None, **kwargs):
        """Counts the responses that `--model_max_length` cuts, with the visual tokens included.

        Raises:
            ConfigError: every response is cut, nothing is left of one, or the trainer would smooth labels.
        """
        if args.label_smoothing_factor:
            raise ConfigError(
                "--label_smoothing_factor is for another loss than that of --preference_data: leave it out"
            )
        own = self.host.model(model)
        self._compare_models(str(getattr(own.config, "_name_or_path", "")))
        limit, more = self.host.token_limit(own), self.host.visual_tokens(own)
        if limit is None or more is None:
            logger.warning("this host does not say how long a row may be: cut responses cannot be counted")
            return
        more -= 1  # the picture is already counted as one token
        cut = {side: sum(pair[k].length + more > limit for pair in self.extents) for k, side in enumerate(SIDES)}
        lost = sum(extent.start + more >= limit for pair in self.extents for extent in pair)
        self.receipt["cut_by_model_max_length"] = cut
        least = "at least " * str(getattr(own.config, "image_aspect_ratio", "")).startswith("anyres")
        told = (
            f"--model_max_length {limit}, with {least}{more + 1} visual tokens, cuts the end off {cut['chosen']:,} "
            f"preferred and {cut['rejected']:,} other responses of {len(self.extents):,} pairs"
        )
        longest = max(extent.length for pair in self.extents for extent in pair) + more
        if lost or all(count == len(self.extents) for count in cut.values()):
            nothing = f", and of {lost:,} of them nothing is left" if lost else ", which is every one"
            raise ConfigError(f"{told}{nothing}: raise it (the longest needs {longest:,})")
        logger.log(
            logging.WARNING if any(cut.values()) else logging.INFO,
            "%s; the longest needs %s",
            told,
            f"{longest:,}",
        )

    def _compare_models(self, trained: str) -> None:
        """Warns if the name of the model differs from that of the model that wrote the pairs.

        Upstream's LoRA scripts start from a language model and a pretrained projector, which have never described
        anything.
        """
        wrote = str(self.receipt["header"]["model"])
        if Path(wrote).name != Path(trained).name:
            logger.warning(
                "the pairs were written by %s, and this run trains %s: unless it is the same model, its reference is "
                "not what wrote them. Name it in the script: --model_name_or_path, and no --pretrain_mm_mlp_adapter, "
                "which puts another projector in",
                wrote,
                trained,
            )

    def on_train_begin(self, args, state, control, **kwargs):
        """Writes the file."""
        if is_rank_zero():
            content = json.dumps(self.receipt, indent=2) + "\n"
            write_report(Path(args.output_dir, RECEIPT_FILE), content)
