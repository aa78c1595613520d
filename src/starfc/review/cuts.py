"""Where a cluster would fall apart: its cuts of one or two kept edges, all found in one depth-first search.

Take a spanning forest by depth-first search. An edge outside it joins a node to an ancestor and *covers* the tree edges
on the path between them.

* A tree edge is a bridge where no edge covers it (Tarjan, 1974).
* Two edges, neither a bridge, separate a component where the same edges cover both: two tree edges, or a tree edge and
  the only edge that covers it. Give each edge outside the tree a random word of 64 bits, and each tree edge the XOR of
  those that cover it: such edges have the same word, others by chance with probability 2^-64 (cycle space sampling,
  Pritchard and Thurimella, ACM Transactions on Algorithms 2011; arXiv:cs/0702113).

Tree edges with the same word lie on one path down the tree, so the piece that two of them cut off is the difference of
two subtrees, which are intervals of the search's order: its size costs nothing.

With the smaller piece of m of n instances and the evidence E = Σ p · NI of the one or two edges, a cut is rated

    rating = 4 m (n - m) / n²  ·  (1 - 1 / m)  ·  (1 - E / 3)

the share of pairs of instances that hang on the cut, over an even split's; less where the piece is so small that it is
an outlier rather than a second identity (nothing for a single instance); less where the edges are strong. Three perfect
edges would be no doubt at all. It lies in [0, 1). A cluster's *suspicion* is the rating of its best cut, 0 without one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba as nb
import numpy as np
from numpy.typing import NDArray

from starfc.review.pairs import Pairs

_CHAIN = 256  # edges of one class of which all pairs are rated; of a longer chain, that many, evenly spread


@dataclass(frozen=True)
class Cuts:
    """The best cut of every cluster, (C,) each; ``suspicion`` float32.

    ``first`` and ``second`` (C, 2) int64 are the ends of its edges, the weaker by p · NI first; -1 where there is none.
    ``pieces`` (C,) int64 is m. The smaller piece of cluster c is :meth:`piece`.
    """

    suspicion: NDArray[np.float32]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    pieces: NDArray[np.int64]
    order: NDArray[np.int64]
    spans: NDArray[np.int64]

    def piece(self, cluster: int) -> NDArray[np.int64]:
        """The instances of the smaller piece, rising; of even pieces, that of the first edge's far end."""
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
    labels : (N,) int64
        Clusters, in 0..num_clusters - 1; kept pairs lie within one.
    seed : int
        Of the random words.
    """
    indptr, cols, strength, numbers = pairs.kept_graph()
    words = np.random.default_rng(seed).integers(1, 2**64, len(cols) // 2, np.uint64, endpoint=False)
    order, parent, entry, root = _search(indptr, cols, numbers)
    tin, parent_entry, size, word, cover, back = _covers(order, parent, entry, root, indptr, cols, numbers, words)
    # equal words together, and within them down the tree; bridges (word 0, no cover) are apart from these
    nodes = np.flatnonzero((parent >= 0) & (cover > 0))
    nodes = nodes[np.lexsort((tin[nodes], word[nodes]))]
    # in the order of the search, whatever the words: of equal cuts the first one counts
    starts = np.flatnonzero(np.diff(word[nodes], prepend=~word[nodes[:1]]))
    met = np.repeat(tin[nodes[starts]], np.diff(starts, append=len(nodes)))
    nodes = nodes[np.argsort(met, kind="stable")]
    best = np.full((num_clusters, 2), -np.inf)  # rating, then the weakness that decides where nothing hangs on it
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
    """Depth-first search, iterative: nodes in the order met, their parents, entries to these, and their roots."""
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
    """Of the tree edge above every node: subtree size, XOR of the words that cover it, how many, and XOR of these."""
    n = order.size
    tin, size = np.empty(n, np.int64), np.ones(n, np.int64)
    for at in range(n):
        tin[order[at]] = at
    word, cover = np.zeros(n, np.uint64), np.zeros(n, np.int64)
    back = np.zeros(n, np.int64)  # XOR of the covering entries: of a single one, the entry itself
    for i in range(n):
        above = numbers[entry[i]] if entry[i] >= 0 else -1
        for e in range(indptr[i], indptr[i + 1]):
            j = np.int64(cols[e])
            if tin[j] < tin[i] and numbers[e] != above:  # up to an ancestor, outside the tree
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
    """Pairs within each class: two tree edges, or one and the single edge outside that covers it."""
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
