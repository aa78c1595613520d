"""Measure how doubtful each cluster is, and find pairs of clusters that could be merged. The time is near linear.

* cohesion: mean p of the kept edges in a cluster; 0 without edges;
* density: number of kept edges divided by the number of pairs of members; 0 for a single instance;
* weakest bridge and suspicion: the best cut of one or two edges, and its rating (:mod:`starfc.review.cuts`);
* merge candidates: pairs of clusters with failed parsed edges between them, and the strongest of these edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from starfc.clustering.components import components
from starfc.clustering.parsing import Decision, ParsedEdges
from starfc.graph.edges import EdgeList, sums_of_rows
from starfc.review.cuts import Cuts, best_cuts
from starfc.review.pairs import Pairs


@dataclass(frozen=True)
class Review:
    """Measures of C clusters.

    Attributes
    ----------
    sizes : (C,) int64
        Number of instances.
    edges : (C,) int64
        Number of kept edges.
    cohesion, density : (C,) float32
        See the docstring of the module.
    cuts : Cuts
        The best cuts.
    bridge_scores : (C,) float32
        p of ``cuts.first``, the weakest bridge; NaN without a cut.
    """

    sizes: NDArray[np.int64]
    edges: NDArray[np.int64]
    cohesion: NDArray[np.float32]
    density: NDArray[np.float32]
    cuts: Cuts
    bridge_scores: NDArray[np.float32]

    @property
    def order(self) -> NDArray[np.int64]:
        """Return the clusters, most doubtful first: by falling suspicion, then by rising cohesion, then by label."""
        return np.lexsort((self.cohesion, -self.cuts.suspicion))


@dataclass(frozen=True)
class Merges:
    """M pairs of clusters with parsed edges between them, none of which was kept. The highest margin comes first.

    Attributes
    ----------
    first, second : (M,) int64
        Labels of the clusters; first < second.
    count : (M,) int64
        Number of edges between them.
    a, b : (M,) int64
        Ends of the strongest edge; a is in the cluster ``first``.
    scores, intimacy : (M,) float32
        p and node intimacy of the strongest edge.
    margins : (M,) float32
        Node intimacy of the strongest edge minus its threshold (negative: it failed). For communities: p.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    count: NDArray[np.int64]
    a: NDArray[np.int64]
    b: NDArray[np.int64]
    scores: NDArray[np.float32]
    intimacy: NDArray[np.float32]
    margins: NDArray[np.float32]


def review(edges: ParsedEdges | Pairs, labels: NDArray[np.int64]) -> Review:
    """Measure every cluster.

    Parameters
    ----------
    edges : ParsedEdges or Pairs
        The edges of the clustering. Kept edges must lie within a cluster.
    labels : (N,) int64
        Cluster of every row, 0..C-1 (:func:`numbered`). Some clusters may have no instance. -1: a removed row.
    """
    pairs = edges if isinstance(edges, Pairs) else Pairs.of(edges)
    there = labels >= 0
    sizes = np.bincount(labels[there])
    total, number = (np.bincount(labels[there], x[there]) for x in sums_of_rows(pairs.indptr, pairs.scores, pairs.kept))
    cohesion = (total / np.maximum(number, 1)).astype(np.float32)
    number = number.astype(np.int64) // 2  # each edge is listed at both ends
    density = (number / np.maximum(sizes * (sizes - 1) // 2, 1)).astype(np.float32)
    cuts = best_cuts(pairs, labels, len(sizes))
    bridge_scores = np.full(len(sizes), np.nan, np.float32)
    for c in np.flatnonzero(cuts.first[:, 0] >= 0):
        bridge_scores[c] = pairs.scores[pairs.find(*cuts.first[c])]
    return Review(sizes, number, cohesion, density, cuts, bridge_scores)


def numbered(
    pairs: Pairs, labels: NDArray[np.int64], removed: NDArray[np.integer] | Sequence[int] = ()
) -> NDArray[np.int64]:
    """Return labels (N,) int64 in which clusters that a run left out as too small (-1) have numbers again.

    These clusters are the connected components of the kept edges. Their numbers follow those of the other clusters.
    Rows that were ``removed`` keep -1.
    """
    left_out = labels < 0
    left_out[np.asarray(removed, np.int64)] = False
    if not left_out.any():
        return labels
    indptr, cols, strength, _ = pairs.kept_graph()
    members = components(EdgeList(indptr, cols, strength, symmetric=True))
    whole = labels.copy()
    whole[left_out] = labels.max() + 1 + np.unique(members[left_out], return_inverse=True)[1]
    return whole


COLUMNS = {
    "cohesion": pa.float32(),
    "suspicion": pa.float32(),
    "weakest_bridge_a": pa.int64(),
    "weakest_bridge_b": pa.int64(),
    "weakest_bridge_score": pa.float32(),
}


def instance_columns(
    edges: ParsedEdges,
    labels: NDArray[np.int64],
    earlier: pa.Table | None = None,
    changed: NDArray[np.bool_] | None = None,
) -> dict[str, pa.Array]:
    """Return columns of clusters.parquet: the measures of each instance's cluster, (N,) each.

    ``cohesion`` and ``suspicion`` are float32. ``weakest_bridge_a``, ``weakest_bridge_b`` (rows, int64) and
    ``weakest_bridge_score`` (p, float32) are null if no cut of one or two edges splits the cluster.

    Parameters
    ----------
    edges : ParsedEdges
        The edges of the clustering.
    labels : (N,) int64
        Cluster of every row, as for :func:`review`: instances that a run leaves out need a number (:func:`numbered`).
    earlier : pa.Table, optional
        These columns before instances were added or removed.
    changed : (C,) bool, optional
        Clusters whose instances or edges have changed since ``earlier``. Only these are measured.
    """
    pairs = Pairs.of(edges)
    if earlier is not None:
        assert changed is not None  # always given together with earlier
        measured = changed[labels] | (labels < 0)
        pairs = replace(pairs, kept=pairs.kept & np.repeat(measured, np.diff(pairs.indptr)))
    found = review(pairs, labels)
    ends = np.append(found.cuts.first, [[-1, -1]], axis=0)[labels]  # label -1 selects the last row
    values = {
        "cohesion": np.append(found.cohesion, np.float32(0))[labels],
        "suspicion": np.append(found.cuts.suspicion, np.float32(0))[labels],
        "weakest_bridge_a": ends[:, 0],
        "weakest_bridge_b": ends[:, 1],
        "weakest_bridge_score": np.append(found.bridge_scores, np.float32(np.nan))[labels],
    }
    if earlier is not None:
        kept = ~measured[: earlier.num_rows]
        for name, column in values.items():
            missing = np.nan if name.endswith("score") else -1
            before = earlier[name].fill_null(pa.scalar(missing, earlier[name].type)).to_numpy()
            column[: earlier.num_rows][kept] = before[kept]
    none = values["weakest_bridge_a"] < 0
    return {name: pa.array(values[name], mask=none if "bridge" in name else None) for name in COLUMNS}


def merge_candidates(pairs: Pairs, labels: NDArray[np.int64], rule: Decision) -> Merges:
    """Find pairs of clusters that a parsed edge would join if it had been kept.

    They are sorted by falling margin of the strongest edge. For communities there is no threshold, so the margin is p.
    """
    entries = np.flatnonzero((pairs.rows < pairs.cols) & (labels[pairs.rows] != labels[pairs.cols]) & ~pairs.kept)
    ends = np.stack([pairs.rows[entries], pairs.cols[entries]]).astype(np.int64)
    ends = np.where(labels[ends[0]] < labels[ends[1]], ends, ends[::-1])
    margins = pairs.margins(rule)[entries]
    keys = labels[ends[0]] * (int(labels.max(initial=0)) + 1) + labels[ends[1]]
    order = np.lexsort((ends[1], ends[0], -pairs.scores[entries], -margins, keys))
    starts = np.flatnonzero(np.diff(keys[order], prepend=-1))
    count = np.diff(starts, append=len(order))
    best = order[starts]
    nearest = np.lexsort((keys[best], -count, -margins[best]))
    best, count = best[nearest], count[nearest]
    a, b = ends[:, best]
    e = entries[best]
    return Merges(labels[a], labels[b], count, a, b, pairs.scores[e], pairs.intimacy[e], margins[best])
