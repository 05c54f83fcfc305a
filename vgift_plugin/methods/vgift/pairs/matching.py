"""Finds corresponding points in two different photographs by dense features.

The method is V-GIFT's (arXiv 2604.12966, section 3.2): a random patch on an object of the first photograph is matched
to the most similar patch of the same object in the second. Unlike in the released code, the match must be on the
object, the two patches must choose each other, and no distant patch may be nearly as similar, so that wrong candidates
are really wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ....errors import UnsuitableImage
from .features import Grid


@dataclass(frozen=True)
class Rules:
    """Conditions for keeping a correspondence; distances are shares of a photograph's shorter side.

    Args:
        distractors: maximum number of wrong candidates stored; a query with fewer than 2 is rejected.
        min_distance: minimum distance between candidates (match and distractors).
        min_similarity: minimum cosine similarity of query and match.
        min_margin: minimum by which patches of the object at least `min_distance` from the match are less similar.
        border: minimum distance of points from the edge of their photograph.
        tries: number of queries tried before the pair is rejected.
    """

    distractors: int = 6
    min_distance: float = 0.15
    min_similarity: float = 0.4
    min_margin: float = 0.05
    border: float = 0.05
    tries: int = 32


# In the order of the checks; a rejected pair is counted under the last stage that any of its queries reached.
STAGES = ("object too small", "not similar", "not mutual", "ambiguous", "match at the edge", "too few distractors")


def choose(
    features: tuple[np.ndarray, np.ndarray],
    objects: tuple[np.ndarray, np.ndarray],
    grids: tuple[Grid, Grid],
    rules: Rules,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Returns query (x, y), match (x, y), distractors [(x, y), ...], similarity and margin.

    Queries are random patches of the object, and the first one that meets all rules is used. The match is its most
    similar patch on the object in the second photograph. The match's most similar patch on the object in the first
    photograph must be the query or one of its eight neighbours (patches are coarse, and the true point is seldom at
    the centre of one), and no patch far from the match may be nearly as similar. Distractors are random far patches of
    the object, so all are less similar than the match by the margin.

    Args:
        features: (patches, d) of each photograph, rows of length 1.
        objects: bool (patches,) of each photograph.
        grids: of each photograph.
        rules: conditions for keeping a match.
        rng: chooses queries and distractors.

    Raises:
        UnsuitableImage: no query meets the rules; the reason is one of `STAGES`.
    """
    inside1, inside2 = (np.flatnonzero(cover) for cover in objects)
    starts = np.flatnonzero(grids[0].inner(rules.border)[inside1])
    if not len(starts) or not len(inside2):
        raise UnsuitableImage(STAGES[0])
    similarity = features[0][inside1] @ features[1][inside2].T
    furthest = 0
    for start in rng.permutation(starts)[: rules.tries]:
        stage, found = _judge(similarity, int(start), inside1, inside2, grids, rules, rng)
        if found is not None:
            return found
        furthest = max(furthest, stage)
    raise UnsuitableImage(STAGES[furthest])


def _judge(similarity, start, inside1, inside2, grids, rules, rng) -> tuple[int, dict[str, Any] | None]:
    """Returns (index in `STAGES` where the query failed, None), or (number of stages, the result)."""
    match = int(similarity[start].argmax())
    best = float(similarity[start, match])
    if best < rules.min_similarity:
        return 1, None
    back = inside1[similarity[:, match].argmax()]
    columns = grids[0].columns
    if any(
        abs(a - b) > 1 for a, b in zip(divmod(int(back), columns), divmod(int(inside1[start]), columns), strict=True)
    ):
        return 2, None
    points, limit = grids[1].points[inside2], rules.min_distance * min(grids[1].wh)
    far = np.hypot(*(points - points[match]).T) >= limit
    if not far.any():
        return 5, None
    margin = best - float(similarity[start, far].max())
    if margin < rules.min_margin:
        return 3, None
    inner = grids[1].inner(rules.border)[inside2]
    if not inner[match]:
        return 4, None
    chosen: list[np.ndarray] = []
    for point in points[rng.permutation(np.flatnonzero(far & inner))]:
        if len(chosen) < rules.distractors and all(np.hypot(*(point - other)) >= limit for other in chosen):
            chosen.append(point)
    if len(chosen) < 2:
        return 5, None
    return len(STAGES), {
        "query": grids[0].points[inside1[start]].tolist(),
        "match": points[match].tolist(),
        "distractors": [point.tolist() for point in chosen],
        "similarity": round(best, 4),
        "margin": round(margin, 4),
    }
