"""Dropping visual tokens (ViTP, arXiv 2509.17562, section 3.2): the tokens kept, and the shortened sequences.

A batch is (batch, length) columns: text, image tokens, and padding on one side. Of the n image tokens in all pictures
of a sample, ceil((1 - ratio) · n) are kept, chosen uniformly, in order and with their positions: 576 tokens and 0.75
leave 144.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor


def kept_count(n: int, ratio: float) -> int:
    """Returns ceil((1 - ratio) · n) for the exact decimal ratio: of 10 tokens, 0.7 leaves 3."""
    return math.ceil((1 - Fraction(str(ratio))) * n)


def choose(image: Tensor, ratio: float, prob: float, generator_of: Callable[[int], np.random.Generator]) -> Tensor:
    """Returns a mask of the columns kept, booleans (batch, length): all but the dropped image tokens.

    Args:
        image: mask of the image tokens, booleans (batch, length).
        ratio: share of them to drop, 0 <= ratio < 1.
        prob: probability that tokens of a sample are dropped, in [0, 1]; drawn once per sample.
        generator_of: returns the generator of a sample, given its number in the batch.
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
    """Returns the columns of the shortened batch, which is as long as its longest sample.

    Args:
        stays: booleans (batch, length), False for dropped tokens and padding.
        left: whether padding is on the left.

    Returns:
        (columns, valid), both (batch, new length): the indices of the old columns, in order; False for padding.
    """
    length = int(stays.sum(1).max())
    order = torch.argsort((stays if left else ~stays).to(torch.uint8), dim=1, stable=True)
    columns = order[:, -length:] if left else order[:, :length]
    return columns, stays.gather(1, columns)
