"""How features differ within an identity and between identities: the two-covariance model.

Row x of identity i is m + y_i + e with normal y_i ~ N(0, B) and e ~ N(0, W) (Brümmer and de Villiers, The speaker
partitioning problem, Odyssey 2010; PLDA of Prince and Elder, ICCV 2007, with full ranks). W is the covariance within
the present clusters, and B what remains of the whole covariance:

    W = Σ_c Σ_{i in c} (x_i - μ_c)(x_i - μ_c)ᵀ / (N - C),     B = Σ_c n_c (μ_c - m)(μ_c - m)ᵀ / N - W C / N.

In the axes in which W is the identity matrix and B = diag(φ), the means a and b of two sides of n_a and n_b rows are
one identity rather than two with the log-odds

    Σ_d log N((a_d, b_d); 0, [[φ_d + 1/n_a, φ_d], [φ_d, φ_d + 1/n_b]])
        - log N(a_d; 0, φ_d + 1/n_a) - log N(b_d; 0, φ_d + 1/n_b).

So an axis in which photos of one identity differ counts little: plain similarity does not know which axes these are.
The photos of an identity are not independent, so n rows count as n / (1 + :data:`ALIKE` (n - 1)).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starfc.answers.evidence import Evidence, Sides
from starfc.answers.evidence_kernels import covariance_odds

ALIKE = 0.1  # correlation of the deviations of the rows of a side from the mean of their identity
_SHRINK = 0.01  # share of the mean variance that is added to each axis within identities
_ROUNDING = 1e-6  # share of the mean square that is added as well: the rounding error of sums in float32
_LEAST = 1e-3  # least variance between identities, relative to that within


@dataclass(frozen=True)
class Covariances:
    """The model of a set.

    Attributes
    ----------
    mean : (d,) float64
        Mean of the features, m.
    axes : (d, d) float64
        Columns are the axes in which W is the identity matrix and B is diagonal.
    between : (d,) float64
        φ, the variances between identities in these axes.
    any, one : float
        Similarity of two random rows, and of two rows of one cluster.
    """

    mean: NDArray[np.float64]
    axes: NDArray[np.float64]
    between: NDArray[np.float64]
    any: float
    one: float

    @classmethod
    def of(cls, evidence: Evidence, clusters: Sides) -> Covariances:
        """Estimate the model from the features and the present clusters."""
        mean, second = evidence.moments
        n, count = max(clusters.sizes.sum(), 1.0), np.count_nonzero(clusters.sizes)
        d = len(mean)
        square = np.einsum("ij,ij->i", clusters.sums, clusters.sums, dtype=np.float64)
        pairs = float((clusters.sizes * (clusters.sizes - 1)).sum())
        alone = float(mean @ mean)
        within = float((square - clusters.sizes)[clusters.sizes > 1].sum()) / pairs if pairs else 1.0
        if not d:
            return cls(mean, second, mean, alone, max(within, alone + 1e-3))
        scaled = clusters.sums / np.sqrt(np.maximum(clusters.sizes, 1))[:, None]
        outer = (scaled.T @ scaled).astype(np.float64)  # Σ n μ μᵀ
        inner = (n * second - outer) / max(n - count, 1)
        # few rows, or nearly all of them alone: rounding errors can be all that is left of W
        values, turned = np.linalg.eigh(inner)
        values = np.maximum(values, 0)
        values += _SHRINK * values.mean() + _ROUNDING * np.trace(second) / d + 1e-9
        between = outer / n - np.outer(mean, mean) - (turned * values) @ turned.T * count / n
        white = turned / np.sqrt(values)
        spread, vectors = np.linalg.eigh(white.T @ between @ white)
        axes = white @ vectors
        return cls(mean, axes, np.maximum(spread, _LEAST), alone, max(within, alone + 1e-3))

    def at(self, sides: Sides) -> NDArray[np.float32]:
        """Return the means of sides in the model's axes, (S, d)."""
        return ((sides.sums / np.maximum(sides.sizes, 1)[:, None] - self.mean) @ self.axes).astype(np.float32)

    def log_odds(
        self, a: NDArray[np.float32], b: NDArray[np.float32], sizes: tuple[NDArray[np.float64], NDArray[np.float64]]
    ) -> NDArray[np.float64]:
        """Return the log-odds (m,) of one identity, given the means (m, d) of both sides, and their sizes."""
        first, second = ((1 + ALIKE * (n - 1)) / n for n in sizes)
        return covariance_odds(a, b, first, second, self.between)
