"""The weak classifiers that every solver uses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

TREES = 100


def table_of(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Returns rows of different lengths as one (n, d) array, filled up with -1."""
    wide = np.full((len(rows), max(map(len, rows), default=0)), -1.0)
    for row, values in zip(wide, rows, strict=True):
        row[: len(values)] = values
    return wide


def guess(seen: np.ndarray, targets: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Learns to answer on one half of the samples and answers on the other.

    The guess is the most probable answer by the mean of two classifiers: logistic regression for linear relations,
    extremely randomised trees (Geurts et al. 2006) for the others. Nothing is tuned on the held-out half. Both are fast
    on a thousand samples: 0.1 s for 250 features on one core.

    Args:
        seen: (n, d) floats.
        targets: (n,) answers.
        train, test: indices.

    Returns:
        (len(test),) answers.
    """
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classes, counts = np.unique(targets[train], return_counts=True)
    varying = np.ptp(seen[train], axis=0) > 0
    if len(classes) < 2 or not varying.any():
        return np.full(len(test), classes[counts.argmax()])
    seen = seen[:, varying]
    models = (
        make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300)),
        ExtraTreesClassifier(TREES, min_samples_leaf=3, random_state=0),
    )
    votes = sum(model.fit(seen[train], targets[train]).predict_proba(seen[test]) for model in models)
    return classes[votes.argmax(1)]
