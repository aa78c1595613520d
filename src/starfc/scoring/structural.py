"""Score the edges of a kNN graph with a structural model, block by block.

For each block of nodes, a kernel computes the structural features of the edges, and the network scores them while they
are in the processor's caches. Memory in addition to the graph: one byte per kNN entry (the first round's logits), one
block per thread, and the edges that are kept. The smoothed features (float16) and a large list of edges are in scratch
files. :meth:`Scoring.release` gives back the memory of all files until edges are scored again.

On a GPU the same blocks, of more nodes, are computed in torch (:mod:`starfc.graph.device_structure`), one after the
other. Features and logits of a block stay on the device; the edges that are kept are copied to main memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, logit
from torch import Tensor

from starfc.data.dataset import Features, as_features
from starfc.graph.device_structure import DeviceEdges, DeviceLogits, DeviceStructure
from starfc.graph.edges import Block, EdgeList, Edges
from starfc.graph.neighbours import KnnGraph
from starfc.graph.strangers import Strangers
from starfc.graph.structure import CandidateEdges, EdgeLogits, Structure, encode, smooth
from starfc.graph.structure_kernels import in_degrees
from starfc.models.contextual import (
    Context,
    ContextualModel,
    first_context,
    sampled_nodes,
    second_context,
)
from starfc.models.judge import context_change
from starfc.models.structural import EdgeScorer, StructuralModel, logits_of
from starfc.runtime import device as devices
from starfc.runtime import threads
from starfc.runtime.device_rows import Holder, in_blocks
from starfc.runtime.memory import mapped_bytes, release
from starfc.runtime.products import slices

ROW_BLOCK = 128  # nodes per block, about 4,000 edges: 0.4 MiB of features, 1 MiB per hidden layer

APPROXIMATE = ("ivf", "read")  # graphs whose lists may be approximate; a file from elsewhere does not say

MASS_UNIT = 1 << 24  # Σ p is counted in units of 2^-24, so that it does not depend on the order of the edges

R = TypeVar("R")

#: Maps features (m, f) to logits (m,): arrays to arrays, and tensors on a device to tensors there (:func:`on_device`).
Score = Callable[[Any], Any]

#: Takes candidate edges and their logits z / T (m,).
Use = Callable[[CandidateEdges, NDArray[np.float32]], R]


class Columns(Protocol):
    """What computes the features of candidate edges.

    It is a :class:`~starfc.graph.structure.Structure` with :class:`~starfc.graph.structure.EdgeLogits`, or a
    :class:`~starfc.graph.device_structure.DeviceStructure` with :class:`~starfc.graph.device_structure.DeviceLogits`.
    """

    def first_round(self, rows: NDArray[np.integer], every: bool = False, since: int = 0) -> Any:
        """Return the candidate edges of some nodes, with the features of the first round."""

    def second_round(self, rows: NDArray[np.integer], logits: Any, since: int = 0) -> Any:
        """Return the candidate edges of some nodes, with the features of the second round."""


class Scoring:
    """The state of a graph before the last round of scoring: first-round logits, and a contextual model's context.

    It is computed once per set. :meth:`each` and :meth:`parse` then score all candidate edges, with the model's scorer
    or with adapted scorers.

    Parameters
    ----------
    model : StructuralModel
    features : Features, or (N, d) float32 L2-normalised
    graph : KnnGraph
        kNN graph of the features.
    order : (N,) integers, optional
        Order in which nodes are processed. It does not change the logits.
    device
        Device of the scorers.
    scratch : path, optional
        Folder for the scratch files of the smoothed features and of the edges.
    """

    def __init__(
        self,
        model: StructuralModel,
        features: Features | NDArray[np.float32],
        graph: KnnGraph,
        order: NDArray[np.integer] | None = None,
        device: str | torch.device = "cpu",
        scratch: Path | None = None,
    ) -> None:
        features = as_features(features)
        n = graph.num_nodes
        self.graph, self.order, self.device = graph, np.arange(n) if order is None else order, torch.device(device)
        self.scratch = scratch
        self.temperature = np.float32(float(model.temperature))
        strangers, change = None, np.float32(0)
        if isinstance(model, ContextualModel):
            strangers = Strangers.of(features, device=device)
            if graph.info.get("backend") in APPROXIMATE:
                counts = np.zeros((2, n), np.float32)
                in_degrees(strangers.without_ties(graph).ids[:, : model.columns], 10, counts)
                change = context_change(model, features, graph, strangers, lambda rows: counts[:, rows])
        nodes = smooth(graph, features, model.smoothing, self.order, scratch, device)
        release(features.array)
        self.before: EdgeLogits | DeviceLogits | None = None
        self.context: Context | None = None
        self.structure = Structure(graph, model.columns, model.candidates, nodes, strangers=strangers)
        self.columns: Columns = self.structure
        if devices.uses_torch(device):
            self.columns = DeviceStructure(self.structure, Holder(device))
        if isinstance(model, ContextualModel):
            assert strangers is not None
            self.scorer = self._in_context(model, strangers, features.dim, change)
            return
        if model.second is not None:
            self.before = self._first_round(model.first)
        self.scorer = model.first if model.second is None else model.second

    def _in_context(
        self, model: ContextualModel, strangers: Strangers, dim: int, change: NDArray[np.float32] | np.float32
    ) -> EdgeScorer:
        """Run the first round of a contextual model, set ``context``, and return the last round's scorer.

        ``change`` is added to the first round's context (:func:`starfc.models.judge.context_change`).
        """
        n = self.graph.num_nodes
        sample = self._of_some(sampled_nodes(n))
        first = first_context(sample, n, dim, strangers) + change if len(sample) else model.first.neutral
        self.before = self._first_round(model.first.of(first))
        sample = self._of_some(sampled_nodes(n))
        second = second_context(first, sample) if len(sample) else model.second.neutral
        self.context = Context(strangers, n, first, second)
        return model.second.of(second)

    def _first_round(self, scorer: EdgeScorer) -> EdgeLogits | DeviceLogits:
        """Return the first round's logits of all candidate edges."""
        logits = DeviceLogits(self.columns) if isinstance(self.columns, DeviceStructure) else EdgeLogits(self.structure)
        score_first_round(on_device(scorer, self.device), self.columns, logits, self.order)
        logits.sum_degrees(self.order)
        return logits

    def _pairs(self, nodes: NDArray[np.integer]) -> CandidateEdges | DeviceEdges:
        """Return the candidate edges of some nodes, with their features for the next round, where they are computed."""
        if self.before is None:
            return self.columns.first_round(nodes)
        return self.columns.second_round(nodes, self.before)

    def pairs(self, nodes: NDArray[np.integer]) -> CandidateEdges:
        """Return the candidate edges of some nodes, with their features for the next round."""
        pairs = self._pairs(nodes)
        return pairs.on_host() if isinstance(pairs, DeviceEdges) else pairs

    def each(self, use: Use[R]) -> list[R]:
        """Score all candidate edges: return ``use(pairs, logits)`` of each block of nodes.

        Parameters
        ----------
        use : function (CandidateEdges, (m,) float32) -> any
            Takes the m candidate edges of a block, and their logits divided by the temperature, z / T. Each edge of the
            graph occurs in one block only.
        """

        def on_host(pairs: CandidateEdges | DeviceEdges, logits: Any) -> R:
            if isinstance(pairs, DeviceEdges):
                return use(pairs.on_host(), logits.cpu().numpy())
            return use(pairs, logits)

        return self._each(on_host, None)

    def _each(self, use: Callable[[Any, Any], R], halves: Halves | None) -> list[R]:
        """Return ``use(pairs, logits)`` of each block of nodes; both are where they are computed."""
        score = self._last_round(halves)

        def last_round(part: slice) -> R:
            pairs = self._pairs(self.order[part])
            return use(pairs, score(pairs) / float(self.temperature))

        return self.in_blocks(last_round, len(self.order))

    def in_blocks(self, work: Callable[[slice], R], n: int) -> list[R]:
        """Return the results of ``work`` on blocks of n nodes, in their order (:func:`blockwise`)."""
        return blockwise(work, n, self.columns, ROW_BLOCK)

    def _last_round(self, halves: Halves | None) -> Callable[[Any], Any]:
        """Return a function that computes the logits (m,) of candidate edges in the last round."""
        if halves is None:
            score = on_device(self.scorer, self.device)
            return lambda pairs: score(pairs.features)
        if isinstance(self.columns, DeviceStructure):
            of_halves = halves.on_device(self.device)
            return lambda pairs: of_halves(pairs.features, pairs.rows, pairs.ends)
        return lambda pairs: halves.logits(pairs.features, pairs.rows, self.graph.ids[pairs.rows, pairs.slots])

    def parse(self, tau1: float, halves: Halves | None = None) -> tuple[Edges, int, float]:
        """Return the candidate edges with p > τ1, the number of candidates, and Σ p of all candidates.

        The edge list is symmetric, with sorted columns and without self loops; a large one is in scratch files.

        Parameters
        ----------
        tau1 : float
            τ1.
        halves : Halves, optional
            Adapted scorers (:mod:`starfc.clustering.adaptation`) that replace the model's scorer.
        """
        line, graph = logit(tau1), self.graph
        found = self._each(lambda pairs, logits: above(pairs, logits, line, graph.ids), halves)
        self.release()
        candidates, mass = sum(block[1] for block in found), sum(block[2] for block in found)
        blocks = [block[0] for block in found]
        del found  # so that the blocks are freed one by one
        edges = EdgeList.from_pairs(blocks, graph.num_nodes, graph.ids.dtype, self.scratch)
        return edges, candidates, mass / MASS_UNIT

    def release(self) -> None:
        """Give back the memory of the graph and of the smoothed features, where these are in files."""
        for array in (self.graph.ids, self.graph.sims, self.structure.nodes):
            if array is not None:
                release(array)

    @property
    def bytes_again(self) -> int:
        """The memory that scoring once more will need, in bytes: what it reads, or the assembly of the kept edges."""
        assert self.structure.nodes is not None  # smoothed at the start
        pairs = int(0.55 * self.graph.num_nodes * self.structure.candidates)
        read = self.structure.nodes.nbytes + mapped_bytes(self.graph.ids, self.graph.sims)
        return max(read + 8 * pairs, 24 * pairs)

    @property
    def codes(self) -> NDArray[np.int8] | None:
        """The first round's logits, (N, k) int8 (``EdgeLogits.codes``); None for a model with one round."""
        return None if self.before is None else self.before.codes

    def edges_of(
        self, nodes: NDArray[np.integer]
    ) -> tuple[NDArray[np.float32], NDArray[np.integer], NDArray[np.integer]]:
        """Return features (m, f) and both ends (m,) of the candidate edges that some nodes own, for the last round."""
        pairs = self.pairs(nodes)
        return pairs.features, pairs.rows, self.graph.ids[pairs.rows, pairs.slots]

    def _of_some(self, nodes: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the structural features of the candidate edges of some nodes."""
        return np.concatenate(self.in_blocks(lambda part: self.pairs(nodes[part]).features, len(nodes)))


def blockwise(work: Callable[[slice], R], n: int, columns: Columns, block: int) -> list[R]:
    """Return the results of ``work`` on the slices of [0, n), in their order.

    With compiled kernels, the slices have ``block`` nodes and are divided among threads. On a device they have as many
    as its memory allows, and follow each other (:func:`starfc.runtime.device_rows.in_blocks`).
    """
    if isinstance(columns, DeviceStructure):
        return in_blocks(work, n, columns.node_bytes, columns.holder.device)
    return threads.results(work, slices(n, block))


def above(
    pairs: CandidateEdges | DeviceEdges, logits: Any, line: float, ids: NDArray[np.integer]
) -> tuple[Block, int, int]:
    """Return the edges whose logit (m,) is above ``line``, in main memory, and number and mass of all edges.

    ``ids`` (N, k) are the lists of the graph. The mass is Σ p in units of 1 / :data:`MASS_UNIT`.
    """
    if isinstance(pairs, DeviceEdges):
        p, kept = torch.sigmoid(logits), logits > line
        mass = (p.double() * MASS_UNIT).round().long().sum()
        number = torch.bincount(pairs.local[kept], minlength=len(pairs.nodes))
        nodes, counts, ends, scores = (x.cpu().numpy() for x in (pairs.nodes, number, pairs.ends[kept], p[kept]))
        return (nodes, counts, ends.astype(ids.dtype), scores), len(p), int(mass)
    chosen = np.flatnonzero(logits > line)
    local = pairs.local[chosen]
    ends = ids[pairs.nodes[local], pairs.slots[chosen]]
    block = pairs.nodes, np.bincount(local, minlength=len(pairs.nodes)), ends, expit(logits[chosen])
    return block, len(logits), mass_of(expit(logits))


def mass_of(probability: NDArray[np.float32]) -> int:
    """Return Σ p in units of 1 / :data:`MASS_UNIT`."""
    return int(np.rint(probability.astype(np.float64) * MASS_UNIT).astype(np.int64).sum())


def score_first_round(
    score: Score,
    structure: Columns,
    logits: EdgeLogits | DeviceLogits,
    nodes: NDArray[np.integer],
    *,
    every: bool = False,
    since: int = 0,
    block: int = ROW_BLOCK,
) -> None:
    """Score the candidate edges of some nodes in the first round, and store each logit at both ends of its edge.

    Parameters
    ----------
    score : function ((m, f) float32) -> (m,) float32
        Returns the logits of edges, given their structural features.
    structure : Structure, or DeviceStructure
        Computes the structural features.
    logits : EdgeLogits, or DeviceLogits
        Receives the logits.
    nodes : (n,) integers
        The nodes whose edges are scored.
    every, since
        As for :meth:`starfc.graph.structure.Structure.first_round`.
    block : int
        Number of nodes that are scored at a time (:func:`blockwise`).
    """

    def work(part: slice) -> None:
        pairs = structure.first_round(nodes[part], every=every, since=since)
        codes: Any = encode(score(pairs.features))
        logits.put(pairs, codes)

    blockwise(work, len(nodes), structure, block)


class Halves(Protocol):
    """A pair of scorers, each trained on the edges within one half of the clusters."""

    def logits(
        self, features: NDArray[np.float32], rows: NDArray[np.integer], cols: NDArray[np.integer]
    ) -> NDArray[np.float32]:
        """Return the logits (m,) of edges, by the scorer that was not trained on them.

        ``features`` (m, f) are the edges' structural features; ``rows`` and ``cols`` (m,) are their ends.
        """

    def on_device(self, device: torch.device) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """Return a function that does the same with tensors on a device."""


def score_edges(
    model: StructuralModel,
    features: Features | NDArray[np.float32],
    graph: KnnGraph,
    use: Use[R],
    order: NDArray[np.integer] | None = None,
    device: str | torch.device = "cpu",
    scratch: Path | None = None,
) -> list[R]:
    """Score all candidate edges: return the results of ``use`` for each block of nodes (:meth:`Scoring.each`)."""
    return Scoring(model, features, graph, order, device, scratch).each(use)


def parse_structure(
    model: StructuralModel,
    features: Features | NDArray[np.float32],
    graph: KnnGraph,
    tau1: float,
    order: NDArray[np.integer] | None = None,
    device: str | torch.device = "cpu",
    scratch: Path | None = None,
) -> tuple[EdgeList, int]:
    """Return the candidate edges with p > τ1, and the number of candidates (:meth:`Scoring.parse`)."""
    edges, count, _ = Scoring(model, features, graph, order, device, scratch).parse(tau1)
    return edges.whole(), count


def on_device(scorer: EdgeScorer, device: str | torch.device) -> Score:
    """Return a function that maps features (m, f) to logits (m,), computed by a copy of a scorer on ``device``.

    Tensors must be on the device, and stay there. Arrays are copied there, and the logits back.
    """
    scorer = copy.deepcopy(scorer).to(device)

    def score(features: Any) -> Any:
        if isinstance(features, Tensor):
            return logits_of(scorer, features)
        return logits_of(scorer, torch.from_numpy(features).to(device)).cpu().numpy()

    return score
