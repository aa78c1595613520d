"""What similarity means in a set: the similarities of strangers, estimated without a label.

Two rows taken at random are strangers nearly always. Their similarities say where similarity begins to mean something,
and they differ from one embedding to the next: strangers are at 0.0 in one set and at 0.84 in another. Similarities
are compared with those of all rows to a *cohort* of at most 1,024 rows. It is drawn by the places of the rows, so
with more rows another order draws another cohort, and a few uncertain edges change. Median and spread (the median minus
the 16 % quantile, one standard deviation of a normal distribution) are read off the middle and the lower half, because
pairs of the same identity stand in the upper half:

    z_ij = (s_ij - median) / spread             over all pairs
    z_i|j = (s_ij - median_i) / spread_i        over the pairs of row i alone

z_i|j and z_j|i are the two halves of adaptive s-norm, a standard of speaker verification (Matejka et al., Interspeech
2017). The similarities of a kNN graph are also brought to one scale, on which strangers are at 0 and equal rows at 1:

    s' = (s - median) / (1 - median)

This is what centring the features does to similarities where all rows lie in one narrow cone, without moving any row.

Where strangers are all equally similar (orthogonal rows, corners of a simplex, sparse rows that share nothing), who of
them fills a list is chance, though lists that are filled by the same rule look alike. Neighbours that are no more
similar than that are none (:meth:`Strangers.rescaled`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starfc.data.dataset import Features, as_features
from starfc.graph.neighbours import KnnGraph
from starfc.runtime import threads
from starfc.runtime.products import slices

COHORT = 1024
_QUANTILE = 0.16
_BLOCK = 1 << 11  # rows at a time: 8 MiB of similarities
_LEAST_SPREAD = 1e-4
_LEAST_SHARE = 0.3  # of the spread of all pairs: a row's own is not taken to be less


@dataclass(frozen=True)
class Strangers:
    """Similarities of strangers in a set of N rows.

    ``median`` and ``spread`` are those of all pairs, ``node_median`` and ``node_spread`` (N,) float32 those of every
    row; ``cohort`` (m,) int64 are the rows that all were compared with.
    """

    median: float
    spread: float
    node_median: NDArray[np.float32]
    node_spread: NDArray[np.float32]
    cohort: NDArray[np.int64]

    @classmethod
    def of(cls, features: Features | NDArray[np.float32], seed: int = 0) -> Strangers:
        """The strangers of a set.

        Parameters
        ----------
        features : Features, or (N, d) float32 L2-normalised
        seed : int
            Chooses the cohort.

        Notes
        -----
        N x 1,024 products, and 8 MiB for each thread.
        """
        features = as_features(features)
        n = len(features)
        cohort = np.sort(np.random.default_rng(seed).choice(n, min(n, COHORT), replace=False))
        among = features.rows(cohort)
        pairs = (among @ among.T)[np.triu_indices(len(cohort), 1)]
        middle, low = np.quantile(pairs, [0.5, _QUANTILE]) if pairs.size else (0.0, 0.0)
        # a median near 1 (all rows nearly equal) would leave nothing to divide by
        median, spread, none = min(float(middle), 0.999), float(middle - low), np.empty(0, np.float32)
        whole = cls(median, max(spread, _LEAST_SPREAD), none, none, cohort)
        return whole.grown(features)

    def grown(self, features: Features) -> Strangers:
        """The same strangers for more rows: those that have no median yet are compared with the cohort.

        ``features`` are of all rows, the earlier ones first.
        """
        first, n = len(self.node_median), len(features)
        median, spread = np.empty(n, np.float32), np.empty(n, np.float32)
        median[:first], spread[:first] = self.node_median, self.node_spread
        cohort = features.rows(self.cohort)
        at = [int(q * (len(cohort) - 1)) for q in (_QUANTILE, 0.5)]

        def work(part: slice) -> None:
            rows = slice(first + part.start, first + part.stop)
            ordered = np.partition(features.rows(rows) @ cohort.T, at, axis=1)
            median[rows] = ordered[:, at[1]]
            spread[rows] = ordered[:, at[1]] - ordered[:, at[0]]

        threads.each(work, slices(n - first, _BLOCK))
        np.maximum(spread[first:], np.float32(_LEAST_SHARE * self.spread), out=spread[first:])
        nowhere = first + np.flatnonzero(~np.isfinite(median[first:]))  # rows without direction have no edges
        median[nowhere], spread[nowhere] = 0, 1
        return Strangers(self.median, self.spread, median, spread, self.cohort)

    def placed(self, rows: NDArray[np.integer], num_nodes: int) -> Strangers:
        """The same strangers among ``num_nodes`` rows, of which these are ``rows``; the others have none."""
        median, spread = np.zeros(num_nodes, np.float32), np.ones(num_nodes, np.float32)
        median[rows], spread[rows] = self.node_median, self.node_spread
        return Strangers(self.median, self.spread, median, spread, np.asarray(rows, np.int64)[self.cohort])

    @property
    def centre(self) -> float:
        """The similarity that is 0 on the common scale: the median, but never below 0."""
        return max(self.median, 0.0)

    @property
    def tied(self) -> bool:
        """Whether strangers are all equally similar, so that a neighbour like them says nothing."""
        return self.spread <= _LEAST_SPREAD

    def rescaled(self, graph: KnnGraph) -> KnnGraph:
        """The kNN graph with its similarities on the common scale, clipped to [0, 1]: a copy of (N, k) float32.

        Where strangers are :attr:`tied`, a copy of the ids too, without those that are no more similar than strangers.
        """
        centre, sims = np.float32(self.centre), np.empty(graph.sims.shape, np.float32)
        ids = np.empty_like(graph.ids) if self.tied else graph.ids

        def work(rows: slice) -> None:
            np.clip((graph.sims[rows] - centre) / (1 - centre), 0, 1, out=sims[rows])
            if self.tied:
                like_strangers = graph.sims[rows] <= centre + np.float32(self.spread)
                ids[rows] = np.where(like_strangers, -1, graph.ids[rows])
                sims[rows][like_strangers] = 0

        threads.each(work, slices(graph.num_nodes, _BLOCK))
        return KnnGraph(ids, sims, graph.info)
