"""Join communities that belong to one identity.

If an identity is much larger than the neighbour lists, the map equation can split it into several communities. Two
communities A and B are joined if all of these conditions hold:

* The mean p of the candidate edges between A and B is above 1/2.
* At least one of these edges has p > τ1. The joined community is then connected by edges that are kept.
* There are enough of these edges. If A ∪ B is one identity and edges are spread evenly over its pairs, the expected
  share of the edges' p that lies between A and B is |A| |B| / (|A ∪ B| (|A ∪ B| - 1) / 2). The observed share must be
  at least 0.4 of the expected share.

Pairs are joined in decreasing order of (mean p × share). In each round, a community is joined at most once. Rounds
repeat until no pair is joined.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from starfc.graph.edges import EdgeList

MEAN, SHARE = 0.5, 0.4  # minimum mean p, minimum ratio of the observed to the expected share
_ROUNDS = 10  # maximum number of rounds


def join_communities(edges: EdgeList, members: NDArray[np.integer], tau1: float) -> NDArray[np.integer]:
    """Join the communities that belong to one identity.

    Parameters
    ----------
    edges : EdgeList
        Candidate edges with calibrated p above :data:`starfc.clustering.choice.LOWEST`, symmetric.
    members : (N,) integers in [0, N)
        The smallest member of each node's community.
    tau1 : float
        The threshold of p above which edges are kept.

    Returns
    -------
    (N,) integers
        The smallest member of each node's community after joining.
    """
    members = np.array(members)
    for _ in range(_ROUNDS):
        into = _joined(edges, members, tau1)
        if into is None:
            break
        members = into[members]
    return members


def _joined(edges: EdgeList, members: NDArray[np.integer], tau1: float) -> NDArray[np.integer] | None:
    """Run one round; return the new name (N,) of each community, or None if no pair is joined."""
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
            into[b[pair]] = a[pair]  # a < b, so a is the smallest member of the joined community
    return into


@nb.njit(cache=True)
def _crossing(indptr, cols, scores, members):
    """Return the edges between communities, each once, and Σ p inside each community.

    Returns
    -------
    low, high : (c,) int64
        The communities of the two ends, low < high.
    crossing : (c,) float64
        p of these edges.
    inside : (N,) float64
        Σ p of the edges inside each community.
    """
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
