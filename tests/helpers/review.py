"""Hand-made scored graphs, and their clusters."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from starfc.clustering.components import components, largest_first
from starfc.clustering.parsing import ParsedEdges
from starfc.graph.edges import EdgeList, undirected


def parsed(n: int, edges: list[tuple]) -> ParsedEdges:
    """Undirected edges (a, b, p, intimacy), of which those with intimacy above 0.5 stay."""
    edges = sorted(edges)
    rows, cols, scores, intimacy = (np.array(column) for column in zip(*edges, strict=True))
    lists = [
        undirected(EdgeList.from_rows(rows, cols.astype(np.int32), values.astype(np.float32), n))
        for values in (scores, intimacy)
    ]
    return ParsedEdges(lists[0], lists[1].scores, lists[1].scores > 0.5)


def labels_of(edges: ParsedEdges) -> np.ndarray:
    return largest_first(components(edges.edges.select(edges.kept)))


def clique(nodes, p=0.9, intimacy=0.8) -> list[tuple]:
    return [(a, b, p, intimacy) for a, b in combinations(nodes, 2)]
