"""Find the communities of new instances, without splitting existing clusters.

The search uses the same objective as a run. The nodes of its graph are the existing clusters and the single new
instances. The weight of a cluster's node is the sum over its members: with the map equation the sum of p of their
edges, inside and outside the cluster; with Leiden the number of members. So the code length of a partition of these
nodes equals the code length of the same partition of all instances. A run's own search continues on modules in the same
way. A simpler rule would place each new instance in the cluster with the largest sum of p. But then the first instances
of a new identity have more p to a similar older cluster than to each other; they join it, and the others follow.

New instances in the community of an existing cluster join this cluster. If there are several clusters, they join the
one to which their best edges lead. New instances in a community without an existing cluster become a new cluster. Two
existing clusters in one community are listed as a possible merge (:mod:`starfc.incremental.clusters`).
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
    """Return which edges have both ends in one community, (E,) bool. All edges inside a cluster are among them.

    Parameters
    ----------
    parsed : ParsedEdges
        All edges, the new ones included.
    labels : (N,) int64
        Clusters, below ``next_label``; -1 for removed rows, which have no edges, and for new rows.
    next_label : int
        The lowest id for a new cluster.
    rows : (m,) integers
        New instances; each is a separate node of the search.
    partition : {'infomap', 'leiden'}
    resolution : float
        The resolution of 'leiden'.
    seed : int
        Seed of the search. The result does not depend on the number of threads.
    """
    groups, count = labels.copy(), next_label + len(rows) + 1
    groups[rows] = next_label + np.arange(len(rows))
    groups[groups < 0] = count - 1  # one group for all removed rows
    edges = parsed.edges
    condensed = condense(edges, groups, count)
    if partition == "infomap":
        members = infomap(condensed, seed, strength=_strength(edges, groups, count))
    else:
        members = leiden(condensed, "cpm", resolution, seed, sizes=np.bincount(groups, minlength=count))
    community = members[groups]
    return np.repeat(community, np.diff(edges.indptr)) == community[edges.cols]


def condense(edges: EdgeList, groups: NDArray[np.int64], count: int) -> EdgeList:
    """Return the graph whose nodes are groups of nodes: sums of p between groups, without edges inside groups.

    ``groups`` (N,) int64 in [0, ``count``) is the group of each node.
    """
    entries = between(edges, groups)
    rows = groups[np.searchsorted(edges.indptr, entries, side="right") - 1]
    scores = edges.scores[entries].astype(np.float64)
    sums = sp.coo_matrix((scores, (rows, groups[edges.cols[entries]])), (count, count)).tocsr()
    sums.sort_indices()
    return EdgeList(sums.indptr.astype(np.int64), sums.indices, sums.data.astype(np.float32), edges.symmetric)


def _strength(edges: EdgeList, groups: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Return the sum of p over all edges of each group's members, in both directions, (count,)."""
    leaving, _ = sums_of_rows(edges.indptr, edges.scores)
    entering = leaving if edges.symmetric else np.bincount(edges.cols, edges.scores, len(groups))
    return np.bincount(groups, leaving + entering, count)  # type: ignore[return-value]  # the stub knows no weights
