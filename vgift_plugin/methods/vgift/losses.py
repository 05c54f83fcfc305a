"""The training loss of base records and of each task apart, from what the model computes anyway."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from transformers import TrainerCallback

from ...hosts import IGNORE_INDEX, outputs
from ...hosts.model_hooks import Step
from ...hosts.token_facts import Tokens
from ...hosts.trainer import all_reduced, log_metrics


class TaskLosses(Step, TrainerCallback):
    """Logs `loss_base` and `loss_<task>` beside `loss`: means over the tokens that carried loss since the last log.

    Attributes:
        names: `base`, then the tasks; their places are the tasks' numbers.
        tokens: of the last batch, in training or evaluation; None before the first.
    """

    required = False

    def __init__(self, tasks: Iterable[str]):
        self.names = ["base", *tasks]
        self.tokens: Tokens | None = None
        self._sums: torch.Tensor | None = None  # (names, 2): loss and tokens

    def forward(self, module: Any, output: Any, tokens: Tokens) -> None:
        """Adds up the losses of one batch; only places that carry loss are looked at."""
        self.tokens = tokens
        if not module.training or tokens.task is None:
            return
        logits = outputs.read(output).logits
        if logits is None:
            self.warn_no_logits(module, "loss_base and loss_<task>")
            return
        with torch.no_grad():
            true = tokens.labels[:, 1:]
            supervised = true != IGNORE_INDEX
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1][supervised].float(), true[supervised], reduction="none"
            )
            both = torch.stack([loss, torch.ones_like(loss)], dim=1)
            if self._sums is None:
                self._sums = both.new_zeros(len(self.names), 2)
            self._sums.index_add_(0, tokens.task[:, 1:][supervised], both)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Adds the losses over all ranks to a training log."""
        if not logs or "loss" not in logs or self._sums is None:
            return
        sums, self._sums = all_reduced(self._sums), None
        pairs = zip(self.names, sums, strict=True)
        log_metrics(args, state, logs, {f"loss_{name}": loss / count for name, (loss, count) in pairs if count})
