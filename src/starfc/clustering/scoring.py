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
from starfc.models.edge_kernels import keep_above
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


def score_blocks(
    graph: KnnGraph, nodes: NodeProjections, above: float = -1.0, block: int = ROW_BLOCK
) -> Iterator[EdgeList]:
    """The kNN entries i -> j with p > ``above`` (all of them by default), one row block at a time, in kNN order."""
    score = _score_rows if nodes.source.device.type == "cpu" else _score_rows_torch
    for start in range(0, graph.num_nodes, block):
        counts, cols, scores = score(graph.ids[start : start + block], start, nodes, above)
        rows = np.repeat(np.arange(start, start + len(counts), dtype=graph.ids.dtype), counts)
        yield EdgeList(rows, cols, scores, graph.num_nodes)


def parse_graph(graph: KnnGraph, nodes: NodeProjections, tau1: float, block: int = ROW_BLOCK) -> EdgeList:
    """Graph parsing, STAR-FC section 3.4: the directed kNN edges with p > τ1, sorted by row, in kNN order."""
    kept = list(score_blocks(graph, nodes, tau1, block))
    return EdgeList(
        *(np.concatenate([getattr(e, f) for e in kept]) for f in ("rows", "cols", "scores")), graph.num_nodes
    )


Rows = tuple[NDArray[np.int64], NDArray[np.integer], NDArray[np.float32]]


def _score_rows(ids: NDArray[np.integer], start: int, nodes: NodeProjections, above: float) -> Rows:
    """Kept entries of some rows: how many each row has, and their columns and scores, row by row."""
    slope, weight, constant = (p.detach() for p in nodes.model.head.scorer())
    return keep_above(
        np.ascontiguousarray(ids),
        nodes.source[start : start + len(ids)].numpy(),
        nodes.target.numpy(),
        slope.numpy(),
        weight.numpy(),
        np.float32(constant),
        np.float32(above),
    )


def _score_rows_torch(ids: NDArray[np.integer], start: int, nodes: NodeProjections, above: float) -> Rows:
    """The same on any device."""
    local, column = np.nonzero(ids >= 0)
    cols = ids[local, column]
    scores = edge_probabilities(nodes, (local + start).astype(ids.dtype), cols)
    kept = scores > np.float32(above)
    return np.bincount(local[kept], minlength=len(ids)), cols[kept], scores[kept]
