"""Compute structural features of edges: features of the kNN graph around two nodes, not of the embeddings.

A candidate edge is a pair {i, j} in which one node is among the first ``candidates`` neighbours of the other. The
features describe how the lists of k neighbours of i and j overlap, and how the similarity s_ij compares with the other
similarities of both nodes. They do not depend on the position of the nodes in space, so they generalise to new
identities. They use differences of similarities only, so they generalise to data with a higher or lower density. One
column comes from the embeddings: the similarity of the two nodes after one graph convolution without weights,
X = normalise(ÂF).

Let depth_i(m) = 1..k if m is the first to k-th neighbour of i, depth_i(i) = 0, and C the set of common neighbours of i
and j:

====== ============================================================================================================
column of every round
====== ============================================================================================================
0-4    |{m : depth_i(m) <= t and depth_j(m) <= t}| / t for t = 5, 10, 20, 40, k; i and j count
5      log(NEP_ij + 1e-4) of the neighbour-based edge probability 1/2 Σ_{m in C} (P_im + P_jm), where P is the
       row-normalised exp(-d^2 / σ) of the squared distances d^2 = 2 - 2 s, σ = 0.1 (arXiv 2408.13431)
6      mean over C of min(s_im, s_jm), minus s_ij
7-18   similarity to the 1st, 5th, 10th, 20th, 40th, k-th neighbour, minus s_ij: first of the denser node, then of the
       other; the denser node has the higher similarity to its 20th neighbour (if equal, to the first that differs)
19     <X_i, X_j> - s_ij, with Â of the first ``smoothing`` neighbours; 0 without smoothing
====== ============================================================================================================

If the similarities of strangers are known (:mod:`starfc.graph.strangers`), similarities are on the common scale s', and
there are additional columns in absolute units. z is defined in that module; rank_i(j) = 1..k is the position of j in
i's list, or k + 1 if it is not in the list; in_t(j) is the number of lists that have j among their first t entries:

====== ============================================================================================================
20     z_ij / 4, within [-2, 8]
21-22  min and max of z_i|j and z_j|i, / 4, within [-2, 8]
23     s'_ij
24-25  log of min and max of rank_i(j) and rank_j(i)
26-27  min and max of log(1 + in_10) of both nodes
28-29  min and max of log(1 + 79 in_k / k) of both nodes
30     (log N + log P(Z > min(z_i|j, z_j|i))) / 5, Z standard normal, in [-8, 2]: the log of the expected number of
       strangers with at least this similarity
====== ============================================================================================================

The second round also uses the probabilities p of the first round (0 for pairs that are not candidates). Let
n_i = Σ_m p_im be the degrees, a <= b the two values n_i - p_ij + 1/2 and n_j - p_ij + 1/2, and
c = Σ_{m in C} p_im p_jm. The following columns come after those above (the numbers are those without strangers):

====== ============================================================================================================
20     logit of p_ij
21-23  c / a, c / b, c / sqrt(a b): node intimacy (STAR-FC section 3.4) of soft edges
24-26  log(c + 0.1), log a, log b
27-29  max_m min(p_im, p_jm); Σ_m min(p_im, p_jm) / b; Σ_{m in C} |p_im - p_jm| / (|C| + 1)
====== ============================================================================================================
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starfc.data.dataset import Features, as_features
from starfc.errors import InputError
from starfc.graph.affinity import Affinity
from starfc.graph.device_affinity import DeviceAffinity
from starfc.graph.neighbours import KnnGraph
from starfc.graph.strangers import Strangers
from starfc.graph.structure_kernels import (
    LOGIT_STEP,
    NO_LOGIT,
    SIM_STEPS,
    absolute_structure,
    in_degrees,
    longest,
    nep_norms,
    pair_structure,
    row_sums,
    store_divided,
)
from starfc.runtime import device as devices
from starfc.runtime import threads
from starfc.runtime.defaults import MOST_NEIGHBOURS
from starfc.runtime.device_rows import Holder, in_blocks
from starfc.runtime.half import bits
from starfc.runtime.products import slices
from starfc.storage.scratch import scratch_array

PREFIXES = (5, 10, 20, 40)
_BLOCK = 1 << 10  # nodes per block: 1 MiB of float32 at 256-d
SIGMA = 0.1  # σ of the neighbour-based edge probability (NEP)
FIRST_FEATURES = 20  # columns of the first round
FEATURES = 30  # columns of the second round
ABSOLUTE_FEATURES = 11  # additional columns, after those of the first round, if strangers are known

PROBABILITY = (1 / (1 + np.exp(-np.arange(NO_LOGIT, -NO_LOGIT) / LOGIT_STEP))).astype(np.float32)
PROBABILITY[0] = 0.0
NEP_TABLE = np.exp((2 * np.arange(SIM_STEPS + 2) / SIM_STEPS - 2) / SIGMA).astype(np.float32)


def smooth(
    graph: KnnGraph,
    features: Features | NDArray[np.float32],
    neighbours: int,
    order: NDArray[np.integer] | None = None,
    scratch: Path | None = None,
    device: str | torch.device = "cpu",
) -> NDArray[np.float16]:
    """Return X = normalise(ÂF): one graph convolution without weights, with Â of the first neighbours of each node.

    Parameters
    ----------
    graph : KnnGraph
        kNN graph of the features.
    features : Features, or (N, d) float32 L2-normalised
    neighbours : int
        Number of neighbours. 0 means no smoothing; the result then has no columns.
    order : (N,) integers, optional
        Order in which nodes are processed. It does not change the result.
    scratch : path, optional
        Folder for a temporary file of 2 N d bytes that holds the result. Default: the system's temporary folder.
    device
        Device of the sums.

    Returns
    -------
    (N, d) float16, by node
    """
    if neighbours == 0:
        return np.empty((graph.num_nodes, 0), np.float16)
    features = as_features(features)
    order = np.arange(graph.num_nodes) if order is None else order
    affinity = smoothing_affinity(graph, neighbours, order)
    out = scratch_array((graph.num_nodes, features.dim), np.float16, scratch)
    if devices.uses_torch(device):
        _smooth_on_device(DeviceAffinity(affinity, features, Holder(device)), order, out)
    else:
        smooth_rows(affinity, features, order, order, out)
    return out


def _smooth_on_device(affinity: DeviceAffinity, order: NDArray[np.integer], out: NDArray[np.float16]) -> None:
    """Write X of all nodes to ``out``, as :func:`smooth_rows` does; the last bit of a number may differ."""

    def work(part: slice) -> None:
        mean = affinity.aggregate(order[part])[0]
        norms = torch.linalg.vector_norm(mean, dim=1, keepdim=True).clamp_min_(1e-12)
        out[order[part]] = (mean / norms).half().cpu().numpy()

    in_blocks(work, len(order), affinity.node_bytes, affinity.device)


def smoothing_affinity(
    graph: KnnGraph,
    neighbours: int,
    order: NDArray[np.integer] | None = None,
    wanted: NDArray[np.bool_] | None = None,
) -> Affinity:
    """Return the affinity graph of the first ``neighbours`` >= 1 of each node, or of the ``wanted`` (N,) nodes."""
    # scales include the node itself; None means the whole graph
    scales = (neighbours + 1,) if neighbours + 1 < graph.k else None
    return Affinity.of(graph, order=order, scales=scales, wanted=wanted)


def smooth_rows(
    affinity: Affinity,
    features: Features,
    rows: NDArray[np.integer],
    places: NDArray[np.integer],
    out: NDArray[np.float16],
) -> None:
    """Write X (:func:`smooth`) of some rows (m,) to the rows ``places`` (m,) of ``out``."""

    def work(part: slice) -> None:
        mean = affinity.aggregate(features, rows[part])[0]
        norms = np.maximum(np.linalg.norm(mean, axis=1), np.float32(1e-12))
        store_divided(mean, norms, places[part], bits(out))

    features.scaled  # noqa: B018 computed once here, so that threads do not compute it at the same time
    threads.each(work, slices(len(rows), _BLOCK))


@dataclass(frozen=True)
class CandidateEdges:
    """The m candidate edges of some nodes, in the order of the nodes, with their structural features.

    Attributes
    ----------
    nodes : (n,) integers
        The nodes.
    local : (m,) int32
        Position of each edge's first end in ``nodes``.
    slots : (m,) int16
        Position of the second end in the first end's neighbour list.
    back : (m,) int16
        Position of the first end in the second end's neighbour list; -1 if it is not in the list.
    features : (m, 20) float32, (m, 30) in the second round
        The structural features; 11 more columns if strangers are known.
    """

    nodes: NDArray[np.integer]
    local: NDArray[np.int32]
    slots: NDArray[np.int16]
    back: NDArray[np.int16]
    features: NDArray[np.float32]

    @property
    def rows(self) -> NDArray[np.integer]:
        """The first end of each edge, (m,)."""
        return self.nodes[self.local]


@dataclass(frozen=True)
class Structure:
    """A kNN graph that computes the structural features of its candidate edges.

    Parameters
    ----------
    graph : KnnGraph
    columns : int
        k, the number of neighbours of each list that are used; at most the length of the longest list.
    candidates : int
        Number of neighbours of each node that are candidate edges.
    nodes : (N, d) float16, optional
        X (:func:`smooth`) of all nodes, or (m, d) of the nodes ``within``. Without it, column 19 is 0.
    within : (m,) integers, optional
        The nodes that can be an end of a requested edge. Default: all nodes.
    strangers : Strangers, optional
        The strangers of the same nodes. Similarities are then on the common scale, and columns 20 to 30 are computed.
    log_nodes : float, optional
        log N for column 30, if another number of nodes must be used. Default: log of the number of nodes.
    in_lists : (2, N) float32, optional
        Number of lists that have each node among their first ten, and among all entries. Default: counted in ``graph``.
    width : int, optional
        Length of the longest list, if the graph has only a part of the lists of a set.

    Raises
    ------
    InputError
        If ``columns`` is above 253.

    Attributes
    ----------
    ids, sims : (N, k) integers, (N, k) float32
        The compared lists: k = ``columns``, or the length of the longest list if that is less.
    norms : (N,) float32
        1 / Σ_m exp(-d_im^2 / σ) of each node.
    in_degree_logs : (2, N) float32, or None
        With strangers: log(1 + in_10) and log(1 + 79 in_k / k).
    """

    graph: KnnGraph
    columns: int
    candidates: int
    nodes: NDArray[np.float16] | None = None
    within: NDArray[np.integer] | None = None
    strangers: Strangers | None = None
    log_nodes: float | None = None
    in_lists: NDArray[np.float32] | None = None
    width: int | None = None
    ids: NDArray[np.integer] = field(init=False, repr=False)
    sims: NDArray[np.float32] = field(init=False, repr=False)
    _smoothed: NDArray[np.float16] = field(init=False, repr=False)
    in_degree_logs: NDArray[np.float32] | None = field(init=False, repr=False)
    _at_node: NDArray[np.int32] | None = field(init=False, repr=False)
    norms: NDArray[np.float32] = field(init=False, repr=False)
    _buffers: threading.local = field(default_factory=threading.local, repr=False)

    def __post_init__(self) -> None:
        if self.columns > MOST_NEIGHBOURS:
            raise InputError(f"structural features: at most {MOST_NEIGHBOURS} neighbours allowed; found {self.columns}")
        smoothed = np.empty((self.graph.num_nodes, 0), np.float16) if self.nodes is None else self.nodes
        object.__setattr__(self, "_smoothed", smoothed)
        width = max(1, longest(self.graph.ids[:, : self.columns])) if self.width is None else self.width
        graph = self.graph if self.strangers is None else self.strangers.without_ties(self.graph)
        object.__setattr__(self, "ids", graph.ids[:, :width])
        object.__setattr__(self, "sims", graph.sims[:, :width])
        object.__setattr__(self, "in_degree_logs", None if self.strangers is None else self._log_in_degrees())
        within, at_node = self.within, None
        if within is None:
            within = np.arange(self.graph.num_nodes)
        else:
            at_node = np.zeros(self.graph.num_nodes, np.int32)
            at_node[within] = np.arange(len(within))
        object.__setattr__(self, "_at_node", at_node)
        norms = np.zeros(self.graph.num_nodes, np.float32)
        threads.each(
            lambda part: nep_norms(within[part], self.sims, self.ids, self.centre, NEP_TABLE, self._row(), norms),
            slices(len(within), _BLOCK),
        )
        object.__setattr__(self, "norms", norms)

    def first_round(self, rows: NDArray[np.integer], every: bool = False, since: int = 0) -> CandidateEdges:
        """Return the candidate edges that some nodes own, with the features of the first round.

        Each candidate edge has one owner. If each end has the other among its candidates, the owner is the lower id.
        Otherwise it is the end that has the other among its candidates.

        Parameters
        ----------
        rows : (n,) integers
            The nodes.
        every : bool
            Return all candidate edges of the nodes, also those with another owner.
        since : int
            Return only edges with at least one end >= ``since``.
        """
        return self._pairs(rows, every, since, None)

    def second_round(self, rows: NDArray[np.integer], logits: EdgeLogits, since: int = 0) -> CandidateEdges:
        """Return the same edges with the features of the second round, given the first round's logits."""
        return self._pairs(rows, False, since, logits)

    def _row(self) -> NDArray[np.float32]:
        """Return memory for rows of similarities, laid out as ``sims``; sums depend on the layout."""
        return np.zeros((2, self.graph.k), np.float32)[:, : self.ids.shape[1]]

    @property
    def centre(self) -> np.float32:
        """The similarity that is 0 on the common scale."""
        return np.float32(0 if self.strangers is None else self.strangers.centre)

    @property
    def num_features(self) -> int:
        """Number of columns of the first round."""
        return FIRST_FEATURES + (0 if self.strangers is None else ABSOLUTE_FEATURES)

    @property
    def log_num_nodes(self) -> float:
        """The log N of column 30."""
        return float(np.log(self.graph.num_nodes)) if self.log_nodes is None else self.log_nodes

    def _log_in_degrees(self) -> NDArray[np.float32]:
        """Return log(1 + in_10) and log(1 + 79 in_k / k) of all nodes, (2, N) float32."""
        if self.in_lists is None:
            counts = np.zeros((2, self.graph.num_nodes), np.float32)
            in_degrees(self.ids, 10, counts)
        else:
            counts = self.in_lists.copy()
        counts[1] *= np.float32(79 / self.ids.shape[1])
        return np.log1p(counts, out=counts)

    def _pairs(self, rows: NDArray[np.integer], every: bool, since: int, before: EdgeLogits | None) -> CandidateEdges:
        own = self._buffers
        if not hasattr(own, "place"):
            own.place, own.row = np.zeros(self.graph.num_nodes, np.uint8), self._row()
        k = self.ids.shape[1]
        most = len(rows) * min(self.candidates, k)
        local, slots, back = np.empty(most, np.int32), np.empty(most, np.int16), np.empty(most, np.int16)
        known, again = self.strangers, before is not None
        width = self.num_features + (FEATURES - FIRST_FEATURES if again else 0)
        features = np.empty((most, width), np.float32)
        codes, degrees = (_NO_CODES, _NO_DEGREES) if before is None else (before.codes, before.degrees)
        prefixes = np.minimum(PREFIXES, k)
        count = pair_structure(
            rows, self.ids, self.sims, self.candidates, bits(self._smoothed), self._at_node, NEP_TABLE, self.norms,
            codes, PROBABILITY, degrees, again, every, since, own.place, own.row, prefixes, self.centre, local, slots,
            back, features,
        )  # fmt: skip
        if known is not None:
            nodes = (np.float32(known.median), np.float32(known.spread), known.node_median, known.node_spread)
            absolute_structure(
                rows, local, slots, back, self.ids, self.sims, nodes, self.in_degree_logs, self.log_num_nodes, count,
                features,
            )  # fmt: skip
        return CandidateEdges(rows, local[:count], slots[:count], back[:count], features[:count])


_NO_CODES, _NO_DEGREES = np.zeros((1, 1), np.int8), np.zeros(1, np.float32)


@overload
def encode(logits: NDArray[np.float32]) -> NDArray[np.int8]: ...


@overload
def encode(logits: Tensor) -> Tensor: ...


def encode(logits: NDArray[np.float32] | Tensor) -> NDArray[np.int8] | Tensor:
    """Encode logits as int8: multiples of 1/16, clipped to ±7.9. A tensor is encoded on its device."""
    if isinstance(logits, Tensor):
        return (logits * LOGIT_STEP).round().clamp(NO_LOGIT + 1, -NO_LOGIT - 1).to(torch.int8)
    return np.clip(np.rint(logits * LOGIT_STEP), NO_LOGIT + 1, -NO_LOGIT - 1).astype(np.int8)


class EdgeLogits:
    """The logits of all candidate edges, stored as one byte per entry of the kNN graph.

    ``codes`` (N, k) int8 are the logits in multiples of 1/16, clipped to ±7.9; -128 if an entry is not a candidate.
    ``degrees`` (N,) float32 are Σ_m p_im, once :meth:`sum_degrees` has computed them.
    """

    def __init__(self, structure: Structure, codes: NDArray[np.int8] | None = None) -> None:
        self._ids, self._candidates = structure.ids, structure.candidates
        self.codes = np.full(structure.ids.shape, NO_LOGIT, np.int8) if codes is None else codes
        self.degrees = np.zeros(len(structure.ids), np.float32)

    def put(self, pairs: CandidateEdges, codes: NDArray[np.int8]) -> None:
        """Store the codes of edges; at both ends if each end has the other among its candidates."""
        rows = pairs.rows
        self.codes[rows, pairs.slots] = codes
        mutual = (pairs.back >= 0) & (pairs.back < self._candidates)
        self.codes[self._ids[rows[mutual], pairs.slots[mutual]], pairs.back[mutual]] = codes[mutual]

    def sum_degrees(self, rows: NDArray[np.integer]) -> None:
        """Compute the degrees n_i = Σ_m p_im of some nodes."""
        threads.each(
            lambda part: row_sums(rows[part], self.codes, PROBABILITY, self.degrees), slices(len(rows), _BLOCK)
        )
