"""Edge scores: the probability that the two ends of a kNN edge are the same identity.

The network runs once per node, over row blocks: X = ReLU([F ‖ ÂF] W + b), u = W1a X + b1, v = W1b X. Per edge an
addition, a PReLU, a dot product and a sigmoid remain (:mod:`starfc.models.edge_kernels`). Memory is the two (N, h)
projections, one block of scores, and the edges that are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starfc.clustering.edges import EdgeList
from starfc.graph.neighbours import KnnGraph
from starfc.models.gcn import StarFCModel

ROW_BLOCK = 1 << 14  # rows per block: 2^14 x 512 float32 = 32 MiB of node embeddings, 2^14 x 80 scores = 5 MiB


@dataclass(frozen=True)
class NodeProjections:
    """u and v (N, h) of every node, and the model whose head scores pairs of them."""

    source: Tensor
    target: Tensor
    model: StarFCModel

    @property
    def num_nodes(self) -> int:
        return self.source.shape[0]


@torch.inference_mode()
def project_nodes(
    model: StarFCModel,
    features: NDArray[np.float32],
    aggregated: NDArray[np.float32],
    device: str | torch.device = "cpu",
    block: int = ROW_BLOCK,
) -> NodeProjections:
    """Run backbone and node projections over row blocks: F and ÂF (N, d) -> u, v (N, h)."""
    model = model.eval().to(device)
    n = len(features)
    source = torch.empty(n, model.nhid, device=device)
    target = torch.empty(n, model.nhid, device=device)
    for start in range(0, n, block):
        rows = slice(start, start + block)
        f, a = (torch.from_numpy(x[rows]).to(device) for x in (features, aggregated))
        source[rows], target[rows] = model.head.project(model.backbone(f, a))
    return NodeProjections(source, target, model)


@torch.inference_mode()
def edge_probabilities(
    nodes: NodeProjections, rows: NDArray[np.integer], cols: NDArray[np.integer]
) -> NDArray[np.float32]:
    """p of the edges rows_e -> cols_e: two (E,) integer arrays -> (E,) float32 in [0, 1]."""
    device = nodes.source.device
    edges = (torch.from_numpy(np.ascontiguousarray(x)).to(device) for x in (rows, cols))
    return torch.sigmoid(nodes.model.head.logits(nodes.source, nodes.target, *edges)).cpu().numpy()


def score_blocks(graph: KnnGraph, nodes: NodeProjections, block: int = ROW_BLOCK) -> Iterator[EdgeList]:
    """Score every kNN entry i -> j, one row block at a time, in kNN order."""
    for start in range(0, graph.num_nodes, block):
        ids = graph.ids[start : start + block]
        local, column = np.nonzero(ids >= 0)
        rows, cols = (local + start).astype(ids.dtype), ids[local, column]
        yield EdgeList(rows, cols, edge_probabilities(nodes, rows, cols), graph.num_nodes)


def parse_graph(graph: KnnGraph, nodes: NodeProjections, tau1: float, block: int = ROW_BLOCK) -> EdgeList:
    """Graph parsing, STAR-FC section 3.4: the directed kNN edges with p > τ1, sorted by row, in kNN order."""
    kept = [edges.select(edges.scores > tau1) for edges in score_blocks(graph, nodes, block)]
    return EdgeList(
        *(np.concatenate([getattr(e, f) for e in kept]) for f in ("rows", "cols", "scores")), graph.num_nodes
    )
