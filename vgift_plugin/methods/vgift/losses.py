"""The training loss of base records and of each task apart, from what the model computes anyway.

Which task a row of a batch is of rides in its first label: no position predicts the first token, so that label never
enters a loss, in LLaVA or any other causal language model of transformers. The samples themselves are the host's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import TrainerCallback

from ...data.proxy import PassesOn
from ...hosts import IGNORE_INDEX
from ...hosts.view import OneRecordView
from ...tasks.task import Sample
from .callbacks import summed, tell

FIRST = IGNORE_INDEX - 1  # of task 1; task 2 has the number below


def mark(item: dict, number: int) -> dict:
    """Notes a task's number, from 1 up, on the tokens of a host's item, whose content stays what it is."""
    item["input_ids"].vgift_task = number
    return item


class MarkingCollator(PassesOn):
    """The host's own data collator, then the number of each row's task in the first of its labels.

    Args:
        base: the host's; what else is asked of this object is asked of it.
    """

    def __init__(self, base: Callable[[Sequence[dict]], dict]):
        self.base = base

    def __call__(self, instances: Sequence[dict]) -> dict:
        """Returns the batch."""
        batch = self.base(instances)
        for row, instance in enumerate(instances):
            if number := getattr(instance["input_ids"], "vgift_task", 0):
                batch["labels"][row, 0] = FIRST + 1 - number
        return batch


class Marking:
    """The one-record view; what it returns carries the number of its task.

    Args:
        view: the host, or what speaks for it.
        names: of the tasks, by their numbers; the first is no task's.
    """

    def __init__(self, view: OneRecordView | Callable[[Sample, str], Any], names: Sequence[str]):
        self.view, self.names = view, names

    def __call__(self, sample: Sample, name: str) -> Any:
        """Returns what the host returns for a sample."""
        return mark(self.view(sample, name), self.names.index(sample.task))

    def record(self, record: dict, pictures: list[Image.Image], task: str) -> Any:
        """Returns what the host returns for a task's record, with these pictures in the place of its own."""
        return mark(self.view.speak(record, pictures), self.names.index(task))


def marked(first_labels: Any) -> Any:
    """Returns the numbers of the tasks, 0 for base records, of first labels; array or tensor as given."""
    return (FIRST + 1 - first_labels).clip(0) * (first_labels < IGNORE_INDEX)


class SplitLoss(TrainerCallback):
    """Logs `loss_base` and `loss_<task>` beside `loss`: means over the tokens that carried loss since the last log.

    Attributes:
        names: `base`, then the tasks; their places are the numbers in `mark`.
        labels: of the last batch, (batch, length), as the loss takes them: after the host put the pictures' places in.
    """

    def __init__(self, tasks: Iterable[str]):
        self.names = ["base", *tasks]
        self._sums: torch.Tensor | None = None  # (names, 2): loss and tokens

    def after(self, prepared: Any, given: dict) -> Any:
        """Takes the labels from what the host prepared; see `Inside`."""
        if given.get("labels") is not None and prepared.labels is not None:
            self.labels, self._numbers = prepared.labels, marked(given["labels"][:, 0])
        return prepared

    def forward(self, module: Any, args: tuple, kwargs: dict, output: Any) -> None:
        """Adds up the losses of one batch; only places that carry loss are looked at."""
        logits = getattr(output, "logits", None)
        if not module.training or logits is None:
            return
        with torch.no_grad():
            true = self.labels[:, 1:]
            taught = true != IGNORE_INDEX
            loss = torch.nn.functional.cross_entropy(logits[:, :-1][taught].float(), true[taught], reduction="none")
            group = self._numbers[:, None].expand_as(true)[taught]
            both = torch.stack([loss, torch.ones_like(loss)], dim=1)
            if self._sums is None:
                self._sums = both.new_zeros(len(self.names), 2)
            self._sums.index_add_(0, group, both)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Adds the losses over all ranks to a training log."""
        if not logs or "loss" not in logs or self._sums is None:
            return
        sums, self._sums = summed(self._sums), None
        pairs = zip(self.names, sums, strict=True)
        tell(args, state, logs, {f"loss_{name}": loss / count for name, (loss, count) in pairs if count})
