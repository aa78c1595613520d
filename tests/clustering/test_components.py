"""Compare connected components with a union-find, and check the order of labels."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings

from helpers.edges import edge_lists
from starfc.clustering.components import components, largest_first


@settings(deadline=None, max_examples=60)
@given(edge_lists())
def test_components_equal_a_union_find(edges):
    parent = list(range(edges.num_nodes))

    def root(i):
        while parent[i] != i:
            i = parent[i]
        return i

    for i, j in zip(edges.rows, edges.cols, strict=True):
        parent[root(i)] = root(j)
    expected = np.array([root(i) for i in range(edges.num_nodes)])
    roots = components(edges)
    labels = largest_first(roots)
    assert labels.dtype == np.int64
    assert all(roots[i] == np.flatnonzero(roots == roots[i])[0] for i in range(edges.num_nodes))
    np.testing.assert_array_equal(labels[:, None] == labels, expected[:, None] == expected)
    sizes = np.bincount(labels)
    assert (np.diff(sizes) <= 0).all()
    assert set(labels) == set(range(len(sizes)))


def test_equal_sizes_are_ordered_by_their_first_member():
    np.testing.assert_array_equal(largest_first(np.array([4, 3, 4, 3, 0])), [0, 1, 0, 1, 2])
