"""Identities larger than the lists: a sample of the rows sees farther.

The k neighbours of a row in a large identity are the nearest of very many: they lie in one mode of it, and no list
holds an edge to the next mode. Among a third of all rows, drawn at random, the same k neighbours reach three times as
far. So where two clusters or more have more rows than a list holds, a third of the rows is clustered on its own, by the
same steps (this one included: a third of these again, as long as clusters are larger than the lists), and clusters of
the whole set become one where

* each has more rows than a list holds,
* at least 5 of its rows were drawn, and at least 0.9 of these are in one cluster of the sample, the same one.

What holds them together are the edges of the sample that lead from one to the other: they become edges of the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from starfc.clustering.components import components
from starfc.clustering.edges import EdgeList
from starfc.data.dataset import Features
from starfc.graph.neighbours import KnnGraph
from starfc.runtime.stages import Stages

TIMES = 3  # one row of so many is drawn
LEAST_DRAWN, AGREEING = 5, 0.9
LEAST_LISTS = 4  # rows of a sample, in lists: among fewer, lists hold most of the rows

Search = Callable[[Features], KnnGraph]


@dataclass(frozen=True)
class Reached:
    """Clusters (N,), each named by its smallest member, and the edges, with those that join clusters.

    ``counts``: how many clusters were joined, and into how many; None where no sample was looked at.
    """

    members: NDArray[np.integer]
    edges: EdgeList
    counts: tuple[int, int] | None = None


def reach(
    members: NDArray[np.integer],
    edges: EdgeList,
    columns: int,
    features: Features,
    clustered: Callable[[Features, Stages], tuple[NDArray[np.int64], EdgeList]],
    seed: int,
    stages: Stages,
    scratch: Path | None = None,
) -> Reached:
    """Join clusters that are larger than the lists, where a sample of the rows holds them together.

    Parameters
    ----------
    members : (N,) integers in [0, N)
        The smallest member of each row's cluster.
    edges : EdgeList
        The edges above τ1, symmetric.
    columns : int
        Neighbours that a list holds.
    clustered : function
        Clusters rows: labels, and the edges within clusters.
    seed : int
        Of the sample.
    """
    count = len(members) // TIMES
    if count < LEAST_LISTS * columns or np.count_nonzero(np.bincount(members) > columns) < 2:
        return Reached(members, edges)
    drawn = np.sort(np.random.default_rng(seed).permutation(len(members))[:count])
    labels, theirs = clustered(features.subset(drawn, scratch), stages.of("reach"))
    with stages.stage("reach", needs=64 * len(edges)):
        return join_large(members, edges, columns, drawn, labels, theirs)


def join_large(
    members: NDArray[np.integer],
    edges: EdgeList,
    columns: int,
    drawn: NDArray[np.int64],
    labels: NDArray[np.int64],
    theirs: EdgeList,
) -> Reached:
    """Clusters that the sample holds together, joined.

    Parameters
    ----------
    members, edges, columns
        As for :func:`reach`.
    drawn : (m,) integers
        Rows of the sample, rising; ``labels`` (m,) are their clusters there, and ``theirs`` the edges within these.
    """
    n = len(members)
    of_pair, count = np.unique(members[drawn].astype(np.int64) * n + labels, return_counts=True)
    cluster, where = of_pair // n, of_pair % n
    in_sample = np.bincount(members[drawn], minlength=n)[cluster]
    sizes = np.bincount(members, minlength=n)[cluster]
    agree = (sizes > columns) & (count >= LEAST_DRAWN) & (count >= AGREEING * in_sample)
    goes_to = np.full(n, -1, np.int64)
    goes_to[cluster[agree]] = where[agree]

    rows, cols = drawn[theirs.rows], drawn[theirs.cols]
    ours, others = members[rows], members[cols]
    across = (ours != others) & (goes_to[ours] >= 0) & (goes_to[ours] == goes_to[others])
    if not across.any():
        return Reached(members, edges, (0, 0))
    whole = edges.with_edges(rows[across], cols[across], theirs.scores[across])[0]
    links = EdgeList.from_rows(*_between(ours[across], others[across]), n)
    root = components(links)  # among clusters; what the sample holds together has edges there
    joined = root[members]
    first = np.full(n, n, np.int64)
    np.minimum.at(first, joined, members)
    involved = np.unique(np.concatenate([ours[across], others[across]]))
    return Reached(first[joined].astype(members.dtype), whole, (len(involved), len(np.unique(root[involved]))))


def _between(
    a: NDArray[np.integer], b: NDArray[np.integer]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Each pair of clusters once, sorted by the first, as rows, columns and scores of an edge list."""
    pairs = np.unique(np.stack([a, b], axis=1), axis=0)
    return pairs[:, 0], pairs[:, 1], np.ones(len(pairs), np.float32)
