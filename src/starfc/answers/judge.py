"""How probable it is that two sides are one identity, from their measures and earlier answers.

The measures (:mod:`starfc.answers.measures`) are taken relative to their mean and spread over all candidates of the
set, because these differ much between embeddings. A logistic regression turns these values x into the log-odds
wᵀ [x, 1]. Its first weights w (:mod:`starfc.answers.weights`) were fitted on labelled sets, and no measure of likeness
counts against one identity.

Every answer changes w: it is the most probable one, given the answers and a normal distribution around the first w. So
the answers to some questions change p of all pairs of sides that look like them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from starfc.answers.marks import Kind
from starfc.answers.weights import JOIN, SPLIT

TRUST = 2.0  # inverse variance of w before the answers
LIMIT = 4.0  # values further from the mean than so many spreads are no more telling


@dataclass(frozen=True)
class Judge:
    """The judge of joins or of splits in a set.

    ``mean`` and ``spread`` (q,) are those of the measures of the set's candidates; ``weights`` (q + 1,) are w.
    """

    mean: NDArray[np.float64]
    spread: NDArray[np.float64]
    weights: NDArray[np.float64]

    @classmethod
    def of(cls, kind: Kind, measures: NDArray[np.float64]) -> Judge:
        """Return the judge of a set before answers, given the measures (m, q) of all its candidates."""
        return cls(*scale(measures), JOIN if kind == "join" else SPLIT)

    def log_odds(self, measures: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the log-odds (m,) of measures (m, q)."""
        return self._columns(measures) @ self.weights

    def taught(self, measures: NDArray[np.float64], same: NDArray[np.bool_], trust: float = TRUST) -> Judge:
        """Return the judge after answers: with the w of highest probability, by Newton's method.

        The prior of each weight is normal around the present weight, with variance 1 / ``trust``.

        Parameters
        ----------
        measures, same : (m, q) float64, (m,) bool
            The pairs of sides that were answered, and the answers.
        """
        if not len(same):
            return self
        x, weights = self._columns(measures), self.weights.copy()
        for _ in range(20):
            p = expit(x @ weights)
            gradient = x.T @ (p - same) + trust * (weights - self.weights)
            curve = (x * (p * (1 - p))[:, None]).T @ x + trust * np.eye(len(weights))
            step = np.linalg.solve(curve, gradient)
            weights -= step
            if np.abs(step).max() < 1e-6:
                break
        return replace(self, weights=weights)

    def _columns(self, measures: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack([relative(measures, self.mean, self.spread), np.ones(len(measures))])


def scale(measures: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean and the spread (q,) of measures (m, q)."""
    if not len(measures):
        return np.zeros(measures.shape[1]), np.ones(measures.shape[1])
    return measures.mean(axis=0), np.maximum(measures.std(axis=0), 1e-3)


def relative(
    measures: NDArray[np.float64], mean: NDArray[np.float64], spread: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return measures (m, q) relative to a mean and a spread, within :data:`LIMIT`."""
    return np.clip((measures - mean) / spread, -LIMIT, LIMIT)
