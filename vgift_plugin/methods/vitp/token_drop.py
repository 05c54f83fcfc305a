"""Dropping visual tokens (ViTP, arXiv 2509.17562, section 3.2): which ones stay, and the shorter sequences that leaves.

A batch is (batch, length) columns: text, image tokens and padding on one side. Of each sample's image tokens, over all
its pictures together, ceil((1 - ratio) · n) stay, chosen uniformly, in their order and with the positions they had. So
576 tokens and 0.75 leave 144.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor


def kept_count(n: int, ratio: float) -> int:
    """Returns ceil((1 - ratio) · n), the ratio taken as written: of 10 tokens, 0.7 leaves 3."""
    return math.ceil((1 - Fraction(str(ratio))) * n)


def choose(image: Tensor, ratio: float, prob: float, generator_of: Callable[[int], np.random.Generator]) -> Tensor:
    """Returns the columns that stay, as booleans (batch, length): all but the dropped image tokens.

    Args:
        image: which columns are image tokens, booleans (batch, length).
        ratio: share of them to drop, 0 <= ratio < 1.
        prob: chance of a sample to have any dropped, in [0, 1]; one coin a sample.
        generator_of: the number of a sample in the batch -> its own generator.
    """
    keep = torch.ones_like(image, device="cpu")
    for row, columns in enumerate(image.cpu()):
        places = columns.nonzero()[:, 0]
        rng = generator_of(row)
        if len(places) and rng.random() < prob:
            dropped = rng.permutation(len(places))[kept_count(len(places), ratio) :]
            keep[row, places[torch.from_numpy(dropped)]] = False
    return keep.to(image.device)


def shorten(stays: Tensor, left: bool) -> tuple[Tensor, Tensor]:
    """Returns which columns make the shorter batch, as short as its longest sample allows.

    Args:
        stays: booleans (batch, length), False for what is dropped and for padding.
        left: whether padding goes to the left.

    Returns:
        (columns, valid), both (batch, new length): the number of the old column, in order; False where that is padding.
    """
    length = int(stays.sum(1).max())
    order = torch.argsort((stays if left else ~stays).to(torch.uint8), dim=1, stable=True)
    columns = order[:, -length:] if left else order[:, :length]
    return columns, stays.gather(1, columns)
