"""Separate losses of responses and instructions, since totals with instructions are not comparable between runs."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback

from ...errors import HostMismatchError
from ...hosts import IGNORE_INDEX, outputs
from ...hosts.model_hooks import Step
from ...hosts.token_facts import Tokens
from ...hosts.trainer import all_reduced, log_metrics

ROWS = 1024  # tokens at once: their scores in float32 are 131 MB with a vocabulary of 32,000


class InstructionLosses(Step, TrainerCallback):
    """Logs `response_loss` and `instruction_loss` along with `loss`, and weights instructions.

    Args:
        weight: of an instruction's token beside a response's, λ from 0 up. With 1, the paper's, the model's own loss is
            left as it is; else (responses + λ · instructions) over their tokens, counted alike, takes its place. (Over
            all tokens of the optimizer step, where transformers' trainer says how many these are, from 4.46 on.) The
            router loss of a mixture of experts is added unweighted.
    """

    def __init__(self, weight: float = 1.0):
        self.weight = weight
        self.required = weight != 1
        self._sums: torch.Tensor | None = None  # response: loss, tokens; instruction: loss, tokens

    def forward(self, module: Any, output: Any, tokens: Tokens) -> Any:
        """Sums up over the tokens of this forward, in training alone, and weighs them.

        Raises:
            HostMismatchError: a weight is to be applied, but the model does not return logits.
        """
        loss, logits, router = outputs.read(output)
        if not module.training or tokens.instruction is None:
            return None
        if logits is None or loss is None:
            if self.required:
                raise HostMismatchError(
                    f"--instruct_loss_weight {self.weight:g}: {type(module).__name__} returns no loss with the "
                    "scores of all tokens beside it (a fused loss?), so they cannot be weighed; train with weight 1"
                )
            self.warn_no_logits(module, "response_loss and instruction_loss")
            return None
        labels, instruction = (one[:, 1:].to(logits.device) for one in (tokens.labels, tokens.instruction))
        rows, columns = ((labels != IGNORE_INDEX) & ~instruction).nonzero(as_tuple=True)
        responses, instructions = len(rows), int(instruction.sum())
        if not responses + instructions:  # a mean over nothing is no number
            return None
        with torch.set_grad_enabled(self.required):
            response = logits.new_zeros((), dtype=torch.float32)
            for some in zip(rows.split(ROWS), columns.split(ROWS), strict=True):
                response = response + cross_entropy(logits[some].float(), labels[some], reduction="sum")
            # The model's loss is a sum over all these tokens, divided; the instructions' part is the rest of the sum.
            divisor = responses + instructions if tokens.items is None else tokens.items
            rest = (loss if router is None else loss - router) * divisor - response
            if self.required:  # 0 for a batch of instructions only with weight 0
                weighted = responses + self.weight * instructions or 1
                mean = (response + self.weight * rest) / (weighted if tokens.items is None else divisor)
                output = outputs.with_loss(output, mean if router is None else mean + router)
        counts = response.new_tensor([responses, instructions])
        sums = torch.stack([response.detach(), counts[0], rest.detach(), counts[1]]).double()
        self._sums = sums if self._sums is None else self._sums + sums
        return output

    def take(self) -> dict[str, float]:
        """Returns the mean losses since the last call, over all ranks, which must all call it; {} if there are none."""
        sums = torch.zeros(4, dtype=torch.float64) if self._sums is None else self._sums
        self._sums = None
        response, responses, instruction, instructions = all_reduced(sums)
        means = {"response_loss": response / responses} if responses else {}
        return means | ({"instruction_loss": instruction / instructions} if instructions else {})

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Adds the two losses to a log of training."""
        if logs and "loss" in logs:  # neither the final summary nor an evaluation
            log_metrics(args, state, logs, self.take())
