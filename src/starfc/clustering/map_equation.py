"""Compiled kernels that search the modules of least code length: the two-level map equation of an undirected graph.

The strength of a node is the sum of the weights of its edges. With p_a the share of node a in the total strength, p_m
the sum of p_a over module m, and q_m the share of the weight between m and other modules (Rosvall and Bergstrom, PNAS
2008; arXiv:0906.1405), the code length is

    L = plogp(Σ q_m) - 2 Σ plogp(q_m) + Σ plogp(q_m + p_m) - Σ plogp(p_a),     plogp(x) = x log2 x

The last term is the same for all partitions and is left out. The search follows the outline of Infomap
(arXiv:2211.04287). First, each node moves to the neighbouring module that shortens the code most; the modules become
the nodes of a coarser graph, and this repeats until nothing moves. Then two kinds of rounds alternate: fine rounds move
single nodes again; coarse rounds split each module into submodules and move these.

A :data:`Graph` is symmetric, without self loops or repeated entries: ``indptr`` (n + 1,) int64, ``cols`` int32 and
``weights`` float32 are its edges; ``flow`` (n,) float64 is p of each node, with sum 1; ``leave`` (n,) float64 is the
sum of each node's weights to other nodes.
"""

from __future__ import annotations

from collections import namedtuple

import numba as nb
import numpy as np

Graph = namedtuple("Graph", ("indptr", "cols", "weights", "flow", "leave"))

ROUNDS = 20  # maximum number of fine and coarse rounds
LARGE = 1 << 17  # a piece of more nodes is processed in an order that suits the processor's caches
_WINDOW = 1 << 12  # nodes of a large piece that are tried in a random order before the next ones
_GAIN = 1e-7  # bits that a round must save; a single move must save 1e-5 of this


@nb.njit(cache=True, nogil=True)
def modules_of_pieces(pieces, order, starts, edges, local, seeds, strength, quick, members):
    """Find the modules of some pieces, each piece on its own (:func:`_modules`); write them to ``members``.

    A piece is a set of nodes with no edges to other nodes. The nodes of a large piece are first sorted so that
    neighbours are close to each other (:func:`_walk`); most of its memory is then read from the caches.

    Parameters
    ----------
    pieces : (p,) integers
        The pieces to work on.
    order, starts : (N,), (C + 1,) integers
        Piece c holds the nodes ``order[starts[c] : starts[c + 1]]``, in increasing order.
    edges : tuple
        The edges of all nodes: row pointers, columns, scores, which of them count ((E,) bool, or None: all), and
        whether :func:`of_mirrored` can read them.
    local : (N,) int32
        The rank of each node in its piece.
    seeds : (C,) int64
        Seed of the order in which the nodes of each piece are tried.
    strength : (N,) float64 or None
        As for :func:`symmetric`.
    quick : bool
        Whether large pieces get no fine and coarse rounds.
    members : (N,) integers
        Output: the smallest member of each node's module.
    """
    for c in pieces:
        nodes = order[starts[c] : starts[c + 1]]
        indptr, cols, scores, kept, mirrored = edges
        large = nodes.size > LARGE
        if large:
            nodes = _walk(nodes, indptr, cols, kept, local)
            local[nodes] = np.arange(nodes.size)
        if mirrored:
            graph = of_mirrored(nodes, indptr, cols, scores, kept, local)
        else:
            graph = symmetric(nodes, indptr, cols, scores, kept, local, strength)
        modules = _modules(graph, seeds[c], 0 if large and quick else ROUNDS)
        first = np.full(nodes.size, -1, order.dtype)
        for a in range(nodes.size):
            if first[modules[a]] < 0 or nodes[a] < first[modules[a]]:
                first[modules[a]] = nodes[a]
        for a in range(nodes.size):
            members[nodes[a]] = first[modules[a]]


@nb.njit(cache=True, nogil=True)
def _walk(nodes, indptr, cols, kept, local):
    """Return the nodes of a piece in an order in which neighbours are close to each other.

    Each node is followed by those of its neighbours that are not placed yet. The walk continues with an unplaced
    neighbour of the node that was placed last; if there is none, with the first unplaced node.
    """
    order, placed, end = np.empty_like(nodes), np.zeros(nodes.size, np.bool_), 0
    for start in range(nodes.size):
        node = nodes[start]
        while node >= 0 and not placed[local[node]]:
            placed[local[node]] = True
            order[end] = node
            end += 1
            last = node
            for e in range(indptr[node], indptr[node + 1]):
                if (kept is None or kept[e]) and not placed[local[cols[e]]]:
                    placed[local[cols[e]]] = True
                    last = cols[e]
                    order[end] = last
                    end += 1
            node = -1
            for e in range(indptr[last], indptr[last + 1]):
                if (kept is None or kept[e]) and not placed[local[cols[e]]]:
                    node = cols[e]
                    break
    return order


@nb.njit(cache=True, nogil=True)
def symmetric(nodes, indptr, cols, scores, kept, local, strength=None):
    """Return the :data:`Graph` of a piece: w_ij is the sum of the scores of i -> j and j -> i, divided by the sum of w.

    Parameters
    ----------
    nodes : (n,) integers
        The nodes of the piece.
    indptr, cols, scores, kept, local
        As for :func:`modules_of_pieces`.
    strength : (N,) float64 or None
        If nodes are groups of instances: the sum of w over all edges of each group's members. An edge inside the group
        counts at both ends. ``indptr``, ``cols`` and ``scores`` hold only the edges between groups.
    """
    n = nodes.size
    start, total = np.zeros(n + 1, np.int64), 0.0
    for a in range(n):
        for e in range(indptr[nodes[a]], indptr[nodes[a] + 1]):
            if kept is None or kept[e]:
                start[a + 1] += 1
                start[local[cols[e]] + 1] += 1
                total += 2 * scores[e]
    for a in range(n):
        start[a + 1] += start[a]
    if strength is not None:
        total = 0.0
        for a in nodes:
            total += strength[a]
    ends, shares = np.empty(start[n], np.int32), np.empty(start[n], np.float32)
    at = start[:-1].copy()
    for a in range(n):
        for e in range(indptr[nodes[a]], indptr[nodes[a] + 1]):
            if kept is None or kept[e]:
                b = np.int64(local[cols[e]])
                for i, j in ((a, b), (b, a)):
                    ends[at[i]], shares[at[i]] = j, scores[e] / total
                    at[i] += 1
    merged = _coarse(Graph(start, ends, shares, np.zeros(n), np.zeros(n)), np.arange(n), n)
    flow = merged.leave.copy()
    if strength is not None:
        for a in range(n):
            flow[a] = strength[nodes[a]] / total
    return Graph(merged.indptr, merged.cols, merged.weights, flow, merged.leave)


@nb.njit(cache=True, nogil=True)
def of_mirrored(nodes, indptr, cols, scores, kept, local):
    """Return the graph of :func:`symmetric` for a list with sorted columns and equal scores both ways.

    If ``nodes`` are sorted, the result is the same bit for bit. Each pair is in the list twice, and becomes one entry
    in each direction. This needs a third of the memory.
    """
    n = nodes.size
    start, total = np.zeros(n + 1, np.int64), 0.0
    for a in range(n):
        for e in range(indptr[nodes[a]], indptr[nodes[a] + 1]):
            if kept is None or kept[e]:
                start[a + 1] += 1
                total += 2 * scores[e]
        start[a + 1] += start[a]
    ends, weights, leave = np.empty(start[n], np.int32), np.empty(start[n], np.float32), np.zeros(n)
    for a in range(n):
        at, below = start[a], start[a]
        for e in range(indptr[nodes[a]], indptr[nodes[a] + 1]):
            if kept is None or kept[e]:
                ends[at], weights[at] = local[cols[e]], scores[e] / total
                below += ends[at] < a
                at += 1
        # `symmetric` adds each weight twice, in the order of the rows: neighbours below a, its own list, those above;
        # without sorted nodes, this is twice the sum in another order
        for first, last in ((start[a], below), (start[a], at), (below, at)):
            for e in range(first, last):
                leave[a] += weights[e]
        for e in range(start[a], at):
            weights[e] *= np.float32(2)
    return Graph(start, ends, weights, leave.copy(), leave)


@nb.njit(cache=True, nogil=True)
def _modules(graph, seed, rounds):
    """Return the module of each node, (n,) int64.

    Fine and coarse rounds alternate until two rounds in a row save less than :data:`_GAIN`; there are at most
    ``rounds`` of them.
    """
    n = graph.flow.size
    best = np.arange(n)
    length, idle = _climb(graph, best, seed), 0
    for r in range(rounds):
        parts = np.arange(n)  # a fine round moves single nodes
        if r % 2:  # a coarse round moves the submodules of each module
            _move(graph, parts, best, seed + r)
        count = _renumber(parts)
        modules = np.empty(count, np.int64)
        for a in range(n):
            modules[parts[a]] = best[a]
        _renumber(modules)
        found = _climb(_coarse(graph, parts, count) if r % 2 else graph, modules, seed + r)
        idle = 0 if found < length - _GAIN else idle + 1
        if idle == 2:
            break
        if idle == 0:
            length = found
            for a in range(n):
                parts[a] = modules[parts[a]]
            best = parts
    return best


@nb.njit(cache=True, nogil=True)
def _climb(graph, modules, seed):
    """Move nodes, then modules, then modules of modules; return the code length. ``modules`` changes in place."""
    _move(graph, modules, np.zeros(modules.size, np.int64), seed)
    count = _renumber(modules)
    coarse = _coarse(graph, modules, count)
    while True:
        above = np.arange(count)
        moved = _move(coarse, above, np.zeros(count, np.int64), seed)
        if not moved:
            return _length(coarse)
        count = _renumber(above)
        for a in range(modules.size):
            modules[a] = above[modules[a]]
        coarse = _coarse(coarse, above, count)


@nb.njit(cache=True, nogil=True)
def _plogp(x):
    return x * np.log2(x) if x > 0 else 0.0


@nb.njit(cache=True, nogil=True)
def _length(graph):
    """Return L of the partition in which each node is a module."""
    total, length = 0.0, 0.0
    for m in range(graph.flow.size):
        total += graph.leave[m]
        length += _plogp(graph.leave[m] + graph.flow[m]) - 2 * _plogp(graph.leave[m])
    return length + _plogp(total)


@nb.njit(cache=True, nogil=True)
def _added(total, leave, flow, node_leave, node_flow, between):
    """Return the changes of L and of Σ q when a node that is in no module joins a module.

    ``total`` is Σ q; ``leave`` and ``flow`` are q and p of the module; ``node_leave`` and ``node_flow`` are those of
    the node; ``between`` is the weight of the edges between the node and the module.
    """
    change = node_leave - 2 * between
    cost = _plogp(total + change) - 2 * (_plogp(leave + change) - _plogp(leave))
    return cost + _plogp(leave + change + flow + node_flow) - _plogp(leave + flow), change


@nb.njit(cache=True, nogil=True)
def _move(graph, modules, within, seed):
    """Move nodes one by one until no move shortens the code; return the number of moves.

    ``modules`` (n,) changes in place. A node can join the module of a neighbour with the same value of ``within`` (n,),
    or become a module of its own. Nodes wait in a queue, which starts in a random order. When a node moves, its
    neighbours in other modules are added to the end of the queue.
    """
    indptr, cols, weights, flow, leave = graph
    n = flow.size
    module_flow, module_leave, size = np.zeros(n), np.zeros(n), np.zeros(n, np.int64)
    for a in range(n):
        m = modules[a]
        size[m] += 1
        module_flow[m] += flow[a]
        module_leave[m] += leave[a]
        for e in range(indptr[a], indptr[a + 1]):
            if modules[cols[e]] == m:
                module_leave[m] -= weights[e]
    total = module_leave.sum()
    free = np.flatnonzero(size == 0)
    free = np.concatenate((free, np.empty(n - free.size, np.int64)))  # stack of empty modules
    num_free = np.sum(size == 0)
    queue, waiting, head, count = _shuffled(n, seed), np.ones(n, np.bool_), 0, n
    between, seen = np.zeros(n), np.empty(n, np.int64)
    moved = 0
    while count:
        a = queue[head]
        head = head + 1 if head + 1 < n else 0
        count -= 1
        waiting[a] = False
        old, num_seen = modules[a], 0
        for e in range(indptr[a], indptr[a + 1]):
            if within[cols[e]] == within[a]:
                m = modules[cols[e]]
                if between[m] == 0:
                    seen[num_seen] = m
                    num_seen += 1
                between[m] += weights[e]
        size[old] -= 1
        module_flow[old] = module_flow[old] - flow[a] if size[old] else 0.0
        change = 2 * between[old] - leave[a]
        module_leave[old] = module_leave[old] + change if size[old] else 0.0
        total += change
        best = old
        least, best_change = _added(total, module_leave[old], module_flow[old], leave[a], flow[a], between[old])
        for s in range(num_seen):
            m = seen[s]
            cost, change = _added(total, module_leave[m], module_flow[m], leave[a], flow[a], between[m])
            if cost < least - 1e-5 * _GAIN:
                best, least, best_change = m, cost, change
        if size[old]:
            cost, change = _added(total, 0.0, 0.0, leave[a], flow[a], 0.0)
            if cost < least - 1e-5 * _GAIN:
                num_free -= 1
                best, best_change = free[num_free], change
        elif best != old:
            free[num_free] = old
            num_free += 1
        size[best] += 1
        module_flow[best] += flow[a]
        module_leave[best] += best_change
        total += best_change
        for s in range(num_seen):
            between[seen[s]] = 0
        if best != old:
            moved += 1
            modules[a] = best
            for e in range(indptr[a], indptr[a + 1]):
                b = cols[e]
                if not waiting[b] and modules[b] != best:
                    waiting[b] = True
                    queue[head + count if head + count < n else head + count - n] = b
                    count += 1
    return moved


@nb.njit(cache=True, nogil=True)
def _shuffled(n, seed):
    """Return 0 .. n - 1 in random order, which depends on the seed only; a large n window by window.

    The random numbers come from a linear congruential generator, Knuth's MMIX.
    """
    order, state = np.arange(n), np.uint64(seed)
    window = n if n <= LARGE else _WINDOW
    for first in range(0, n, window):
        for i in range(min(window, n - first) - 1, 0, -1):
            state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
            j = np.int64((state >> np.uint64(33)) % np.uint64(i + 1))
            order[first + i], order[first + j] = order[first + j], order[first + i]
    return order


@nb.njit(cache=True, nogil=True)
def _renumber(modules):
    """Number modules 0 .. count - 1 in the order of their first members, in place; return the count."""
    new, count = np.full(modules.size, -1, np.int64), 0
    if modules.size and modules.max() >= modules.size:
        new = np.full(modules.max() + 1, -1, np.int64)
    for a in range(modules.size):
        if new[modules[a]] < 0:
            new[modules[a]] = count
            count += 1
        modules[a] = new[modules[a]]
    return count


@nb.njit(cache=True, nogil=True)
def _coarse(graph, modules, count):
    """Return the graph whose nodes are the modules 0 .. count - 1, without the edges inside modules."""
    indptr, cols, weights, flow, _ = graph
    start = np.zeros(count + 1, np.int64)
    for m in modules:
        start[m + 1] += 1
    for m in range(count):
        start[m + 1] += start[m]
    order, at = np.empty(modules.size, np.int64), start[:-1].copy()
    for a in range(modules.size):
        order[at[modules[a]]] = a
        at[modules[a]] += 1
    c_indptr, place, used = np.zeros(count + 1, np.int64), np.full(count, -1, np.int64), 0
    for m in range(count):
        for a in order[start[m] : start[m + 1]]:
            for e in range(indptr[a], indptr[a + 1]):
                other = modules[cols[e]]
                if other != m and place[other] != m:
                    place[other] = m
                    used += 1
        c_indptr[m + 1] = used
    c_cols, c_weights = np.empty(used, np.int32), np.zeros(used, np.float32)
    c_flow, c_leave = np.zeros(count), np.zeros(count)
    place[:], used = -1, 0
    for m in range(count):
        for a in order[start[m] : start[m + 1]]:
            c_flow[m] += flow[a]
            for e in range(indptr[a], indptr[a + 1]):
                other = modules[cols[e]]
                if other != m:
                    if place[other] < c_indptr[m]:  # this module has no entry for it yet
                        place[other] = used
                        c_cols[used] = other
                        used += 1
                    c_weights[place[other]] += weights[e]
                    c_leave[m] += weights[e]
    return Graph(c_indptr, c_cols, c_weights, c_flow, c_leave)
