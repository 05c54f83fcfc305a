"""The loss of pairs from two forward passes of the host's model: as trained, and as the reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from ...hosts.model_hooks import Prepared, Step
from ...hosts.outputs import read
from ...hosts.trainer import all_reduced, log_metrics
from .dpo import Terms, dpo_loss, response_logps
from .reference import Reference

DIGITS = 6  # rewards are small at the paper's learning rate of 1e-7


class PreferenceLoss(Step, TrainerCallback):
    """Computes the loss of a batch of pairs, and logs its parts along with `loss`.

    As a step inside the model it takes the labels prepared by the host (with positions for pictures, cut to the model's
    length) and removes them, so that the host computes no loss of its own.

    It logs means over all pairs of all ranks since the last log: `rewards/chosen`, `rewards/rejected`,
    `rewards/margins`, `rewards/accuracies` (share of pairs with a margin above 0; 0 at the first step, where all
    margins are 0), `logps/chosen`, `logps/rejected`, `kl` and `regulariser`; see `Terms`.

    Args:
        beta: see `dpo_loss`.
        alpha: see `dpo_loss`.
        reference: the model's initial state.
    """

    def __init__(self, beta: float, alpha: float, reference: Reference):
        self.beta, self.alpha, self.reference = beta, alpha, reference
        self._taking = False
        self._labels: torch.Tensor | None = None
        self._sums: torch.Tensor | None = None  # of the logged values, and the number of pairs

    def __call__(self, bare: nn.Module, model: nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, Any]:
        """Returns the loss of a batch, (), and the model's output for it.

        Args:
            bare: the model with its adapters, without the wrappers of DeepSpeed or DDP.
            model: the same model with the wrappers.
            inputs: the batch: preferred responses, then the others in the same order.
        """
        first = {**inputs, "input_ids": inputs["input_ids"].clone()}  # Bunny's forward writes over the picture's places
        with self.reference.standing(bare):
            reference = self.logps(bare, first)[0]  # its logits are freed before the second forward pass
        policy, outputs = self.logps(model, inputs)
        terms = dpo_loss(policy.view(2, -1), reference.view(2, -1), self.beta, self.alpha)
        self._add(terms)
        return terms.loss, outputs

    def logps(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, Any]:
        """Returns the log-probability of each row's response, (rows,), and the model's output."""
        self._taking, self._labels = True, None
        try:
            outputs = model(**inputs)
        finally:
            self._taking = False
        assert self._labels is not None, "ModelHooks must hold this step"
        return response_logps(read(outputs).logits, self._labels), outputs

    def prepared(self, prepared: Prepared) -> Prepared:
        """Takes the labels out of the host's prepared inputs, during `logps` only."""
        if not self._taking:
            return prepared
        self._labels = prepared.labels
        return prepared._replace(labels=None)

    def _add(self, terms: Terms) -> None:
        margins = terms.rewards_chosen - terms.rewards_rejected
        values = {
            "rewards/chosen": terms.rewards_chosen,
            "rewards/rejected": terms.rewards_rejected,
            "rewards/margins": margins,
            "rewards/accuracies": (margins > 0).to(margins.dtype),
            "logps/chosen": terms.logps_chosen,
            "logps/rejected": terms.logps_rejected,
            "kl": terms.kl,
            "regulariser": terms.regulariser,
            "pairs": torch.ones_like(margins),
        }
        self._names = list(values)
        sums = torch.stack([value.sum() for value in values.values()])
        self._sums = sums if self._sums is None else self._sums + sums

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Adds the means over all ranks to a log of training."""
        if not logs or "loss" not in logs or self._sums is None:
            return
        (*sums, pairs), self._sums = all_reduced(self._sums), None
        values = {name: value / pairs for name, value in zip(self._names[:-1], sums, strict=True)}
        log_metrics(args, state, logs, values, DIGITS)
