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

from ...hosts import IGNORE_INDEX


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


def shorten(
    keep: Tensor, embeds: Tensor, labels: Tensor, mask: Tensor, positions: Tensor, left: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (embeds, labels, mask, positions) without the columns that go, as short as the longest sample allows.

    Args:
        keep: booleans (batch, length).
        embeds: (batch, length, hidden); gradients flow back into what stays.
        labels: (batch, length).
        mask: booleans (batch, length), False for padding.
        positions: (batch, length); kept as they are, so with gaps.
        left: whether padding goes to the left; its embeddings and positions are 0.
    """
    stays = keep & mask
    length = int(stays.sum(1).max())
    order = torch.argsort((stays if left else ~stays).to(torch.uint8), dim=1, stable=True)
    columns = order[:, -length:] if left else order[:, :length]
    rows = torch.arange(len(keep), device=columns.device)[:, None]
    valid = stays[rows, columns]
    return (
        embeds[rows, columns].masked_fill(~valid[..., None], 0),
        labels[rows, columns].masked_fill(~valid, IGNORE_INDEX),
        valid,
        positions[rows, columns].masked_fill(~valid, 0),
    )
