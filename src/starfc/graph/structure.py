"""Structural features of an edge: what the kNN graph says of two nodes, whoever they are.

A candidate edge is a pair {i, j} of which one is among the first ``candidates`` neighbours of the other. Of it is seen
how the two lists of k neighbours overlap, and how the similarity s_ij stands to those around both nodes. None of it
depends on where in space the nodes lie, so it carries over to identities that were never seen; only differences of
similarities enter, so it carries over to data that lie closer together or farther apart. One column is of the nodes
themselves: how similar they are after one graph convolution without weights, X = normalise(ÂF).

With depth_i(m) = 1..k where m is i's first to k-th neighbour, depth_i(i) = 0, and C the common neighbours of i and j:

====== ============================================================================================================
column of every round
====== ============================================================================================================
0-4    |{m : depth_i(m) <= t and depth_j(m) <= t}| / t for t = 5, 10, 20, 40, k; i and j count
5      log(NEP_ij + 1e-4) of the neighbour-based edge probability 1/2 Σ_{m in C} (P_im + P_jm), where P is the
       row-normalised exp(-d^2 / σ) of the squared distances d^2 = 2 - 2 s, σ = 0.1 (arXiv 2408.13431)
6      mean over C of min(s_im, s_jm), minus s_ij
7-18   similarity to the 1st, 5th, 10th, 20th, 40th, k-th neighbour, minus s_ij: of the node of the denser surroundings
       (the higher similarity to its 20th neighbour; of equals, to the first of these that differs), then of the other
19     <X_i, X_j> - s_ij, with Â of the first ``smoothing`` neighbours; 0 where there is no smoothing
====== ============================================================================================================

Where the strangers of the set are known (:mod:`starfc.graph.strangers`), similarities are on the common scale s', and
an edge is seen in absolute units, too. With z as defined there, rank_i(j) = 1..k the place of j in i's list, k + 1
where it is not in it, and in_t(j) the number of lists that hold j among their first t:

====== ============================================================================================================
20     z_ij / 4, within [-2, 8]
21-22  min and max of z_i|j and z_j|i, / 4, within [-2, 8]
23     s'_ij
24-25  log of min and max of rank_i(j) and rank_j(i)
26-27  min and max of log(1 + in_10) of both nodes
28-29  the same of in_k, as a share of k that is 79 for a list of 79
30     (log N + log P(Z > min(z_i|j, z_j|i))) / 5, Z standard normal: strangers expected to be as similar; in [-8, 2]
====== ============================================================================================================

A second round sees, besides, what the first one thinks. With its probabilities p (0 for what is no candidate), degrees
n_i = Σ_m p_im, a <= b the two of n_i - p_ij and n_j - p_ij, each with 1/2 added, and c = Σ_{m in C} p_im p_jm, behind
the columns above (the numbers are those without strangers):

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

import numpy as np
from numpy.typing import NDArray

from starfc.data.dataset import Features, as_features
from starfc.errors import InputError
from starfc.graph.affinity import Affinity
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
from starfc.runtime import threads
from starfc.runtime.defaults import MOST_NEIGHBOURS
from starfc.runtime.half import bits
from starfc.runtime.products import slices
from starfc.storage.scratch import scratch_array

PREFIXES = (5, 10, 20, 40)
_BLOCK = 1 << 10  # nodes at a time: 1 MiB of float32 at 256-d
SIGMA = 0.1  # of NEP
FIRST_FEATURES = 20
FEATURES = 30
ABSOLUTE_FEATURES = 11  # behind the first round's, where strangers are known

_PROBABILITY = (1 / (1 + np.exp(-np.arange(NO_LOGIT, -NO_LOGIT) / LOGIT_STEP))).astype(np.float32)
_PROBABILITY[0] = 0.0
_NEP = np.exp((2 * np.arange(SIM_STEPS + 2) / SIM_STEPS - 2) / SIGMA).astype(np.float32)


def smooth(
    graph: KnnGraph,
    features: Features | NDArray[np.float32],
    neighbours: int,
    order: NDArray[np.integer] | None = None,
    scratch: Path | None = None,
) -> NDArray[np.float16]:
    """One graph convolution without weights, X = normalise(ÂF), with Â of the first neighbours of every node.

    Parameters
    ----------
    features : Features, or (N, d) float32 L2-normalised
    neighbours : int
        0: no smoothing, and an array without columns.
    order : (N,) integers, optional
        Order in which to take the nodes; it changes no result.
    scratch : path, optional
        Folder for a file of 2 N d bytes that holds the result (the system's folder for temporary files otherwise).

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
    smooth_rows(affinity, features, order, order, out)
    return out


def smoothing_affinity(
    graph: KnnGraph,
    neighbours: int,
    order: NDArray[np.integer] | None = None,
    wanted: NDArray[np.bool_] | None = None,
) -> Affinity:
    """The affinity graph of the first neighbours, at least 1, of every node, or of those that are wanted."""
    # the node itself counted; None: the whole graph
    scales = (neighbours + 1,) if neighbours + 1 < graph.k else None
    return Affinity.of(graph, order=order, scales=scales, wanted=wanted)


def smooth_rows(
    affinity: Affinity,
    features: Features,
    rows: NDArray[np.integer],
    places: NDArray[np.integer],
    out: NDArray[np.float16],
) -> None:
    """X of :func:`smooth` of some rows, at their places in ``out``."""

    def work(part: slice) -> None:
        mean = affinity.aggregate(features, rows[part])[0]
        norms = np.maximum(np.linalg.norm(mean, axis=1), np.float32(1e-12))
        store_divided(mean, norms, places[part], bits(out))

    features.scaled  # noqa: B018 made once, before the threads
    threads.each(work, slices(len(rows), _BLOCK))


@dataclass(frozen=True)
class CandidateEdges:
    """m candidate edges of some nodes, in the order of these, with their features.

    Edge e joins ``rows[e] = nodes[local[e]]`` and its neighbour ``slots[e]`` of the graph; ``back`` (m,) is where that
    one's list has ``rows[e]``, -1 where it does not. ``features`` (m, 20), or (m, 30) in the second round,
    float32; 11 more where strangers are known.
    """

    nodes: NDArray[np.integer]
    local: NDArray[np.int32]
    slots: NDArray[np.int16]
    back: NDArray[np.int16]
    features: NDArray[np.float32]

    @property
    def rows(self) -> NDArray[np.integer]:
        return self.nodes[self.local]


@dataclass(frozen=True)
class Structure:
    """A kNN graph whose candidate edges are to be seen by their structure.

    Parameters
    ----------
    graph : KnnGraph
    columns : int
        k, neighbours of a list that are looked at; cut to those that the longest list has.
    candidates : int
        Neighbours of a node that are candidate edges.
    nodes : (N, d) float16, optional
        X of :func:`smooth`, or (m, d), those of ``within``; without it column 19 is 0.
    within : (m,) integers, optional
        Nodes that edges are asked of, at either end; all where it is None.
    strangers : Strangers, optional
        Of the same nodes: similarities are then on the common scale, and columns 20 to 30 are made.
    log_nodes : float, optional
        log N of column 30, where the set is judged by an earlier time's number of nodes.

    Raises
    ------
    InputError
        More columns than 253.
    """

    graph: KnnGraph
    columns: int
    candidates: int
    nodes: NDArray[np.float16] | None = None
    within: NDArray[np.integer] | None = None
    strangers: Strangers | None = None
    log_nodes: float | None = None
    ids: NDArray[np.integer] = field(init=False, repr=False)
    sims: NDArray[np.float32] = field(init=False, repr=False)
    _smoothed: NDArray[np.float16] = field(init=False, repr=False)
    _degrees: NDArray[np.float32] | None = field(init=False, repr=False)
    _at_node: NDArray[np.int32] | None = field(init=False, repr=False)
    _norms: NDArray[np.float32] = field(init=False, repr=False)
    _buffers: threading.local = field(default_factory=threading.local, repr=False)

    def __post_init__(self) -> None:
        if self.columns > MOST_NEIGHBOURS:
            raise InputError(f"structural features: at most {MOST_NEIGHBOURS} neighbours; found {self.columns}")
        smoothed = np.empty((self.graph.num_nodes, 0), np.float16) if self.nodes is None else self.nodes
        object.__setattr__(self, "_smoothed", smoothed)
        width = max(1, longest(self.graph.ids[:, : self.columns]))
        graph = self.graph if self.strangers is None else self.strangers.rescaled(self.graph)
        object.__setattr__(self, "ids", graph.ids[:, :width])
        object.__setattr__(self, "sims", graph.sims[:, :width])
        object.__setattr__(self, "_degrees", None if self.strangers is None else self._log_in_degrees())
        within, at_node = self.within, None
        if within is None:
            within = np.arange(self.graph.num_nodes)
        else:
            at_node = np.zeros(self.graph.num_nodes, np.int32)
            at_node[within] = np.arange(len(within))
        object.__setattr__(self, "_at_node", at_node)
        norms = np.zeros(self.graph.num_nodes, np.float32)
        threads.each(
            lambda part: nep_norms(within[part], self.sims, self.ids, _NEP, norms), slices(len(within), _BLOCK)
        )
        object.__setattr__(self, "_norms", norms)

    def first_round(self, rows: NDArray[np.integer], every: bool = False, since: int = 0) -> CandidateEdges:
        """The candidate edges that some nodes own, with the first round's features.

        Every candidate edge is owned by one of its ends: by the lower id where both list the other among their
        candidates, else by the one that does. ``every``: all candidates of these nodes instead, whoever owns them.
        ``since``: only edges with an end of this id or above.
        """
        return self._pairs(rows, every, since, None)

    def second_round(self, rows: NDArray[np.integer], logits: EdgeLogits, since: int = 0) -> CandidateEdges:
        """The same edges with the second round's features."""
        return self._pairs(rows, False, since, logits)

    @property
    def num_features(self) -> int:
        """Columns of the first round."""
        return FIRST_FEATURES + (0 if self.strangers is None else ABSOLUTE_FEATURES)

    def _log_in_degrees(self) -> NDArray[np.float32]:
        counts = np.zeros((2, self.graph.num_nodes), np.float32)
        in_degrees(self.ids, 10, counts)
        counts[1] *= np.float32(79 / self.ids.shape[1])
        return np.log1p(counts, out=counts)

    def _pairs(self, rows: NDArray[np.integer], every: bool, since: int, before: EdgeLogits | None) -> CandidateEdges:
        own = self._buffers
        if not hasattr(own, "place"):
            own.place = np.zeros(self.graph.num_nodes, np.uint8)
        k = self.ids.shape[1]
        most = len(rows) * min(self.candidates, k)
        local, slots, back = np.empty(most, np.int32), np.empty(most, np.int16), np.empty(most, np.int16)
        known, again = self.strangers, before is not None
        width = self.num_features + (FEATURES - FIRST_FEATURES if again else 0)
        features, centre = np.empty((most, width), np.float32), np.float32(0 if known is None else known.centre)
        codes, degrees = (_NO_CODES, _NO_DEGREES) if before is None else (before.codes, before.degrees)
        prefixes = np.minimum(PREFIXES, k)
        count = pair_structure(
            rows, self.ids, self.sims, self.candidates, bits(self._smoothed), self._at_node, _NEP, self._norms, codes,
            _PROBABILITY, degrees, again, every, since, own.place, prefixes, centre, local, slots, back, features,
        )  # fmt: skip
        if known is not None:
            nodes = (np.float32(known.median), np.float32(known.spread), known.node_median, known.node_spread)
            log_nodes = np.log(self.graph.num_nodes) if self.log_nodes is None else self.log_nodes
            absolute_structure(
                rows, local, slots, back, self.ids, self.graph.sims, nodes, self._degrees, log_nodes, count, features
            )
        return CandidateEdges(rows, local[:count], slots[:count], back[:count], features[:count])


_NO_CODES, _NO_DEGREES = np.zeros((1, 1), np.int8), np.zeros(1, np.float32)


def encode(logits: NDArray[np.float32]) -> NDArray[np.int8]:
    """Logits in sixteenths, within ±7.9."""
    return np.clip(np.rint(logits * LOGIT_STEP), NO_LOGIT + 1, -NO_LOGIT - 1).astype(np.int8)


class EdgeLogits:
    """Logits of the candidate edges, kept beside the kNN graph: a byte for every entry.

    ``codes`` (N, k) int8 are the logits in sixteenths, within ±7.9; -128 where an entry is no candidate of its node.
    """

    def __init__(self, structure: Structure, codes: NDArray[np.int8] | None = None) -> None:
        self._ids, self._candidates = structure.ids, structure.candidates
        self.codes = np.full(structure.ids.shape, NO_LOGIT, np.int8) if codes is None else codes
        self.degrees = np.zeros(len(structure.ids), np.float32)

    def put(self, pairs: CandidateEdges, codes: NDArray[np.int8]) -> None:
        """Store codes at the entries of their edges, of both ends where both have them among their candidates."""
        rows = pairs.rows
        self.codes[rows, pairs.slots] = codes
        mutual = (pairs.back >= 0) & (pairs.back < self._candidates)
        self.codes[self._ids[rows[mutual], pairs.slots[mutual]], pairs.back[mutual]] = codes[mutual]

    def sum_degrees(self, rows: NDArray[np.integer]) -> None:
        """n_i = Σ_m p_im of some nodes."""
        threads.each(
            lambda part: row_sums(rows[part], self.codes, _PROBABILITY, self.degrees), slices(len(rows), _BLOCK)
        )
