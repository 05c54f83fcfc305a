"""Samples as classification problems: what is kept of each, its answers as classes, and two halves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..tasks.task import Sample
from .solvers import Solver, SolverInput

LEAST_PHOTOS = 10  # in each half; with fewer, a photograph may be in both


@dataclass(frozen=True)
class Measured:
    """What is kept of a sample: 2,000 pictures would not fit into memory.

    Attributes:
        features: one row of numbers a solver.
        response: the answer.
        sources: paths of the photographs.
    """

    features: list[np.ndarray]
    response: str
    sources: tuple[str, ...]


def measure(samples: Callable[[int], Sample], solvers: Sequence[Solver], j: int) -> Measured:
    """Makes sample j and returns it as the solvers see it."""
    sample = samples(j)
    seen = SolverInput(sample)
    return Measured([solver.see(seen) for solver in solvers], sample.response, sample.sources)


def targets_of(responses: Sequence[str]) -> np.ndarray:
    """Returns the answers as (n, items) strings; each column is one classification problem.

    `A-3, B-1` has two items, 3 and 1. An answer without commas is one item. If the answers differ in their number of
    items, each whole answer is one item.
    """
    pieces = [[piece.rpartition("-")[2] for piece in response.split(", ")] for response in responses]
    if len({len(some) for some in pieces}) > 1 or len(pieces[0]) == 1:
        pieces = [[response] for response in responses]
    return np.array(pieces)


def halves(sources: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """Splits samples by the photographs they were made of, in the order in which these came first.

    Args:
        sources: the paths of each sample's photographs.

    Returns:
        (train, test, groups, apart). `train` and `test` are indices. `groups` numbers the samples' photographs:
        samples that share one are of one group. `apart` tells whether no photograph is in both halves; if there are
        too few for that (10 a half), the first half of the samples trains and the second tests.
    """
    parent: dict[str, str] = {}

    def root(path: str) -> str:
        while parent.setdefault(path, path) != path:
            path = parent[path]
        return path

    named = [paths or (f"sample {k}",) for k, paths in enumerate(sources)]
    for first, *others in named:
        for other in others:
            parent[root(other)] = root(first)
    numbers: dict[str, int] = {}
    groups = np.array([numbers.setdefault(root(paths[0]), len(numbers)) for paths in named])
    ends = np.cumsum(np.bincount(groups))
    border = int(np.searchsorted(ends, len(groups) / 2)) + 1  # groups below it train
    apart = border >= LEAST_PHOTOS and len(ends) - border >= LEAST_PHOTOS
    in_train = groups < border if apart else np.arange(len(groups)) < len(groups) // 2
    return np.flatnonzero(in_train), np.flatnonzero(~in_train), groups, apart
