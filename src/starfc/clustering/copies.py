"""Copies in a clustering: rows that have the direction of an earlier one, their representative.

Equal rows would fill one another's lists of neighbours, and then say nothing of any other row. So only representatives
are clustered (:mod:`starfc.data.copies` finds them), and their copies come back here: each gets an edge to its
representative, of score 1 and intimacy 1, which is kept; nothing else leads to it.
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
    """One row of each direction, and the row that stands for each, (N,): the lowest of its direction.

    Where no row is a copy these are all rows, and None. What is found is logged.

    Parameters
    ----------
    stored : path, optional
        A kNN graph of all rows that is to be used: then all of them stay.
    folder : path, optional
        Where the rows go if those given are memory-mapped (:meth:`~starfc.data.dataset.Features.subset`).
    """
    representative = find_copies(features)
    copies = copies_among(representative)
    if not copies.any():
        return features, None
    found = f"{features.name}: {copies.sum():,} of {len(features):,} rows are copies of others (the same direction)"
    if stored is not None:
        log.warning(
            "%s, which are kept, because the kNN graph %s is of all rows: they fill one another's lists, and without "
            "that graph one of each would be clustered",
            found,
            stored,
        )
        return features, None
    log.info("%s: one of each is clustered, and its copies go where it goes", found)
    return features.subset(np.flatnonzero(~copies), folder), representative


def sizes_of(representative: NDArray[np.integer]) -> NDArray[np.int64]:
    """How many rows each representative stands for, itself among them, by rising representative."""
    return np.unique(representative, return_counts=True)[1]


def copies_among(representative: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Which rows are copies: (N,) bool."""
    return representative != np.arange(len(representative))


def with_copies(result: Clustering, representative: NDArray[np.integer]) -> Clustering:
    """The clustering of all N rows, from that of the representatives.

    A copy has the label and the confidence of its representative; one without a refined edge has confidence 1 as soon
    as it has a copy. Edges to copies count in the summary as candidates that were parsed and refined.

    Parameters
    ----------
    representative : (N,) integers
        For every row the lowest of the same direction.
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
        if parsed.context is not None:  # a copy has the strangers of its representative, whose place it may take
            known = parsed.context.strangers
            known = replace(
                known, node_median=known.node_median[representative], node_spread=known.node_spread[representative]
            )
            parsed = replace(parsed, context=replace(parsed.context, strangers=known))
    summary = _summary(result, labels[others], labels, labels[copies])
    confidence = copied_confidence(confidence, representative)
    return replace(result, labels=labels, confidence=confidence, summary=summary, parsed=parsed)


def copied_confidence(confidence: NDArray[np.float32], representative: NDArray[np.integer]) -> NDArray[np.float32]:
    """Confidence (N,), where copies have that of their representative, which is 1 where its only edges lead to them."""
    copies = copies_among(representative)
    if not copies.any():
        return confidence
    out, alone = confidence.copy(), representative[copies]
    out[alone[out[alone] == 0]] = 1
    return out[representative]


def join_copies(parsed: ParsedEdges, representative: NDArray[np.integer]) -> ParsedEdges:
    """The edges with one more for every copy, in either direction where the list is symmetric.

    Nothing leads to or from a copy before.
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
    """The summary with the edges to copies; ``others`` are the new labels of the rows of ``result``."""
    before, added = result.summary, len(of_copies)
    count = int(np.count_nonzero(np.bincount(labels) > 1))
    name = np.empty(result.num_clusters, np.int64)  # the new label of each earlier one
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
