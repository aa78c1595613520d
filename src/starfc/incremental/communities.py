"""Which communities new instances belong to, where clusters that exist stay whole.

The communities are searched for as in a run, by the same objective, on a graph whose nodes are the clusters that exist
and the new instances, one by one. A cluster's node weighs what its members do: with the map equation the sum of p at
them, inside and out; with Leiden their number. So the code length of a partition of these nodes is that of the same
partition of all instances, and the search is the upper half of the one that a run makes, which too goes on with modules
as nodes. To let each new instance go where its sum of p is largest is simpler, but the first of a new identity to be
placed then have more p to an older cluster that looks like them than to any one of their own, and the others follow.

What the search puts into one community with a cluster joins that cluster (of several the one that its best edges lead
to), and what it puts together without one makes a new cluster. Two clusters that it puts together are asked to be
merged (:mod:`starfc.incremental.clusters`).
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from starfc.clustering.parsing import ParsedEdges
from starfc.clustering.partition import infomap, leiden
from starfc.graph.edges import EdgeList, sums_of_rows
from starfc.incremental.clusters import between


def within_communities(
    parsed: ParsedEdges,
    labels: NDArray[np.int64],
    next_label: int,
    rows: NDArray[np.integer],
    partition: str,
    resolution: float,
    seed: int,
) -> NDArray[np.bool_]:
    """The edges whose two ends are in one community: (E,) bool, in particular all those inside a cluster.

    Parameters
    ----------
    parsed : ParsedEdges
        Those that are new among them.
    labels : (N,) int64
        Clusters below ``next_label``; -1 for removed rows, which have no edge, and for new ones.
    rows : (m,) integers
        New instances, each of which is placed on its own.
    partition : {'infomap', 'leiden'}
    resolution : float
        Of 'leiden'.
    seed : int
        Of the search. It alone decides, whatever the number of threads.
    """
    groups, count = labels.copy(), next_label + len(rows) + 1
    groups[rows] = next_label + np.arange(len(rows))
    groups[groups < 0] = count - 1  # of removed rows
    edges = parsed.edges
    condensed = condense(edges, groups, count)
    if partition == "infomap":
        members = infomap(condensed, seed, strength=_strength(edges, groups, count))
    else:
        members = leiden(condensed, "cpm", resolution, seed, sizes=np.bincount(groups, minlength=count))
    community = members[groups]
    return np.repeat(community, np.diff(edges.indptr)) == community[edges.cols]


def condense(edges: EdgeList, groups: NDArray[np.int64], count: int) -> EdgeList:
    """The graph whose nodes are groups (N,) of nodes, 0 .. ``count`` - 1: sums of p between them, none inside."""
    entries = between(edges, groups)
    rows = groups[np.searchsorted(edges.indptr, entries, side="right") - 1]
    scores = edges.scores[entries].astype(np.float64)
    sums = sp.coo_matrix((scores, (rows, groups[edges.cols[entries]])), (count, count)).tocsr()
    sums.sort_indices()
    return EdgeList(sums.indptr.astype(np.int64), sums.indices, sums.data.astype(np.float32), edges.symmetric)


def _strength(edges: EdgeList, groups: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Sum of p at the members of every group, either direction: (count,)."""
    leaving, _ = sums_of_rows(edges.indptr, edges.scores)
    entering = leaving if edges.symmetric else np.bincount(edges.cols, edges.scores, len(groups))
    return np.bincount(groups, leaving + entering, count)  # type: ignore[return-value]  # the stub knows no weights
