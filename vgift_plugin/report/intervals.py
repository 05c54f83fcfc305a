"""Confidence intervals of measured shares and means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Z = 1.96  # the 97.5 % quantile of the normal distribution


def wilson(accuracy: float, n: float) -> tuple[float, float]:
    """Returns Wilson's 95 % interval of a share in n independent trials: 0.5 of 100 gives (0.404, 0.596)."""
    middle = (accuracy + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(accuracy * (1 - accuracy) / n + Z * Z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def effective_size(right: np.ndarray, groups: np.ndarray) -> float:
    """Returns the effective number of independent trials when answers on one photograph are correlated.

    Args:
        right: booleans, (m, items).
        groups: (m,) numbers of the photographs.

    Returns:
        right.size or less; exactly m for one item and no repeated photograph.
    """
    off = right - right.mean()
    sums = np.bincount(np.unique(groups, return_inverse=True)[1], off.sum(1))
    spread = (off**2).sum()
    return right.size / max(1.0, (sums**2).sum() / spread) if spread else float(len(np.unique(groups)))


def mean_interval(values: np.ndarray, groups: Sequence[Any]) -> tuple[float, float] | tuple[None, None]:
    """Returns the normal 95 % interval of a mean with correlated values in each group; (None, None) for one group.

    The values 0, 1, 2, 3 of four photographs give (0.235, 2.765).

    Args:
        values: (n,) floats.
        groups: (n,) names of their groups, such as photographs.
    """
    mean, n = float(values.mean()), len(values)
    sums = np.bincount(np.unique(groups, return_inverse=True)[1], values - mean)
    if len(sums) < 2:
        return None, None
    half = Z * math.sqrt(float((sums**2).sum()) * len(sums) / (len(sums) - 1)) / n
    return mean - half, mean + half
