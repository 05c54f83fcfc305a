"""Per-token metadata: sample, task, and whether the token belongs to an instruction.

One int64 tensor of the labels' shape, under a key of its own: bit 0 marks instructions, bits 1 to 15 hold the task's
number (0 for the host's own records, 1, 2, … for self-supervised tasks), the rest the sample's number in its batch (in
its data set, where the item has it already), which separates the samples of a flattened row.

The host moves labels when it pads a batch or inserts picture features. For that call the labels are replaced by their
indices; afterwards labels and metadata are gathered at the indices that the host returns.
"""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.proxy import Proxy
from . import IGNORE_INDEX

KEY = "vgift_token_facts"
SAMPLE = 16  # the lowest bit of the sample's number


class Tokens(NamedTuple):
    """Labels as the model's loss takes them, and what is known of each; all of one shape, (batch, length).

    Attributes:
        labels: IGNORE_INDEX where there is no loss.
        task: 0 for base records; None where the batch carries no facts.
        instruction: booleans; None likewise.
        sample: the sample's number; None likewise.
        items: what the model divides its summed loss by; None where that is the number of supervised tokens.
    """

    labels: Tensor
    task: Tensor | None
    instruction: Tensor | None
    sample: Tensor | None = None
    items: Any = None

    @classmethod
    def of(cls, labels: Tensor, facts: Tensor | None, items: Any = None) -> Tokens:
        """Reads facts."""
        if facts is None:
            return cls(labels, None, None, None, items)
        return cls(labels, facts >> 1 & (1 << SAMPLE - 1) - 1, (facts & 1).bool(), facts >> SAMPLE, items)


class Item(UserDict):
    """An item with facts. Not a dict, since transformers' Trainer removes unknown keys from dicts."""


def with_facts(item: Any, task: int | None = None, instruction: Tensor | None = None, sample: int | None = None) -> Any:
    """Returns a copy of a host's item with facts added; all else in it is the same object.

    Args:
        item: a mapping with `labels`.
        task: the task's number; None leaves it.
        instruction: booleans of the labels' shape; None leaves them.
        sample: the sample's number in its data set, from 1 up; None leaves it, and the collator numbers the batch.
    """
    facts = item[KEY] if KEY in item else torch.zeros_like(item["labels"])
    if task is not None:
        facts = (facts >> SAMPLE << SAMPLE) + (facts & 1) + 2 * task
    if instruction is not None:
        facts = (facts >> 1) * 2 + instruction.to(facts.dtype)
    if sample is not None:
        facts = (facts & (1 << SAMPLE) - 1) + (sample << SAMPLE)
    item = Item(item) if isinstance(item, dict) else copy.copy(item)
    item[KEY] = facts
    return item


def numbered(facts: Tensor, number: int) -> Tensor:
    """Returns facts with the sample's number in its batch, where they have no number yet."""
    return facts if facts.numel() and facts.flatten()[0] >> SAMPLE else facts + (number << SAMPLE)


def move(values: Tensor, places: Tensor, empty: int) -> Tensor:
    """Returns `values.flatten()[places]`, and `empty` where a place is negative."""
    return values.flatten()[places.clamp(min=0)].masked_fill(places < 0, empty)


class TokenFactsCollator(Proxy):
    """The host's collator, and the facts of its batches under `KEY`, of the labels' shape, padded or flattened alike.

    Attributes:
        base: the host's. What it makes of all else is not changed.
        carries: whether batches get the key. `ModelHooks`, which take it out again before the model, set it while they
            are attached; the model itself does not know the key.
    """

    def __init__(self, base: Callable[[Sequence[Any]], Any]):
        self.base, self.carries = base, False

    def __call__(self, instances: Sequence[Any]) -> Any:
        """Returns the batch."""
        labels = torch.cat([one["labels"].flatten() for one in instances])
        known = ((one[KEY] if KEY in one else torch.zeros_like(one["labels"])).flatten() for one in instances)
        facts = torch.cat([numbered(facts, number) for number, facts in enumerate(known)])
        placed, start = [], 0
        for one in instances:
            one = one.data.copy() if isinstance(one, Item) else copy.copy(one)
            one.pop(KEY, None)
            end = start + one["labels"].numel()
            if self.carries:
                one["labels"] = torch.arange(start, end).view_as(one["labels"])
            start = end
            placed.append(one)
        batch = self.base(placed)
        if self.carries:
            places = batch["labels"]  # the host fills up with IGNORE_INDEX, which is negative
            batch["labels"], batch[KEY] = move(labels, places, IGNORE_INDEX), move(facts, places, 0)
        return batch
