"""Find where a cluster could be split: all cuts of one or two kept edges, in one depth-first search.

The search builds a spanning forest. An edge outside the forest joins a node to an ancestor. It *covers* the tree edges
on the path between the two.

* A tree edge is a bridge if no edge covers it (Tarjan, 1974).
* Two edges that are no bridges separate a component if the same edges cover both. They are two tree edges, or a tree
  edge and the only edge that covers it. To find them, each edge outside the tree gets a random word of 64 bits, and
  each tree edge gets the XOR of the words that cover it. Such two edges have the same word. Other edges have the same
  word with probability 2^-64 (cycle space sampling, Pritchard and Thurimella, ACM Transactions on Algorithms 2011;
  arXiv:cs/0702113).

Tree edges with the same word lie on one path down the tree, so two of them cut off the difference of two subtrees.
Subtrees are intervals in the order of the search, so the size of this piece needs no further computation.

A cut has a smaller piece of m of n instances, and one or two edges with the evidence E = Σ p · NI. Its rating is

    rating = 4 m (n - m) / n²  ·  (1 - 1 / m)  ·  (1 - E / 3)

The factors mean:

1. the share of the pairs of instances that the cut separates, relative to that of an even split;
2. a very small piece is an outlier rather than a second identity (0 for a single instance);
3. strong edges reduce the doubt; three perfect edges would leave none.

The rating lies in [0, 1). The *suspicion* of a cluster is the rating of its best cut, or 0 without a cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba as nb
import numpy as np
from numpy.typing import NDArray

from starfc.review.pairs import Pairs

_CHAIN = 256  # in a class of edges all pairs are rated; in a longer class, only those of so many edges, evenly spaced


@dataclass(frozen=True)
class Cuts:
    """The best cut of each of C clusters.

    Attributes
    ----------
    suspicion : (C,) float32
        Rating of the cut; 0 without a cut.
    first, second : (C, 2) int64
        Ends of the edges of the cut. The first edge has the lower p · NI. -1: there is no such edge.
    pieces : (C,) int64
        Number m of instances in the smaller piece; 0 without a cut. :meth:`piece` returns the instances.
    order : (N,) int64
        Instances in the order of the depth-first search.
    spans : (C, 6) int64
        Three intervals [start, stop) in ``order``: the subtree below the first edge, the subtree to leave out of it
        (below the second edge, or empty), and the whole component.
    """

    suspicion: NDArray[np.float32]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    pieces: NDArray[np.int64]
    order: NDArray[np.int64]
    spans: NDArray[np.int64]

    def piece(self, cluster: int) -> NDArray[np.int64]:
        """Return the instances of the smaller piece, sorted. Of two equal pieces, return that below the tree edge."""
        if self.pieces[cluster] == 0:
            return np.empty(0, np.int64)
        start, stop, inner, inner_stop, root, root_stop = self.spans[cluster]
        inside = np.concatenate([self.order[start:inner], self.order[inner_stop:stop]])
        if len(inside) > self.pieces[cluster]:
            inside = np.setdiff1d(self.order[root:root_stop], inside)
        return np.sort(inside)


def best_cuts(pairs: Pairs, labels: NDArray[np.int64], num_clusters: int, seed: int = 0) -> Cuts:
    """Rate all bridges and pairs of edges that separate a cluster, and keep the best of each cluster.

    Parameters
    ----------
    pairs : Pairs
        The edges.
    labels : (N,) int64
        Cluster of every node, 0..num_clusters - 1. Kept edges must lie within a cluster.
    num_clusters : int
        Number of clusters C.
    seed : int
        Seed of the random words.
    """
    indptr, cols, strength, numbers = pairs.kept_graph()
    words = np.random.default_rng(seed).integers(1, 2**64, len(cols) // 2, np.uint64, endpoint=False)
    order, parent, entry, root = _search(indptr, cols, numbers)
    tin, parent_entry, size, word, cover, back = _covers(order, parent, entry, root, indptr, cols, numbers, words)
    # sort tree edges by word, and by depth for equal words; bridges have no cover and are left out
    nodes = np.flatnonzero((parent >= 0) & (cover > 0))
    nodes = nodes[np.lexsort((tin[nodes], word[nodes]))]
    # sort the classes in the order of the search, so that the choice among equal cuts does not depend on the words
    starts = np.flatnonzero(np.diff(word[nodes], prepend=~word[nodes[:1]]))
    met = np.repeat(tin[nodes[starts]], np.diff(starts, append=len(nodes)))
    nodes = nodes[np.argsort(met, kind="stable")]
    best = np.full((num_clusters, 2), -np.inf)  # rating; weakness 1 - E / 3, which decides between equal ratings
    edges, spans = np.full((num_clusters, 2), -1, np.int64), np.zeros((num_clusters, 6), np.int64)
    pieces = np.zeros(num_clusters, np.int64)
    found = (best, edges, spans, pieces)
    tree = (tin, size, root, parent_entry)
    _rate_bridges(parent, cover, tree, strength, labels, *found)
    _rate_classes(nodes, word, cover, back, tree, strength, labels, *found)
    _weaker_first(edges, strength)
    ends = [np.full((num_clusters, 2), -1, np.int64) for _ in range(2)]
    for side in range(2):
        there = edges[:, side] >= 0
        at = edges[there, side]
        rows = np.searchsorted(indptr, at, side="right") - 1
        ends[side][there] = np.sort(np.stack([rows, cols[at]], axis=1), axis=1)
    return Cuts(np.maximum(best[:, 0], 0).astype(np.float32), ends[0], ends[1], pieces, order, spans)


@nb.njit(cache=True, nogil=True)
def _search(indptr, cols, numbers):
    """Search depth-first, without recursion.

    Returns
    -------
    order : (N,) int64
        Nodes in the order of the search.
    parent, entry, root : (N,) int64
        Of each node: its parent (-1: none), the entry of the edge from the parent (-1: none), and its root.
    """
    n = indptr.size - 1
    order, parent = np.empty(n, np.int64), np.full(n, -2, np.int64)
    entry, root = np.full(n, -1, np.int64), np.empty(n, np.int64)
    cursor, met = indptr[:-1].copy(), 0
    for start in range(n):
        if parent[start] != -2:
            continue
        parent[start], root[start] = -1, start
        order[met] = start
        met += 1
        i = start
        while i >= 0:
            if cursor[i] == indptr[i + 1]:
                i = parent[i]
                continue
            e = cursor[i]
            cursor[i] += 1
            j = np.int64(cols[e])
            if parent[j] == -2:
                parent[j], entry[j], root[j] = i, e, start
                order[met] = j
                met += 1
                i = j
    return order, parent, entry, root


@nb.njit(cache=True, nogil=True)
def _covers(order, parent, entry, root, indptr, cols, numbers, words):
    """Compute which edges cover the tree edge above every node.

    Returns
    -------
    tin : (N,) int64
        Position of a node in the order of the search.
    entry : (N,) int64
        As given.
    size : (N,) int64
        Number of nodes in the subtree of a node.
    word : (N,) uint64
        XOR of the words of the covering edges.
    cover : (N,) int64
        Number of covering edges.
    back : (N,) int64
        XOR of the entries of the covering edges. If there is only one, this is its entry.
    """
    n = order.size
    tin, size = np.empty(n, np.int64), np.ones(n, np.int64)
    for at in range(n):
        tin[order[at]] = at
    word, cover = np.zeros(n, np.uint64), np.zeros(n, np.int64)
    back = np.zeros(n, np.int64)
    for i in range(n):
        above = np.int64(numbers[entry[i]]) if entry[i] >= 0 else -1
        for e in range(indptr[i], indptr[i + 1]):
            j = np.int64(cols[e])
            if tin[j] < tin[i] and np.int64(numbers[e]) != above:  # an edge outside the tree, to an ancestor
                word[i] ^= words[numbers[e]]
                word[j] ^= words[numbers[e]]
                back[i] ^= e
                back[j] ^= e
                cover[i] += 1
                cover[j] -= 1
    for at in range(n - 1, -1, -1):
        i = order[at]
        if parent[i] >= 0:
            size[parent[i]] += size[i]
            word[parent[i]] ^= word[i]
            back[parent[i]] ^= back[i]
            cover[parent[i]] += cover[i]
    return tin, entry, size, word, cover, back


@nb.njit(cache=True, nogil=True)
def _consider(c, m, n, evidence, first, second, span, best, edges, spans, pieces):
    small = min(m, n - m)
    rating = 4.0 * small * (n - small) / (np.float64(n) * n) * (1 - 1 / small) * (1 - evidence / 3)
    weakness = 1 - evidence / 3
    if rating > best[c, 0] or (rating == best[c, 0] and weakness > best[c, 1]):
        best[c, 0], best[c, 1] = rating, weakness
        edges[c, 0], edges[c, 1], pieces[c] = first, second, small
        for a in range(6):
            spans[c, a] = span[a]


@nb.njit(cache=True, nogil=True)
def _rate_bridges(parent, cover, tree, strength, labels, best, edges, spans, pieces):
    tin, size, root, entry = tree
    for i in range(parent.size):
        if parent[i] >= 0 and cover[i] == 0:
            top, end = root[i], tin[i] + size[i]
            span = (tin[i], end, end, end, tin[top], tin[top] + size[top])
            e = entry[i]
            _consider(labels[i], size[i], size[top], np.float64(strength[e]), e, -1, span, best, edges, spans, pieces)


@nb.njit(cache=True, nogil=True)
def _rate_classes(nodes, word, cover, back, tree, strength, labels, best, edges, spans, pieces):
    """Rate the pairs of edges in each class: two tree edges, or a tree edge and the only edge that covers it."""
    tin, size, root, entry = tree
    start = 0
    while start < nodes.size:
        stop = start + 1
        while stop < nodes.size and word[nodes[stop]] == word[nodes[start]]:
            stop += 1
        lone = cover[nodes[start]] == 1
        step = -(-(stop - start) // _CHAIN)
        for a in range(start, stop, step):
            i = nodes[a]
            top, end = root[i], tin[i] + size[i]
            whole = (tin[top], tin[top] + size[top])
            if lone:
                e = back[i]
                evidence = np.float64(strength[entry[i]]) + strength[e]
                span = (tin[i], end, end, end, whole[0], whole[1])
                _consider(labels[i], size[i], size[top], evidence, entry[i], e, span, best, edges, spans, pieces)
            for b in range(a + step, stop, step):
                j = nodes[b]
                evidence = np.float64(strength[entry[i]]) + strength[entry[j]]
                span = (tin[i], end, tin[j], tin[j] + size[j], whole[0], whole[1])
                m = size[i] - size[j]
                _consider(labels[i], m, size[top], evidence, entry[i], entry[j], span, best, edges, spans, pieces)
        start = stop


@nb.njit(cache=True, nogil=True)
def _weaker_first(edges, strength):
    for c in range(edges.shape[0]):
        first, second = edges[c]
        if second >= 0 and strength[second] < strength[first]:
            edges[c, 0], edges[c, 1] = second, first
