"""Edge scores: the probability that the two ends of a kNN edge are the same identity.

The network runs once per node, over row blocks: X = ReLU([F ‖ ÂF] W + b), u = W1a X + b1, v = W1b X. Per edge remain an
addition, a PReLU, a dot product and a sigmoid (:mod:`starfc.clustering.scoring_kernels`). u and v are kept in half
precision, with a bound on what that changes of an edge's logit; an edge whose p could fall on either side of τ1 is scored
again in float32, so half precision decides nothing. Memory is v, one block of rows a thread, and the edges that are
kept; u is read once, in the order in which it was made, and lies in a scratch file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starfc.clustering.edges import EdgeList, row_pointers
from starfc.clustering.scoring_kernels import Entries, Scorer, place_rows, score_rows, score_rows_torch
from starfc.data.dataset import Features, as_features
from starfc.graph.affinity import Affinity
from starfc.graph.neighbours import KnnGraph
from starfc.graph.products import slices
from starfc.models.gcn import StarFCModel
from starfc.runtime import threads
from starfc.runtime.scratch import ScratchRows

ROW_BLOCK = 1 << 11  # rows per block: 2^11 x 512 float32 = 4 MiB of node embeddings
_DOUBTFUL = 1 << 12  # edges scored again at a time: 2^12 x 512 float32 = 8 MiB for either end


@dataclass(frozen=True)
class NodeProjections:
    """u and v of every node of a graph, in half precision, and what is needed to make any of them again in float32.

    ``order`` (N,) is the order in which rows are taken; row ``order[t]`` of u is row t of ``source``. ``target`` is v,
    (N, h). ``source_terms`` and ``target_terms`` (N, 2) are :meth:`Scorer.terms` of u and v.
    """

    model: StarFCModel
    features: Features
    affinity: Affinity
    order: NDArray[np.integer]
    scorer: Scorer
    source: ScratchRows
    target: Tensor
    source_terms: NDArray[np.float32]
    target_terms: NDArray[np.float32]

    @property
    def graph(self) -> KnnGraph:
        return self.affinity.graph

    @property
    def device(self) -> torch.device:
        return self.target.device

    @torch.inference_mode()
    def embed(self, rows: NDArray[np.integer]) -> Tensor:
        """X of some nodes in float32: (m, h)."""
        f, a = self.features.rows(rows), self.affinity.aggregate(self.features, rows)
        return self.model.backbone(*(torch.from_numpy(part).to(self.device) for part in (f, a)))


def project_nodes(
    model: StarFCModel,
    features: Features | NDArray[np.float32],
    graph: KnnGraph,
    th_sim: float = 0.0,
    device: str | torch.device = "cpu",
    order: NDArray[np.integer] | None = None,
    scratch: Path | None = None,
) -> NodeProjections:
    """Propagation, backbone and node projections, fused over row blocks.

    Parameters
    ----------
    features : Features, or (N, d) float32 L2-normalised
    graph : KnnGraph
        Their kNN graph.
    th_sim : float
        Entries below this similarity do not enter the affinity graph.
    order : (N,) integers, optional
        Order in which to take the rows; one in which neighbours stand together is fastest
        (:func:`starfc.graph.order.locality_order`).
    scratch : path, optional
        Folder for the scratch file of u.
    """
    model, n = model.eval().to(device), graph.num_nodes
    order = np.arange(n) if order is None else order
    nodes = NodeProjections(
        model,
        as_features(features),
        Affinity.of(graph, th_sim, order),
        order,
        Scorer.of(model.head),
        ScratchRows(model.nhid, np.float16, scratch),
        torch.empty(n, model.nhid, dtype=torch.float16, device=device),
        np.empty((n, 2), np.float32),
        np.empty((n, 2), np.float32),
    )

    @torch.inference_mode()
    def work(part: slice) -> None:
        rows = nodes.order[part]
        u, v = model.head.project(nodes.embed(rows))
        halves = u.half(), v.half()
        nodes.source[part], nodes.target[torch.from_numpy(rows).to(device)] = halves[0].cpu().numpy(), halves[1]
        for whole, half, terms in zip((u, v), halves, (nodes.source_terms, nodes.target_terms), strict=True):
            terms[rows] = nodes.scorer.terms(whole, half)

    nodes.features.scaled  # noqa: B018 made once, before the threads
    threads.each(work, slices(n, ROW_BLOCK))
    return nodes


def edge_probabilities(
    nodes: NodeProjections, rows: NDArray[np.integer], cols: NDArray[np.integer]
) -> NDArray[np.float32]:
    """p of the edges rows_e -> cols_e in float32: two (E,) integer arrays -> (E,) float32 in [0, 1]."""
    p = np.empty(len(rows), np.float32)

    def work(part: slice) -> None:
        p[part] = _probabilities(nodes, rows[part], cols[part])

    threads.each(work, slices(len(rows), _DOUBTFUL))
    return p


@dataclass(frozen=True)
class RowBlock:
    """Scored entries of the rows ``rows`` (m,): ``counts`` (m,) a row; ``cols``, ``scores`` (E,) row by row."""

    rows: NDArray[np.integer]
    counts: NDArray[np.int64]
    cols: NDArray[np.integer]
    scores: NDArray[np.float32]

    @property
    def sources(self) -> NDArray[np.integer]:
        """The row of every entry, (E,)."""
        return np.repeat(self.rows, self.counts)


def score_blocks(nodes: NodeProjections) -> Iterator[RowBlock]:
    """Every kNN entry i -> j with its p, to half precision, one block of rows at a time."""
    for part in slices(nodes.graph.num_nodes, ROW_BLOCK):
        rows, entries = _score(nodes, part, -math.inf)
        yield RowBlock(rows, entries.counts, entries.cols, entries.scores)


def parse_graph(nodes: NodeProjections, tau1: float) -> EdgeList:
    """Graph parsing, STAR-FC section 3.4: the directed kNN edges with p > τ1, in kNN order within a row.

    Which edges these are is decided in float32; the scores of those that half precision decided are within its error.
    """
    parts = slices(nodes.graph.num_nodes, ROW_BLOCK)
    found: list[tuple[NDArray[np.integer], Entries]] = [None] * len(parts)
    line = math.log(tau1 / (1 - tau1)) if 0 < tau1 < 1 else math.copysign(math.inf, tau1 - 0.5)

    def work(at: int) -> None:
        found[at] = _score(nodes, parts[at], line)

    threads.each(work, range(len(parts)))
    doubtful = [
        (rows[entries.local[entries.doubtful]], entries.cols[entries.doubtful]) for rows, entries in found
    ]
    exact = edge_probabilities(nodes, *(np.concatenate(ends) for ends in zip(*doubtful, strict=True)))
    counts, at = np.empty(nodes.graph.num_nodes, np.int64), 0
    for block, (rows, entries) in enumerate(found):
        entries.scores[entries.doubtful] = exact[at : at + entries.doubtful.sum()]
        at += entries.doubtful.sum()
        found[block] = rows, entries.select(~entries.doubtful | (entries.scores > np.float32(tau1)))
        counts[rows] = found[block][1].counts
    indptr = row_pointers(counts)
    cols, scores = np.empty(indptr[-1], nodes.graph.ids.dtype), np.empty(indptr[-1], np.float32)
    while found:  # each goes as its edges are placed
        rows, entries = found.pop()
        place_rows(indptr, rows, entries.cols, entries.scores, cols, scores)
    return EdgeList(indptr, cols, scores)


def _score(nodes: NodeProjections, part: slice, line: float) -> tuple[NDArray[np.integer], Entries]:
    rows = nodes.order[part]
    score = score_rows if nodes.device.type == "cpu" else score_rows_torch
    ids, source = nodes.graph.ids[rows], nodes.source[part]
    return rows, score(ids, source, nodes.target, nodes.source_terms[rows], nodes.target_terms, nodes.scorer, line)


@torch.inference_mode()
def _probabilities(
    nodes: NodeProjections, rows: NDArray[np.integer], cols: NDArray[np.integer]
) -> NDArray[np.float32]:
    """p of some edges in float32, from projections of their ends made for them."""
    ends = []
    for of_x, side in ((nodes.model.head.project_source, rows), (nodes.model.head.project_target, cols)):
        ours, place = np.unique(side, return_inverse=True)
        ends.append(of_x(nodes.embed(ours))[torch.from_numpy(place).to(nodes.device)])
    return torch.sigmoid(nodes.model.head.pair_logits(*ends)).cpu().numpy()
