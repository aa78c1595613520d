"""Find communities of scored edges by the map equation (Infomap) or by Leiden.

Communities are finer than connected components: each community lies inside one component. Edges i -> j with p > 0
count as undirected. The weight of a pair is the sum of p over both directions, so a pair in both neighbour lists
weighs twice as much as a pair in one list.

Infomap here is the two-level map equation, minimised within each component separately
(:mod:`starfc.clustering.map_equation`). Over disconnected components, all terms of the equation add up except the
index term. With Q_c the flow between the modules of component c, the index term of the whole graph is plogp(Σ_c Q_c),
and the sum over separate components is Σ_c plogp(Q_c). An entry into module m then costs log2(Q_c / q_m) bits, a choice
among the modules of its component, instead of log2(Q / q_m), a choice among all modules. This cost does not grow with
the number of components. Therefore the modules of a component do not depend on the rest of the data, and components can
run in parallel.
"""

from __future__ import annotations

import random
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from starfc.clustering.components import components
from starfc.clustering.map_equation import modules_of_pieces, symmetric
from starfc.errors import InputError
from starfc.graph.edges import EdgeList, Edges
from starfc.runtime import threads
from starfc.runtime.defaults import RESOLUTION
from starfc.runtime.extras import require
from starfc.runtime.words import word

_BATCH = 1 << 17  # a thread takes pieces with about this many edges at a time

Objective = Literal["cpm", "modularity"]


def infomap(
    edges: EdgeList,
    seed: int = 0,
    pieces: NDArray[np.integer] | None = None,
    strength: NDArray[np.float64] | None = None,
    kept: NDArray[np.bool_] | None = None,
    quick: bool = False,
    names: NDArray[np.integer] | None = None,
) -> NDArray[np.integer]:
    """Return the modules of least two-level code length within each connected component.

    The result is the same for any number of threads: the order in which the nodes of a component are tried depends
    only on the seed and on the component's smallest member.

    Parameters
    ----------
    edges : EdgeList
        Edges with p > 0, usually those with p > τ1, in one or both directions. No self loops.
    seed : int
        Seed of the order in which nodes are tried.
    pieces : (N,) integers in [0, N), optional
        Sets of nodes with no edges between different sets, each named by one of its members. Each set is processed
        separately. Default: the connected components.
    strength : (N,) float64, optional
        If nodes are groups that must not be split: the sum of p over both directions of all edges of each group's
        members. Edges inside the group count twice (:mod:`starfc.incremental.communities`).
    kept : (E,) bool, optional
        Which edges count; equal for both directions of an edge in a symmetric list. Default: all.
    quick : bool
        Search pieces of more than :data:`starfc.clustering.map_equation.LARGE` nodes once, without the rounds that
        improve the result: four times as fast, and the code is about 10^-5 longer.
    names : (N,) integers, optional
        If these are some nodes of a larger graph, in the same order: their numbers there. A whole component then gets
        the modules that it has in the larger graph.

    Returns
    -------
    (N,) integers
        The smallest member of each node's module. A node without an edge is its own module.
        :func:`starfc.clustering.components.largest_first` turns this into labels.

    Raises
    ------
    InputError
        If a score is not above 0.

    Notes
    -----
    Memory in addition to the edge list: about 16 bytes per entry of the components being processed (one per thread)
    and 80 bytes per node of these if the list is symmetric, 30 bytes per entry if it is not; and 20 N bytes.
    """
    _require_positive(edges)
    pieces = components(edges, kept) if pieces is None else pieces
    n = edges.num_nodes
    order = np.argsort(pieces, kind="stable").astype(edges.cols.dtype)
    sizes = np.bincount(pieces, minlength=1)
    sizes = sizes[sizes > 0]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    local = np.empty(n, np.int32)
    local[order] = np.arange(n) - np.repeat(starts[:-1], sizes)
    members = np.empty_like(order)
    members[order] = np.repeat(order[starts[:-1]], sizes)  # the sort is stable: a piece's first node is its smallest
    degrees = np.add.reduceat(np.diff(edges.indptr)[order], starts[:-1]) if n else sizes
    larger = np.flatnonzero(sizes > (2 if strength is None else 1))  # two single nodes with an edge are one module
    larger = larger[np.argsort(-degrees[larger], kind="stable")]  # largest pieces first, to balance the threads
    batches = np.split(larger, np.flatnonzero(np.diff(np.cumsum(degrees[larger]) // _BATCH)) + 1)
    # sums of groups are rounded, so they can differ between the two directions
    mirrored = edges.symmetric and strength is None
    entries = (edges.indptr, edges.cols, edges.scores, kept, mirrored)
    smallest = order[starts[:-1]].astype(np.int64)
    seeds = seed + (smallest if names is None else names[smallest].astype(np.int64))
    given = (order, starts, entries, local, seeds, strength, quick, members)
    threads.each(lambda batch: modules_of_pieces(batch, *given), batches)
    return members


def search_bytes(edges: Edges) -> int:
    """Return the memory that :func:`infomap` of a part of the edges needs, in bytes, if one component has nearly all.

    ``edges`` must be symmetric. Smaller components need less: one per thread is processed at a time.
    """
    return 17 * edges.held + 100 * edges.num_nodes


def communities(
    edges: EdgeList, partition: str, resolution: float, seed: int, pieces: NDArray[np.integer] | None = None
) -> NDArray[np.integer]:
    """Return the communities (N,) of ``partition`` 'infomap' (:func:`infomap`) or 'leiden' (:func:`leiden`)."""
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
    """Return Leiden communities (Traag, Waltman and van Eck 2019, arXiv:1810.08473), found by the package `igraph`.

    Parameters
    ----------
    edges : EdgeList
        As for :func:`infomap`.
    objective : {'cpm', 'modularity'}
        'cpm' maximises Σ_ij (w_ij - γ) over pairs in one community, where w_ij is half the sum of p over both
        directions. The result for one component does not depend on the rest of the data. 'modularity' maximises
        Σ_ij (w_ij - γ s_i s_j / 2m); its γ must grow with the graph.
    resolution : float > 0
        γ. With 'cpm', a community is better than its single nodes if the mean w of its pairs is above γ.
    seed : int
        Seed of the search.
    sizes : (N,) integers, optional
        If nodes are groups that must not be split, with 'cpm': the number of members of each group.

    Returns
    -------
    (N,) integers
        The smallest member of each node's community.

    Raises
    ------
    InputError
        If a score or the resolution is not above 0, the objective is unknown, or `igraph` is not installed.
    """
    _require_positive(edges)
    if objective not in ("cpm", "modularity"):
        raise InputError(f"objective: 'cpm' or 'modularity' needed; found {objective!r}")
    if not resolution > 0:
        raise InputError(f"resolution: above 0 needed; found {resolution!r}")
    require("igraph", f"{word('partition.type')}: 'leiden'", "or use 'infomap'")
    import igraph

    n = edges.num_nodes
    graph = symmetric(np.arange(n), edges.indptr, edges.cols, edges.scores, None, np.arange(n))
    rows = np.repeat(np.arange(n), np.diff(graph.indptr))
    once = rows < graph.cols
    weights = graph.weights[once] * edges.scores.sum(dtype=np.float64)  # graph.weights are shares of twice this sum
    pairs = igraph.Graph(n, np.column_stack([rows[once], graph.cols[once]]))
    given = None if sizes is None else sizes.tolist()
    igraph.set_random_number_generator(random.Random(seed))
    try:
        found = pairs.community_leiden(objective, weights=weights, resolution=resolution, node_weights=given)
    finally:
        igraph.set_random_number_generator(random)
    _, first, label = np.unique(found.membership, return_index=True, return_inverse=True)
    return first[label].astype(edges.cols.dtype)


def _require_positive(edges: EdgeList) -> None:
    if len(edges) and not edges.scores.min() > 0:
        raise InputError(f"scores: above 0 needed; found {edges.scores.min()}; select edges with p > tau1 >= 0 first")
