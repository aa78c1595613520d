"""Communities of scored edges, where connected components are too coarse: map equation or Leiden.

Edges i -> j with p > 0 are taken as undirected with the sum of both directions' p as weight: a pair that names each
other counts twice one that is named from one side only. No community reaches beyond a connected component.

Infomap here is the two-level map equation, minimised within every component on its own
(:mod:`starfc.clustering.map_equation`). Over disconnected components the equation is additive but for its index term:
the whole graph has plogp(Σ_c Q_c), with Q_c the flow between the modules of component c, and components on their own
have Σ_c plogp(Q_c). An entry into a module then costs log2(Q_c / q_m) bits, the choice among the modules of the
component, rather than log2(Q / q_m), the choice among all: this does not grow with the number of components, so that
what a component falls into does not hang on what else was clustered, and components can run in parallel.
"""

from __future__ import annotations

import random
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from starfc.clustering.components import components
from starfc.clustering.map_equation import modules_of_pieces, symmetric
from starfc.errors import InputError
from starfc.graph.edges import EdgeList
from starfc.runtime import threads
from starfc.runtime.defaults import RESOLUTION
from starfc.runtime.extras import require
from starfc.runtime.words import word

_BATCH = 1 << 17  # edges of the pieces that a thread takes at a time

Objective = Literal["cpm", "modularity"]


def infomap(
    edges: EdgeList,
    seed: int = 0,
    pieces: NDArray[np.integer] | None = None,
    strength: NDArray[np.float64] | None = None,
) -> NDArray[np.integer]:
    """Modules of least two-level code length within every connected component.

    The same for any number of threads: the order in which a component's nodes are tried hangs on the seed and on its
    smallest member alone.

    Parameters
    ----------
    edges : EdgeList
        p > 0, either direction or both; those above τ1, say. No self loops.
    seed : int
        Of the order in which nodes are tried.
    pieces : (N,) integers in [0, N), optional
        Sets of nodes that no edge leaves, each of which is coded on its own; connected components by default.
    strength : (N,) float64, optional
        Where nodes stand for groups that stay whole: the sum of p at each group's members, either direction, so that
        edges inside count twice (:mod:`starfc.incremental.communities`).

    Returns
    -------
    (N,) integers
        The smallest member of each node's module (:func:`starfc.clustering.components.largest_first` makes labels).
        A node without an edge is its own module.

    Raises
    ------
    InputError
        A score that is not above 0.

    Notes
    -----
    Beside the edge list, about 30 bytes for each edge of the components at hand, one a thread, and 20 N bytes.
    """
    _require_positive(edges)
    pieces = components(edges) if pieces is None else pieces
    n = edges.num_nodes
    order = np.argsort(pieces, kind="stable").astype(edges.cols.dtype)
    sizes = np.bincount(pieces, minlength=1)
    sizes = sizes[sizes > 0]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    local = np.empty(n, np.int32)
    local[order] = np.arange(n) - np.repeat(starts[:-1], sizes)
    members = np.empty_like(order)
    members[order] = np.repeat(order[starts[:-1]], sizes)  # order is stable: the first of a piece is its smallest
    degrees = np.add.reduceat(np.diff(edges.indptr)[order], starts[:-1]) if n else sizes
    larger = np.flatnonzero(sizes > (2 if strength is None else 1))  # two single nodes with an edge are one module
    larger = larger[np.argsort(-degrees[larger], kind="stable")]  # the longest work first
    batches = np.split(larger, np.flatnonzero(np.diff(np.cumsum(degrees[larger]) // _BATCH)) + 1)
    given = (order, starts, edges.indptr, edges.cols, edges.scores, local, seed, strength, members)
    threads.each(lambda batch: modules_of_pieces(batch, *given), batches)
    return members


def communities(
    edges: EdgeList, partition: str, resolution: float, seed: int, pieces: NDArray[np.integer] | None = None
) -> NDArray[np.integer]:
    """Communities by 'infomap' or 'leiden', as :func:`infomap` and :func:`leiden` give them."""
    if partition == "infomap":
        return infomap(edges, seed, pieces)
    return leiden(edges, "cpm", resolution, seed)


def leiden(
    edges: EdgeList,
    objective: Objective = "cpm",
    resolution: float = RESOLUTION,
    seed: int = 0,
    sizes: NDArray[np.integer] | None = None,
) -> NDArray[np.integer]:
    """Leiden communities (Traag, Waltman and van Eck 2019, arXiv:1810.08473), by the package `igraph`.

    Parameters
    ----------
    edges : EdgeList
        As for :func:`infomap`.
    objective : {'cpm', 'modularity'}
        'cpm': Σ_ij (w_ij - γ) over pairs in one community, w half the sum of both directions' p. It is the same
        whatever else was clustered. 'modularity': Σ_ij (w_ij - γ s_i s_j / 2m), whose γ has to grow with the graph.
    resolution : float > 0
        γ; of 'cpm' the mean p of the pairs of a community at which it is worth as much as single nodes.
    seed : int
    sizes : (N,) integers, optional
        Of 'cpm', where nodes stand for groups that stay whole: the members of each.

    Returns
    -------
    (N,) integers
        The smallest member of each node's community.

    Raises
    ------
    InputError
        A score or a resolution that is not above 0, an unknown objective, or no `igraph`.
    """
    _require_positive(edges)
    if objective not in ("cpm", "modularity"):
        raise InputError(f"objective: 'cpm' or 'modularity' needed; found {objective!r}")
    if not resolution > 0:
        raise InputError(f"resolution: above 0 needed; found {resolution!r}")
    require("igraph", f"{word('partition.type')}: 'leiden'", "or use 'infomap'")
    import igraph

    n = edges.num_nodes
    graph = symmetric(np.arange(n), edges.indptr, edges.cols, edges.scores, np.arange(n))
    rows = np.repeat(np.arange(n), np.diff(graph.indptr))
    once = rows < graph.cols
    weights = graph.weights[once] * edges.scores.sum(dtype=np.float64)  # shares of twice that sum
    pairs = igraph.Graph(n, np.column_stack([rows[once], graph.cols[once]]))
    given = None if sizes is None else sizes.tolist()
    igraph.set_random_number_generator(random.Random(seed))
    try:
        found = pairs.community_leiden(objective, weights=weights, resolution=resolution, node_weights=given)
    finally:
        igraph.set_random_number_generator(random)
    _, first, label = np.unique(found.membership, return_index=True, return_inverse=True)
    return first[label].astype(edges.cols.dtype)


def edges_within(edges: EdgeList, members: NDArray[np.integer]) -> EdgeList:
    """The edges whose two ends are in the same community; ``members`` (N,) as :func:`infomap` gives them."""
    return edges.select(np.repeat(members, np.diff(edges.indptr)) == members[edges.cols])


def _require_positive(edges: EdgeList) -> None:
    if len(edges) and not edges.scores.min() > 0:
        raise InputError(f"scores: above 0 needed; found {edges.scores.min()}; select edges with p > tau1 >= 0 first")
