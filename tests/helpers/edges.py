"""Edge lists, and slow twins of functions of edge lists."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from starfc.graph.edges import EdgeList


def edge_list(pairs, n, scores=None) -> EdgeList:
    pairs = np.array(sorted(pairs), np.int32).reshape(-1, 2)
    scores = np.ones(len(pairs), np.float32) if scores is None else np.asarray(scores, np.float32)
    return EdgeList.from_rows(pairs[:, 0], pairs[:, 1].copy(), scores, n)


@st.composite
def edge_lists(draw):
    n = draw(st.integers(1, 25))
    pairs = draw(st.sets(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda p: p[0] != p[1])))
    return edge_list(pairs, n)


def edge_set(edges) -> set[tuple[int, int]]:
    return set(zip(edges.rows.tolist(), edges.cols.tolist(), strict=True))


def edges_of(num_nodes, edges):
    """From (i, j, p), in any order."""
    rows, cols, scores = (np.array(part) for part in zip(*sorted(edges), strict=True)) if edges else ([], [], [])
    return EdgeList.from_rows(np.array(rows, int), np.array(cols, np.int32), np.array(scores, np.float32), num_nodes)


def random_edges(num_nodes, share, seed):
    rng = np.random.default_rng(seed)
    i, j = np.nonzero(rng.random((num_nodes, num_nodes)) < share)
    return [(a, b, rng.uniform(0.1, 1)) for a, b in zip(i, j, strict=True) if a != b]


def planted(groups, size, within, between, seed):
    """Groups of nodes, shuffled, with edges of p ~ 0.9 inside and p ~ 0.6 between."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(groups), size))
    same = labels[:, None] == labels
    rows, cols = np.nonzero(
        (rng.random(same.shape) < np.where(same, within, between)) & ~np.eye(len(labels), dtype=bool)
    )
    scores = np.where(same[rows, cols], 0.9, 0.6) + rng.uniform(-0.05, 0.05, len(rows))
    return EdgeList.from_rows(rows, cols.astype(np.int32), scores.astype(np.float32), len(labels)), labels


def partitions(n):
    """All partitions of n nodes as restricted growth strings."""
    if n == 0:
        yield []
        return
    for head in partitions(n - 1):
        for label in range(max(head, default=-1) + 2):
            yield [*head, label]


def slow_code_length(edges, labels):
    """The two-level map equation, written as the entropies of its codebooks."""
    n, labels = edges.num_nodes, np.asarray(labels)
    weights = np.zeros((n, n))
    weights[edges.rows, edges.cols] = edges.scores
    weights = (weights + weights.T) / (2 * weights.sum())
    flow, length, enter = weights.sum(axis=1), 0.0, []
    for m in np.unique(labels):
        ours = labels == m
        leave = weights[ours][:, ~ours].sum()
        enter.append(leave)
        codebook = np.append(flow[ours], leave)
        length += entropy(codebook)
    return length + entropy(np.array(enter))


def entropy(rates):
    """Σ rates times the entropy of their shares, bits."""
    rates = rates[rates > 0]
    return float(-(rates * np.log2(rates / rates.sum())).sum())
