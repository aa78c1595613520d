"""Score edges: compute the probability p that the two ends of an edge belong to the same identity.

The network runs once per node, in row blocks: X = ReLU([F ‖ ÂF] W + b), u = W1a X + b1, v = W1b X. A hierarchical model
computes X at three scales, and each node keeps one of them (:mod:`starfc.scoring.selection`). Per edge, only an
addition, a PReLU, a dot product and a sigmoid remain (:mod:`starfc.scoring.projection_kernels`). v is stored in half
precision, with a bound on the resulting error of a logit. If p could be on either side of τ1 within this bound, the
edge is scored again in float32, and near-ties again in float64. Therefore rounding does not change which edges are
kept. Products have a number of rows that is a multiple of 64, so p of an edge does not depend on the order of the nodes
(:func:`starfc.runtime.products.padded`).

u (float32) and v are stored in scratch files, in processing order. u is read block by block. v is read at random
places, so it is loaded in slices of at most ``target_bytes``. Memory in addition to the graph: one slice of v, one
block of rows per thread, and the edges that are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starfc.data.dataset import Features, as_features
from starfc.graph.affinity import Affinity
from starfc.graph.edges import Block, EdgeList, undirected
from starfc.graph.neighbours import KnnGraph, id_dtype
from starfc.graph.order import inverse
from starfc.models.gcn import EdgeHead
from starfc.models.hierarchical import EmbeddingModel
from starfc.runtime import device as devices
from starfc.runtime.memory import release
from starfc.runtime.products import padded, slices
from starfc.scoring.nodes import NodeEmbeddings, NodeProjections
from starfc.scoring.projection_kernels import (
    Candidates,
    Entries,
    own_entries,
    score_rows,
    score_rows_torch,
    stored_entries,
)
from starfc.scoring.selection import chosen_embeddings
from starfc.storage.scratch import ScratchRows

ROW_BLOCK = 1 << 11  # rows per block: 2^11 x 512 float32 = 4 MiB of node embeddings
_CLOSE = 1e-5  # bound on the float32 error of p
TARGET_BYTES = 2 << 30  # maximum size of a slice of v: 2^21 rows of 512 float16
DOUBTFUL = 1 << 12  # edges that are scored again at a time: 2^12 x 512 float32 = 8 MiB for each end

#: Returns p of the edges rows_e -> cols_e, (E,).
Score = Callable[[NDArray[np.integer], NDArray[np.integer]], NDArray[np.floating]]


def project_nodes(
    model: EmbeddingModel,
    features: Features | NDArray[np.float32],
    graph: KnnGraph,
    th_sim: float = 0.0,
    device: str | torch.device = "cpu",
    order: NDArray[np.integer] | None = None,
    scratch: Path | None = None,
) -> NodeProjections:
    """Compute the node projections: propagation, backbone, choice of scales and projection, block by block.

    Parameters
    ----------
    model : StarFCModel or HierarchicalModel
        A StarFCModel has one scale, the whole graph. A HierarchicalModel has several; ``scales`` are their numbers of
        neighbours. It stays where it is; a copy of it computes on the device.
    features : Features, or (N, d) float32 L2-normalised
    graph : KnnGraph
        kNN graph of the features.
    th_sim : float
        kNN entries below this similarity are left out of the affinity graph.
    order : (N,) integers, optional
        Order in which nodes are processed. An order that keeps neighbours together is fastest
        (:func:`starfc.graph.order.locality_order`).
    scratch : path, optional
        Folder for the scratch files of u and v, 6 N h bytes. Default: the system's temporary folder.

    Raises
    ------
    InputError
        If the graph has fewer neighbours than the model's largest scale.
    """
    n = graph.num_nodes
    order = np.arange(n, dtype=id_dtype(n)) if order is None else order
    embeddings = NodeEmbeddings.of(
        model, as_features(features), Affinity.of(graph, th_sim, order, model.scales), device
    )
    nodes = NodeProjections(
        **vars(embeddings),
        order=order,
        place=inverse(order),
        source=ScratchRows(model.nhid, np.float32, scratch),
        target=ScratchRows(model.nhid, np.float16, scratch),
        source_term=np.empty(n, np.float32),
        target_term=np.empty(n, np.float32),
        error=np.empty(n, np.float32),
    )
    embed = chosen_embeddings(nodes)

    def work(part: slice) -> None:
        found = project(nodes, order[part], embed)
        nodes.source[part], nodes.target[part] = found.source.cpu().numpy(), found.half.cpu().numpy()
        nodes.source_term[part], nodes.target_term[part] = found.source_term, found.target_term
        nodes.error[part] = found.error

    nodes.in_blocks(work, n, ROW_BLOCK)
    return nodes


@dataclass(frozen=True)
class Projected:
    """The projections of m nodes.

    Attributes
    ----------
    source, target : (m, h) float32 tensors
        u and v.
    half : (m, h) float16 tensor
        v in half precision.
    source_term, target_term, error : (m,) float32
        As in :class:`~starfc.scoring.nodes.NodeProjections`.
    """

    source: Tensor
    target: Tensor
    half: Tensor
    source_term: NDArray[np.float32]
    target_term: NDArray[np.float32]
    error: NDArray[np.float32]


@torch.inference_mode()
def project(
    nodes: NodeEmbeddings, rows: NDArray[np.integer], embed: Callable[[NDArray[np.integer]], Tensor] | None = None
) -> Projected:
    """Return the projections of some nodes (m,). They depend on no other node of the block.

    ``embed`` returns the embeddings X of nodes. Default: those of ``nodes``.
    """
    u, v = nodes.model.head.project((embed or nodes.embed)(padded(rows)))
    half, scorer, m = v.half(), nodes.scorer, len(rows)
    terms = u @ scorer.linear, v @ scorer.linear, (v - half.float()).abs() @ scorer.bend.abs()
    return Projected(u[:m], v[:m], half[:m], *(x[:m].cpu().numpy() for x in terms))


def edge_probabilities(
    nodes: NodeEmbeddings, rows: NDArray[np.integer], cols: NDArray[np.integer]
) -> NDArray[np.floating]:
    """Return p of the edges rows_e -> cols_e, (E,), computed by the whole network without half precision.

    ``rows`` and ``cols`` are (E,) integers. The result is float32, or float64 for nodes ``in_double``.
    """
    p = np.empty(len(rows), np.float64 if nodes.dtype == torch.float64 else np.float32)

    def work(part: slice) -> None:
        p[part] = _probabilities(nodes, rows[part], cols[part])

    nodes.in_blocks(work, len(rows), DOUBTFUL)
    return p


@torch.inference_mode()
def pair_probabilities(
    head: EdgeHead, source: Tensor, target: Tensor, rows: NDArray[np.integer], cols: NDArray[np.integer]
) -> NDArray[np.floating]:
    """Return p of some edges, (E,), in the type of the projections u (n, h) and v (m, h) that rows and cols name."""
    i, j = (torch.from_numpy(padded(side)).to(source.device) for side in (rows, cols))
    return torch.sigmoid(head.pair_logits(source[i], target[j]))[: len(rows)].cpu().numpy()


def own_candidates(nodes: NodeProjections, rows: NDArray[np.integer]) -> Candidates:
    """Return the kNN entries of some nodes in the graph of the largest scale, as places."""
    return Candidates(*own_entries(rows, nodes.graph.ids, nodes.affinity.widths[-1], nodes.place))


def stored_candidates(nodes: NodeProjections, rows: NDArray[np.integer]) -> Candidates:
    """Return the entries of some nodes' rows in Â of the largest scale, without self loops, as places."""
    affinity = nodes.affinity
    pointers = affinity.indptr[:: affinity.num_scales]
    return Candidates(*stored_entries(rows, nodes.graph.ids, affinity.kinds, pointers, affinity.sources, nodes.place))


def num_entries(nodes: NodeProjections) -> int:
    """Return the number of :func:`own_candidates` of all nodes together."""
    return nodes.graph.num_entries(int(nodes.affinity.widths[-1]))


def num_pairs(nodes: NodeProjections) -> int:
    """Return the number of pairs in Â of the largest scale. Each pair occurs twice in the :func:`stored_candidates`."""
    affinity = nodes.affinity
    return (int(np.count_nonzero(affinity.kinds)) + len(affinity.sources)) // 2


def score_entries(
    nodes: NodeProjections,
    line: float = -math.inf,
    target_bytes: int = TARGET_BYTES,
    candidates: Callable[[NodeProjections, NDArray[np.integer]], Candidates] = own_candidates,
) -> Iterator[tuple[NDArray[np.integer], Entries]]:
    """Yield the candidate edges whose logit may exceed ``line``, block by block, with p.

    Parameters
    ----------
    nodes : NodeProjections
        The projections of all nodes.
    line : float
        The threshold of the logit. Default: all candidates.
    target_bytes : int
        Maximum size of a slice of v; on a GPU also half of its room. All blocks are yielded once per slice.
    candidates : function (nodes, node ids) -> Candidates
        Returns the candidate edges of some nodes: :func:`own_candidates` or :func:`stored_candidates`.

    Yields
    ------
    (m,) integers
        The nodes of the block.
    Entries
        Their edges; ``cols`` are nodes.
    """
    n = nodes.graph.num_nodes
    score = score_rows if nodes.on_device is None else score_rows_torch
    target_term, error = (torch.from_numpy(x).to(nodes.device) for x in (nodes.target_term, nodes.error))
    if nodes.on_device is not None:
        target_bytes = min(target_bytes, devices.room(nodes.device) // 2)
    held = max(1, target_bytes // (2 * nodes.model.nhid))
    for targets in slices(n, held):
        target = torch.from_numpy(nodes.target[targets]).to(nodes.device)

        def work(part: slice, targets: slice = targets, target: Tensor = target) -> tuple[NDArray[np.integer], Entries]:
            rows = nodes.order[part]
            entries = score(
                candidates(nodes, rows), nodes.source[part], target, targets.start, nodes.source_term[part],
                target_term, error, nodes.scorer, line,
            )  # fmt: skip
            return rows, replace(entries, cols=nodes.order[entries.cols])

        found = nodes.in_blocks(work, n, ROW_BLOCK)
        del target
        found.reverse()
        while found:
            yield found.pop()


def parse_graph(nodes: NodeProjections, tau1: float, target_bytes: int = TARGET_BYTES) -> EdgeList:
    """Return the directed kNN edges with p > τ1: graph parsing, STAR-FC section 3.4.

    Rounding does not change which edges are returned. Their p may have the error of half precision. ``target_bytes`` is
    the maximum size of a slice of v.
    """
    return _parse(nodes, tau1, target_bytes, own_candidates)


def parse_affinity(nodes: NodeProjections, tau1: float, target_bytes: int = TARGET_BYTES) -> EdgeList:
    """Return the edges of Â of the largest scale with p > τ1, undirected: graph parsing of the extended method.

    See TPAMI 2023. p_ij and p_ji differ. A pair is kept if at least one of them is above τ1, with the higher value. The
    list is symmetric, with sorted columns and without self loops. Rounding does not change which edges are returned.
    """
    return undirected(_parse(nodes, tau1, target_bytes, stored_candidates))


def _parse(
    nodes: NodeProjections,
    tau1: float,
    target_bytes: int,
    candidates: Callable[[NodeProjections, NDArray[np.integer]], Candidates],
) -> EdgeList:
    """Return the candidates with p > τ1."""
    found = list(score_entries(nodes, logit_of(tau1), target_bytes, candidates))

    def again(rows: NDArray[np.integer], cols: NDArray[np.integer]) -> NDArray[np.floating]:
        return edge_probabilities(nodes, rows, cols)

    def in_double(rows: NDArray[np.integer], cols: NDArray[np.integer]) -> NDArray[np.floating]:
        return edge_probabilities(nodes.in_double(), rows, cols)

    blocks = settled(found, again, in_double, tau1)
    for array in (nodes.features.array, nodes.graph.ids, nodes.graph.sims):
        release(array)
    return EdgeList.from_blocks(blocks, nodes.graph.num_nodes, nodes.graph.ids.dtype)


def logit_of(tau: float) -> float:
    """Return the logit of a probability in [0, 1]."""
    return math.log(tau / (1 - tau)) if 0 < tau < 1 else math.copysign(math.inf, tau - 0.5)


def settled(
    found: list[tuple[NDArray[np.integer], Entries]], again: Score, in_double: Score, tau1: float
) -> list[Block]:
    """Return the edges with p > τ1; those that half precision leaves in doubt are scored again. ``found`` is emptied.

    Parameters
    ----------
    found : list
        The nodes of each block, and their edges whose logit may exceed the threshold.
    again, in_double : function (rows, cols) -> (E,) p
        Score some edges in float32 and in float64. If the p of the first is within the error of float32 of τ1, the
        second decides.
    tau1 : float
    """
    doubtful = [(rows[e.local[e.doubtful]], e.cols[e.doubtful]) for rows, e in found]
    source, target = (np.concatenate(ends) for ends in zip(*doubtful, strict=True))
    exact = again(source, target).astype(np.float64)
    close = np.abs(exact - tau1) < _CLOSE
    if close.any():
        exact[close] = in_double(source[close], target[close])
    at = 0
    blocks: list[Block] = []
    found.reverse()
    while found:
        rows, entries = found.pop()
        scored_again = np.flatnonzero(entries.doubtful)
        decided = exact[at : at + len(scored_again)]
        at += len(scored_again)
        kept = np.ones(len(entries.cols), np.bool_)
        kept[scored_again], entries.scores[scored_again] = decided > tau1, decided
        chosen = entries.select(kept)
        blocks.append((rows, chosen.counts, chosen.cols, chosen.scores))
    return blocks


@torch.inference_mode()
def _probabilities(nodes: NodeEmbeddings, rows: NDArray[np.integer], cols: NDArray[np.integer]) -> NDArray[np.floating]:
    """Return p of some edges; the projections of their ends are computed again."""
    head = nodes.model.head
    (ours, i), (theirs, j) = (np.unique(side, return_inverse=True) for side in (rows, cols))
    source, target = head.project_source(nodes.embed(padded(ours))), head.project_target(nodes.embed(padded(theirs)))
    return pair_probabilities(head, source, target, i, j)
