"""Score edges: compute the probability p that the two ends of an edge belong to the same identity.

The network runs once per node, in row blocks: X = ReLU([F ‖ ÂF] W + b), u = W1a X + b1, v = W1b X. A hierarchical model
computes X at three scales, and each node keeps one of them (:mod:`starfc.scoring.selection`). Per edge, only an
addition, a PReLU, a dot product and a sigmoid remain (:mod:`starfc.scoring.projection_kernels`). v is stored in half
precision, with a bound on the resulting error of a logit. If p could be on either side of τ1 within this bound, the
edge is scored again in float32, and near-ties again in float64. Therefore rounding does not change which edges are
kept.

u (float32) and v are stored in scratch files, in processing order. u is read block by block. v is read at random
places, so it is loaded in slices of at most ``target_bytes``. Memory in addition to the graph: one slice of v, one
block of rows per thread, and the edges that are kept.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starfc.data.dataset import Features, as_features
from starfc.graph.affinity import Affinity
from starfc.graph.device_affinity import DeviceAffinity
from starfc.graph.edges import Block, EdgeList, undirected
from starfc.graph.neighbours import KnnGraph, id_dtype
from starfc.graph.order import inverse
from starfc.models.hierarchical import EmbeddingModel
from starfc.runtime import device as devices
from starfc.runtime.device_rows import Holder
from starfc.runtime.memory import release
from starfc.runtime.products import slices
from starfc.scoring.nodes import NodeProjections
from starfc.scoring.projection_kernels import (
    Candidates,
    Entries,
    Scorer,
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
_DOUBTFUL = 1 << 12  # edges that are scored again at a time: 2^12 x 512 float32 = 8 MiB for each end


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
    model, features, n = copy.deepcopy(model).eval().to(device), as_features(features), graph.num_nodes
    order = np.arange(n, dtype=id_dtype(n)) if order is None else order
    affinity = Affinity.of(graph, th_sim, order, model.scales)
    nodes = NodeProjections(
        model,
        features,
        affinity,
        np.zeros(n, np.uint8),
        order,
        inverse(order),
        Scorer.of(model.head),
        ScratchRows(model.nhid, np.float32, scratch),
        ScratchRows(model.nhid, np.float16, scratch),
        np.empty(n, np.float32),
        np.empty(n, np.float32),
        np.empty(n, np.float32),
        DeviceAffinity(affinity, features, Holder(device)) if devices.uses_torch(device) else None,
    )

    nodes.features.scaled  # noqa: B018 computed once here, so that threads do not compute it at the same time
    embed = chosen_embeddings(nodes)

    @torch.inference_mode()
    def work(part: slice) -> None:
        u, v = model.head.project(embed(order[part]))
        half, scorer = v.half(), nodes.scorer
        nodes.source[part], nodes.target[part] = u.cpu().numpy(), half.cpu().numpy()
        nodes.source_term[part], nodes.target_term[part] = ((x @ scorer.linear).cpu().numpy() for x in (u, v))
        nodes.error[part] = ((v - half.float()).abs() @ scorer.bend.abs()).cpu().numpy()

    nodes.in_blocks(work, n, ROW_BLOCK)
    return nodes


def edge_probabilities(
    nodes: NodeProjections, rows: NDArray[np.integer], cols: NDArray[np.integer]
) -> NDArray[np.floating]:
    """Return p of the edges rows_e -> cols_e, (E,), computed by the whole network without half precision.

    ``rows`` and ``cols`` are (E,) integers. The result is float32, or float64 for nodes ``in_double``.
    """
    p = np.empty(len(rows), np.float64 if nodes.dtype == torch.float64 else np.float32)

    def work(part: slice) -> None:
        p[part] = _probabilities(nodes, rows[part], cols[part])

    nodes.in_blocks(work, len(rows), _DOUBTFUL)
    return p


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
    line = math.log(tau1 / (1 - tau1)) if 0 < tau1 < 1 else math.copysign(math.inf, tau1 - 0.5)
    found = list(score_entries(nodes, line, target_bytes, candidates))
    doubtful = [(rows[e.local[e.doubtful]], e.cols[e.doubtful]) for rows, e in found]
    source, target = (np.concatenate(ends) for ends in zip(*doubtful, strict=True))
    exact = _decided(nodes, source, target, tau1)
    for array in (nodes.features.array, nodes.graph.ids, nodes.graph.sims):
        release(array)
    at = 0
    blocks: list[Block] = []
    found.reverse()
    while found:
        rows, entries = found.pop()
        scored_again = np.flatnonzero(entries.doubtful)
        again = exact[at : at + len(scored_again)]
        at += len(scored_again)
        kept = np.ones(len(entries.cols), np.bool_)
        kept[scored_again], entries.scores[scored_again] = again > tau1, again
        chosen = entries.select(kept)
        blocks.append((rows, chosen.counts, chosen.cols, chosen.scores))
    return EdgeList.from_blocks(blocks, nodes.graph.num_nodes, nodes.graph.ids.dtype)


def _decided(
    nodes: NodeProjections, rows: NDArray[np.integer], cols: NDArray[np.integer], tau1: float
) -> NDArray[np.float64]:
    """Return p of some edges in float32; if p is within the float32 error of τ1, compute it in float64."""
    p = edge_probabilities(nodes, rows, cols).astype(np.float64)
    close = np.abs(p - tau1) < _CLOSE
    if close.any():
        p[close] = edge_probabilities(nodes.in_double(), rows[close], cols[close])
    return p


@torch.inference_mode()
def _probabilities(
    nodes: NodeProjections, rows: NDArray[np.integer], cols: NDArray[np.integer]
) -> NDArray[np.floating]:
    """Return p of some edges; the projections of their ends are computed again."""
    ends = []
    for of_x, side in ((nodes.model.head.project_source, rows), (nodes.model.head.project_target, cols)):
        ours, place = np.unique(side, return_inverse=True)
        ends.append(of_x(nodes.embed(ours))[torch.from_numpy(place).to(nodes.device)])
    return torch.sigmoid(nodes.model.head.pair_logits(*ends)).cpu().numpy()
