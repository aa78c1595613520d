"""Communities that are one identity after all.

The map equation cuts a very large identity where its lists are shorter than it is: modes of one person become
communities. Two communities A and B are joined where all of this holds:

* the mean p of the candidate edges between them is above 1/2;
* one of them is above τ1, so that edges which stay hold the joined community together;
* there are enough of them. In one identity, whose edges know nothing of the cut, the share of p that crosses it is
  |A| |B| of |A ∪ B| (|A ∪ B| - 1) / 2. The share that does cross is at least 0.4 of that.

Pairs are taken in the order of how clearly this holds, every community once a round, until nothing is joined.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from starfc.graph.edges import EdgeList

MEAN, SHARE = 0.5, 0.4
_ROUNDS = 10


def join_communities(edges: EdgeList, members: NDArray[np.integer], tau1: float) -> NDArray[np.integer]:
    """Communities, of which some are joined.

    Parameters
    ----------
    edges : EdgeList
        Symmetric: candidate edges with calibrated p (:data:`starfc.clustering.choice.LOWEST` and above).
    members : (N,) integers in [0, N)
        The smallest member of each node's community.
    tau1 : float
        Edges above it stay.

    Returns
    -------
    (N,) integers
        The same, of the joined communities.
    """
    members = np.array(members)
    for _ in range(_ROUNDS):
        into = _joined(edges, members, tau1)
        if into is None:
            break
        members = into[members]
    return members


def _joined(edges: EdgeList, members: NDArray[np.integer], tau1: float) -> NDArray[np.integer] | None:
    """For every id (N,) the community that it becomes part of; None where no two are joined."""
    n = edges.num_nodes
    low, high, scores, inside = _crossing(edges.indptr, edges.cols, edges.scores, members)
    if not low.size:
        return None
    pairs, at = np.unique(low * n + high, return_inverse=True)
    total, count = np.bincount(at, scores), np.bincount(at)
    a, b = pairs // n, pairs % n
    sizes = np.bincount(members, minlength=n).astype(np.float64)
    both = sizes[a] + sizes[b]
    expected = sizes[a] * sizes[b] / (both * (both - 1) / 2)
    share = total / (inside[a] + inside[b] + total) / expected
    held = np.bincount(at, scores > tau1) > 0
    clear = np.flatnonzero(held & (total > MEAN * count) & (share >= SHARE))
    if not clear.size:
        return None
    clear = clear[np.argsort(-(total / count * share)[clear], kind="stable")]
    into, taken = np.arange(n, dtype=members.dtype), np.zeros(n, np.bool_)
    for pair in clear:
        if not taken[a[pair]] and not taken[b[pair]]:
            taken[a[pair]] = taken[b[pair]] = True
            into[b[pair]] = a[pair]  # the lower id, which is the smallest member of both
    return into


@nb.njit(cache=True)
def _crossing(indptr, cols, scores, members):
    """Edges between communities, each once: both ends' communities, lower first, and p; and Σ p inside each (N,)."""
    inside, count = np.zeros(members.size), 0
    for i in range(members.size):
        for e in range(indptr[i], indptr[i + 1]):
            j = np.int64(cols[e])
            if i < j:
                if members[i] == members[j]:
                    inside[members[i]] += scores[e]
                else:
                    count += 1
    low, high, crossing, at = np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count, np.float64), 0
    for i in range(members.size):
        for e in range(indptr[i], indptr[i + 1]):
            j = np.int64(cols[e])
            if i < j and members[i] != members[j]:
                low[at], high[at] = min(members[i], members[j]), max(members[i], members[j])
                crossing[at] = scores[e]
                at += 1
    return low, high, crossing, inside
