"""The loss on responses alone, beside the total: with instructions in it, the total compares with no other run's.

Which labels are an instruction's must be known inside the model, where pictures have stretched them. So they are folded
below zero wherever the host moves labels about, and unfolded after: what it does to labels, it does to this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from ...data.proxy import PassesOn
from ...errors import HostMismatchError
from ...hosts import IGNORE_INDEX
from ..vgift.callbacks import summed
from .labels import INSTRUCTION

FOLD = -1000  # below every label that means something of its own
ROWS = 1024  # tokens at once: their scores in float32 are 131 MB with a vocabulary of 32,000


def fold(labels: torch.Tensor, instruction: torch.Tensor) -> torch.Tensor:
    """Returns the labels with those of an instruction, as booleans of the same shape, written as -1000 - id."""
    return torch.where(instruction, FOLD - labels, labels)


def unfold(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the labels as they were, and which are an instruction's."""
    instruction = labels <= FOLD
    return torch.where(instruction, FOLD - labels, labels), instruction


@dataclass
class InstructCollator(PassesOn):
    """The host's collator, with one more key in the batch: which labels are an instruction's, (batch, length) booleans.

    Attributes:
        base: the host's. What it returns is not changed otherwise; all else it has is passed on.
    """

    base: Callable[[Sequence[dict]], dict]

    def __call__(self, instances: Sequence[dict]) -> dict:
        """Returns the batch."""
        folded = []
        for instance in instances:
            rest = {key: value for key, value in instance.items() if key != INSTRUCTION}
            if INSTRUCTION in instance:
                rest["labels"] = fold(instance["labels"], instance[INSTRUCTION])
            folded.append(rest)
        batch = self.base(folded)
        labels, instruction = unfold(batch["labels"])
        return {**batch, "labels": labels, INSTRUCTION: instruction}


class ResponseLoss:
    """A step inside the model (see `host.inside`) that knows the loss of responses and of instructions apart.

    Args:
        weight: of an instruction's token beside a response's, λ from 0 up. With 1, the paper's, the model's own loss is
            left as it is; else (responses + λ · instructions) over their tokens, counted alike, takes its place.
    """

    def __init__(self, weight: float = 1.0):
        self.weight = weight
        self._given: torch.Tensor | None = None  # which labels of the batch are an instruction's
        self._stretched: tuple[torch.Tensor, torch.Tensor] | None = None  # labels and the same, pictures included
        self._sums: torch.Tensor | None = None  # response: loss, tokens; instruction: loss, tokens

    def pre_forward(self, module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Takes the key out that the model does not know."""
        self._given = kwargs.get(INSTRUCTION)
        self._stretched = None
        return args, {key: value for key, value in kwargs.items() if key != INSTRUCTION}

    def before(self, given: dict) -> dict:
        """Folds the labels that the host is about to stretch."""
        if self._given is not None and given.get("labels") is not None:
            given["labels"] = fold(given["labels"], self._given)
        return given

    def after(self, prepared: Any, given: dict) -> Any:
        """Unfolds them."""
        if self._given is None or prepared.labels is None:
            return prepared
        labels, instruction = unfold(prepared.labels)
        self._stretched = labels, instruction
        return prepared._replace(labels=labels)

    def forward(self, module: Any, args: tuple, kwargs: dict, output: Any) -> None:
        """Sums up over the tokens of this forward, in training alone, and weighs them.

        Raises:
            HostMismatchError: they are to be weighed, and the model does not tell their scores.
        """
        stretched, self._given, self._stretched = self._stretched, None, None
        logits = getattr(output, "logits", None)
        if not module.training or stretched is None:
            return
        if logits is None or output.loss is None:
            if self.weight != 1:
                raise HostMismatchError(
                    f"--instruct_loss_weight {self.weight:g}: {type(module).__name__} returns no loss with the "
                    "scores of all tokens beside it (a fused loss?), so they cannot be weighed; train with weight 1"
                )
            return
        labels, instruction = (one[:, 1:].to(logits.device) for one in stretched)
        rows, columns = ((labels != IGNORE_INDEX) & ~instruction).nonzero(as_tuple=True)
        responses, instructions = len(rows), int(instruction.sum())
        if not responses + instructions:  # a mean over nothing is no number
            return
        with torch.set_grad_enabled(self.weight != 1):
            response = sum(
                cross_entropy(logits[some].float(), labels[some], reduction="sum")
                for some in zip(rows.split(ROWS), columns.split(ROWS), strict=True)
            )
            # The model's loss is one mean over all of them: what responses leave of it is the instructions'.
            rest = output.loss * (responses + instructions) - response
            if self.weight != 1:  # of instructions alone, with weight 0, nothing is learned
                output.loss = (response + self.weight * rest) / (responses + self.weight * instructions or 1)
        counts = response.new_tensor([responses, instructions])
        sums = torch.stack([response.detach(), counts[0], rest.detach(), counts[1]]).double()
        self._sums = sums if self._sums is None else self._sums + sums

    def take(self) -> dict[str, float]:
        """Returns the mean losses since the last call, over all ranks, which must all call it; {} without any."""
        sums = torch.zeros(4, dtype=torch.float64) if self._sums is None else self._sums
        self._sums = None
        response, responses, instruction, instructions = summed(sums)
        told = {"response_loss": response / responses} if responses else {}
        return told | ({"instruction_loss": instruction / instructions} if instructions else {})
