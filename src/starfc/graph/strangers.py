"""Estimate the similarities of strangers in a set, without labels, to interpret all other similarities.

Strangers are rows of different identities. Two random rows are almost always strangers. The similarity of strangers
differs between embeddings: it is about 0.0 in one set and 0.84 in another. A similarity means something only if it is
higher. To estimate it, all rows are compared with a *cohort* of at most 1,024 rows. The cohort is drawn by row number.
So with more than 1,024 rows, another order of the rows gives another cohort, and a few uncertain edges change.

The spread is the median minus the 16 % quantile, one standard deviation of a normal distribution. Median and lower
quantile are used because pairs of the same identity are in the upper half:

    z_ij = (s_ij - median) / spread             over all pairs
    z_i|j = (s_ij - median_i) / spread_i        over the pairs of row i only

z_i|j and z_j|i are the two halves of adaptive s-norm, a standard method of speaker verification (Matejka et al.,
Interspeech 2017). The kernels also map the similarities of a kNN graph to a common scale, on which strangers have 0
and equal rows have 1, clipped to [0, 1]:

    s' = (s - median) / (1 - median)

If all rows lie in a narrow cone, centring the features would have this effect on similarities. Here no row changes.

Sometimes all strangers are equally similar: orthogonal rows, corners of a simplex, sparse rows without common entries.
It is then arbitrary which strangers fill a neighbour list, and lists that are filled by the same rule look alike.
Neighbours that are not more similar than strangers are therefore removed (:meth:`Strangers.without_ties`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from starfc.data.dataset import Features, as_features
from starfc.graph.neighbours import KnnGraph
from starfc.runtime import device as devices
from starfc.runtime import threads
from starfc.runtime.device_rows import in_blocks
from starfc.runtime.products import slices

COHORT = 1024  # maximum number of rows in the cohort
_QUANTILE = 0.16
_BLOCK = 1 << 11  # rows per block: 8 MiB of similarities
_LEAST_SPREAD = 1e-4  # minimum spread of all pairs; at this value all strangers count as equally similar
_LEAST_SHARE = 0.3  # minimum spread of a row, as a share of the spread of all pairs


@dataclass(frozen=True)
class Strangers:
    """The similarities of strangers in a set of N rows.

    Attributes
    ----------
    median, spread : float
        Median and spread over all pairs of the cohort.
    node_median, node_spread : (N,) float32
        Median and spread over the pairs of each row with the cohort.
    cohort : (m,) int64
        The rows with which all rows were compared.
    """

    median: float
    spread: float
    node_median: NDArray[np.float32]
    node_spread: NDArray[np.float32]
    cohort: NDArray[np.int64]

    @classmethod
    def of(
        cls, features: Features | NDArray[np.float32], seed: int = 0, device: str | torch.device = "cpu"
    ) -> Strangers:
        """Estimate the similarities of strangers of a set.

        Parameters
        ----------
        features : Features, or (N, d) float32 L2-normalised
        seed : int
            Seed of the cohort.
        device
            Device of the products.

        Notes
        -----
        Needs N x 1,024 products, and 8 MiB per thread.
        """
        features = as_features(features)
        n = len(features)
        cohort = np.sort(np.random.default_rng(seed).choice(n, min(n, COHORT), replace=False))
        among = features.rows(cohort)
        pairs = (among @ among.T)[np.triu_indices(len(cohort), 1)]
        middle, low = np.quantile(pairs, [0.5, _QUANTILE]) if pairs.size else (0.0, 0.0)
        # s' divides by 1 - median, so the median must stay below 1 even if all rows are nearly equal
        median, spread, none = min(float(middle), 0.999), float(middle - low), np.empty(0, np.float32)
        whole = cls(median, max(spread, _LEAST_SPREAD), none, none, cohort)
        return whole.grown(features, device)

    def grown(self, features: Features, device: str | torch.device = "cpu") -> Strangers:
        """Return the same estimates with additional rows, which are compared with the same cohort.

        ``features`` are those of all rows; the rows that are already known come first. The products are computed on
        ``device``.
        """
        first, n = len(self.node_median), len(features)
        median, spread = np.empty(n, np.float32), np.empty(n, np.float32)
        median[:first], spread[:first] = self.node_median, self.node_spread
        cohort = features.rows(self.cohort)
        at = [int(q * (len(cohort) - 1)) for q in (_QUANTILE, 0.5)]

        few = torch.from_numpy(cohort).to(device)

        def on_device(part: slice) -> None:
            rows = slice(first + part.start, first + part.stop)
            ordered = (torch.from_numpy(features.rows(rows)).to(device) @ few.T).sort(dim=1).values[:, at]
            lower, median[rows] = ordered.T.cpu().numpy()
            spread[rows] = median[rows] - lower

        def work(part: slice) -> None:
            rows = slice(first + part.start, first + part.stop)
            # numpy selects one position at a time with vector instructions, and several positions without them
            ordered = np.partition(features.rows(rows) @ cohort.T, at[1], axis=1)
            median[rows] = ordered[:, at[1]]
            lower = np.partition(ordered[:, : at[1] + 1], at[0], axis=1)
            spread[rows] = median[rows] - lower[:, at[0]]

        if devices.uses_torch(device):
            in_blocks(on_device, n - first, 4 * features.dim + 24 * len(cohort), device)
        else:
            threads.each(work, slices(n - first, _BLOCK))
        np.maximum(spread[first:], np.float32(_LEAST_SHARE * self.spread), out=spread[first:])
        # Rows without direction (NaN) have no edges; any finite value will do.
        nowhere = first + np.flatnonzero(~np.isfinite(median[first:]))
        median[nowhere], spread[nowhere] = 0, 1
        return Strangers(self.median, self.spread, median, spread, self.cohort)

    def of_some(self, rows: NDArray[np.integer]) -> Strangers:
        """Return the same estimates for some of the rows, without the cohort."""
        none = np.empty(0, np.int64)
        return Strangers(self.median, self.spread, self.node_median[rows], self.node_spread[rows], none)

    def placed(self, rows: NDArray[np.integer], num_nodes: int) -> Strangers:
        """Return the same estimates for ``num_nodes`` rows, where the known rows are at the positions ``rows``.

        The other rows get median 0 and spread 1.
        """
        median, spread = np.zeros(num_nodes, np.float32), np.ones(num_nodes, np.float32)
        median[rows], spread[rows] = self.node_median, self.node_spread
        return Strangers(self.median, self.spread, median, spread, np.asarray(rows, np.int64)[self.cohort])

    @property
    def centre(self) -> float:
        """The similarity that maps to 0 on the common scale: the median, but at least 0."""
        return max(self.median, 0.0)

    @property
    def tied(self) -> bool:
        """Whether all strangers are equally similar. A neighbour with the same similarity then has no meaning."""
        return self.spread <= _LEAST_SPREAD

    def without_ties(self, graph: KnnGraph) -> KnnGraph:
        """Return the kNN graph; if strangers are :attr:`tied`, without neighbours that are not more similar than those.

        Only then are ids and similarities copied.
        """
        if not self.tied:
            return graph
        ids, sims = np.empty_like(graph.ids), np.empty_like(graph.sims)
        line = np.float32(self.centre) + np.float32(self.spread)

        def work(rows: slice) -> None:
            like_strangers = graph.sims[rows] <= line
            ids[rows] = np.where(like_strangers, -1, graph.ids[rows])
            sims[rows] = np.where(like_strangers, 0, graph.sims[rows])

        threads.each(work, slices(graph.num_nodes, _BLOCK))
        return KnnGraph(ids, sims, graph.info)
