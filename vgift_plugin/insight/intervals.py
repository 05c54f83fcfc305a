"""How sure a measured share or mean is."""

from __future__ import annotations

import math

import numpy as np


def wilson(accuracy: float, n: float, z: float = 1.96) -> tuple[float, float]:
    """Returns Wilson's 95 % interval of a share seen in n independent trials: 0.5 of 100 gives (0.404, 0.596)."""
    middle = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def effective_size(right: np.ndarray, groups: np.ndarray) -> float:
    """Returns how many independent trials (m, items) answers are worth when those of one photograph go together.

    Args:
        right: booleans.
        groups: (m,) numbers of the photographs.

    Returns:
        right.size or less; with one item and no photograph twice, exactly m.
    """
    off = right - right.mean()
    sums = np.bincount(np.unique(groups, return_inverse=True)[1], off.sum(1))
    spread = (off**2).sum()
    return right.size / max(1.0, (sums**2).sum() / spread) if spread else float(len(np.unique(groups)))


def mean_interval(values: np.ndarray, z: float = 1.96) -> tuple[float, float]:
    """Returns the normal 95 % interval of the mean of n independent values: 0, 1, 2, 3 gives (0.235, 2.765)."""
    half = z * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return float(values.mean()) - half, float(values.mean()) + half
