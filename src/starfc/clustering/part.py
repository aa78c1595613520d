"""A part of a very large set, in which a decision about the whole set is made in a time that does not grow with it.

The part consists of whole clusters. Its *core* are the clusters of random rows. Around it are the clusters beside the
core: those to which the core's edges lead, in decreasing order of the sum of their p, as many as fit. So nearly every
cluster that could be joined with a cluster of the core is in the part, and what is computed inside the part holds for
the core. The other clusters are only there for that; measures count the rows of the core.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starfc.graph.edges import Edges

MANY = 200_000  # a set of more rows is very large
ROWS, CORE = 120_000, 50_000  # maximum number of rows of the part, and of its core


@dataclass(frozen=True)
class Part:
    """Some rows of a set.

    Attributes
    ----------
    rows : (m,) int64
        The rows, increasing.
    core : (m,) bool
        Which of them are in the core.
    """

    rows: NDArray[np.int64]
    core: NDArray[np.bool_]


def draw_part(edges: Edges, members: NDArray[np.integer], seed: int) -> Part:
    """Draw a part of a set.

    Parameters
    ----------
    edges : Edges
        Scored edges of the N rows, symmetric.
    members : (N,) integers in [0, N)
        The clusters. Clusters of more than :data:`CORE` rows are left out, so the part can be empty.
    seed : int
        Seed of the random rows.
    """
    n, sizes = len(members), np.bincount(members)
    drawn = members[np.random.default_rng(seed).choice(n, min(n, CORE), replace=False)]
    names, first = np.unique(drawn, return_index=True)
    chosen = np.zeros(n, np.int8)  # of each cluster name: 2 in the core, 1 beside it
    chosen[_that_fit(names[np.argsort(first)], sizes, CORE)] = 2
    core = np.flatnonzero(chosen[members] == 2)
    ends, scores = edges.ends_of(core)
    mass = np.bincount(members[ends], scores, n) * (chosen == 0)
    beside = np.argsort(-mass, kind="stable")[: np.count_nonzero(mass)]
    chosen[_that_fit(beside, sizes, ROWS - len(core))] = 1
    rows = np.flatnonzero(chosen[members])
    return Part(rows, chosen[members[rows]] == 2)


def _that_fit(names: NDArray[np.integer], sizes: NDArray[np.integer], room: int) -> NDArray[np.integer]:
    """Return the first clusters, of those that are not larger than ``room``, whose rows together fit into it."""
    names = names[sizes[names] <= room]
    return names[np.cumsum(sizes[names]) <= room]
