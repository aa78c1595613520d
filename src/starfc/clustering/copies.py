"""Set copies aside before clustering, and add them to the clusters afterwards.

A copy is a row that has the same direction as an earlier row, its representative (:mod:`starfc.data.copies` finds
copies). Many equal rows would fill each other's neighbour lists, and no other row would fit into these lists.
Therefore only representatives are clustered. Each copy then gets one edge, to its representative, with score 1 and
intimacy 1. This edge is always kept.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from starfc.clustering.components import largest_first
from starfc.clustering.parsing import ParsedEdges
from starfc.clustering.pipeline import Clustering, spread
from starfc.clustering.summary import Summary, kept
from starfc.data.copies import find_copies
from starfc.data.dataset import Features
from starfc.graph.neighbours import id_dtype

log = logging.getLogger("starfc")


def collapsed(
    features: Features, stored: Path | None = None, folder: Path | None = None
) -> tuple[Features, NDArray[np.int64] | None]:
    """Return the features without copies, and the representative of each row. Log the number of copies.

    Parameters
    ----------
    features : Features
        (N, d).
    stored : path, optional
        Path of a stored kNN graph of all rows that will be used. Copies are then kept.
    folder : path, optional
        Folder for a temporary file of the remaining rows, if ``features`` are memory-mapped
        (:meth:`~starfc.data.dataset.Features.subset`). Default: memory.

    Returns
    -------
    Features
        The representatives, or all rows if there are no copies or copies are kept.
    (N,) int64 or None
        The lowest row of the same direction for each row; None if all rows are returned.
    """
    representative = find_copies(features)
    copies = copies_among(representative)
    if not copies.any():
        return features, None
    found = f"{features.name}: {copies.sum():,} of {len(features):,} rows are copies of others (the same direction)"
    if stored is not None:
        log.warning(
            "%s. They are kept, because the kNN graph %s is of all rows. Copies fill each other's neighbour lists; "
            "without that graph, only one row of each direction would be clustered",
            found,
            stored,
        )
        return features, None
    log.info("%s: one row of each direction is clustered, and its copies get the same label", found)
    return features.subset(np.flatnonzero(~copies), folder), representative


def sizes_of(representative: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the number of rows of each representative, itself included, in increasing order of representatives."""
    return np.unique(representative, return_counts=True)[1]


def copies_among(representative: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Return which rows are copies, (N,) bool."""
    return representative != np.arange(len(representative))


def with_copies(result: Clustering, representative: NDArray[np.integer]) -> Clustering:
    """Return the clustering of all N rows, given the clustering of the representatives.

    A copy gets the label and the confidence of its representative. A representative without a refined edge gets
    confidence 1 if it has a copy. In the summary, each edge to a copy counts as a candidate that was parsed and
    refined.

    Parameters
    ----------
    result : Clustering
        The clustering of the representatives.
    representative : (N,) integers
        The lowest row of the same direction for each row.
    """
    copies, n = copies_among(representative), len(representative)
    if not copies.any():
        return result
    others = np.flatnonzero(~copies)
    place = np.empty(n, np.int64)
    place[others] = np.arange(len(others))
    place = place[representative]
    members = np.empty(result.num_clusters, np.int64)
    members[result.labels[::-1]] = others[::-1]  # the first of each cluster is written last
    labels = largest_first(members[result.labels[place]])
    confidence = np.zeros(n, np.float32)
    confidence[others] = result.confidence
    parsed = result.parsed
    if parsed is not None:
        parsed = join_copies(spread(parsed, others, n), representative)
        # A copy gets the stranger statistics of its representative: it replaces the representative if that is removed.
        if parsed.context is not None:
            known = parsed.context.strangers
            known = replace(
                known, node_median=known.node_median[representative], node_spread=known.node_spread[representative]
            )
            parsed = replace(parsed, context=replace(parsed.context, strangers=known))
    summary = _summary(result, labels[others], labels, labels[copies])
    confidence = copied_confidence(confidence, representative)
    return replace(result, labels=labels, confidence=confidence, summary=summary, parsed=parsed)


def copied_confidence(confidence: NDArray[np.float32], representative: NDArray[np.integer]) -> NDArray[np.float32]:
    """Return the confidence (N,) of all rows; a copy gets the confidence of its representative.

    A representative of confidence 0 that has copies gets 1, because its edges to the copies have p = 1.
    """
    copies = copies_among(representative)
    if not copies.any():
        return confidence
    out, alone = confidence.copy(), representative[copies]
    out[alone[out[alone] == 0]] = 1
    return out[representative]


def join_copies(parsed: ParsedEdges, representative: NDArray[np.integer]) -> ParsedEdges:
    """Add an edge from each copy to its representative, in both directions if the list is symmetric.

    In ``parsed``, copies must have no edges.
    """
    copies = np.flatnonzero(copies_among(representative))
    if not copies.size:
        return parsed
    edges, n = parsed.edges, len(representative)
    dtype, targets = id_dtype(n), representative[copies]
    rows = np.concatenate([copies, targets]) if edges.symmetric else copies
    cols = np.concatenate([targets, copies]) if edges.symmetric else targets
    edges = replace(edges, cols=edges.cols.astype(dtype, copy=False))
    merged, at = edges.with_edges(rows, cols, np.ones(len(rows), np.float32))
    return replace(
        parsed,
        edges=merged,
        intimacy=np.insert(parsed.intimacy, at, np.float32(1)),
        kept=np.insert(parsed.kept, at, True),
    )


def _summary(
    result: Clustering,
    others: NDArray[np.int64],
    labels: NDArray[np.int64],
    of_copies: NDArray[np.int64],
) -> Summary:
    """Return the summary with the edges to copies added.

    Parameters
    ----------
    others : (m,) int64
        The new labels of the m rows of ``result``.
    labels : (N,) int64
        The new labels of all rows.
    of_copies : (c,) int64
        The new labels of the copies.
    """
    before, added = result.summary, len(of_copies)
    count = int(np.count_nonzero(np.bincount(labels) > 1))
    name = np.empty(result.num_clusters, np.int64)  # the new label of each label of `result`
    name[result.labels] = others
    edges, scores = np.zeros(result.num_clusters, np.int64), np.zeros(result.num_clusters, np.float64)
    of_edges = name[: len(before.cluster_edges)]
    edges[of_edges], scores[of_edges] = before.cluster_edges, before.cluster_scores
    more = np.bincount(of_copies, minlength=result.num_clusters)
    scores = (scores * edges + more) / np.maximum(edges + more, 1)
    edges = edges + more
    return Summary(
        before.candidates + added,
        replace(before.parsed, edges=before.parsed.edges + added),
        kept(labels, before.refined.edges + added),
        edges[:count],
        scores[:count].astype(np.float32),
    )
