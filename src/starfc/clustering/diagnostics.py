"""Check a clustering without labels: edges kept by each threshold, cluster sizes, and suspiciously large clusters.

Thresholds that were chosen on other data can be far too low for the current data. A few wrong edges then join one
identity after another, until one component holds a large part of the graph. Pairwise precision falls to almost 0,
while all statistics of single edges still look good. The size of the largest component shows the problem, and it needs
no labels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from starfc.clustering.pipeline import Clustering
from starfc.clustering.summary import Kept
from starfc.runtime.words import advice, word


def diagnose(result: Clustering, giant_share: float) -> dict[str, Any]:
    """Return the effect of the thresholds, for the record of a run.

    Parameters
    ----------
    result : Clustering
        The clustering of N instances.
    giant_share : float
        Clusters with more than this share of the N instances are listed as giants.

    Returns
    -------
    dict
        ``candidates``: number of scored edges. ``parsed`` and ``refined``: number of edges kept, their share of the
        candidates, number of components, size of the largest component and its share of N. ``sizes``: numbers of
        clusters and instances by cluster size, in powers of two. ``giants``: label, size, share, edges per instance
        and mean p of each giant, largest first.
    """
    summary, sizes = result.summary, np.bincount(result.labels)
    n = len(result.labels)
    giants = [
        {
            "label": label,
            "size": int(sizes[label]),
            "share": float(sizes[label] / n),
            "edges_per_instance": float(summary.cluster_edges[label] / sizes[label]),
            "mean_p": float(summary.cluster_scores[label]),
        }
        # a cluster of one instance has no edges, so none can be wrong
        for label in np.flatnonzero((sizes > giant_share * n) & (sizes > 1)).tolist()
    ]
    return {
        "candidates": summary.candidates,
        "parsed": _of(summary.parsed, summary.candidates, n),
        "refined": _of(summary.refined, summary.candidates, n),
        "sizes": size_histogram(sizes),
        "giant_share": giant_share,
        "giants": giants,
    }


def _of(kept: Kept, candidates: int, n: int) -> dict[str, float]:
    return {
        "edges": kept.edges,
        "share": kept.edges / max(candidates, 1),
        "components": kept.components,
        "largest": kept.largest,
        "largest_share": kept.largest / n,
    }


def size_histogram(sizes: np.ndarray) -> list[dict[str, int]]:
    """Count clusters and instances by cluster size, in powers of two.

    ``sizes`` (C,) are the cluster sizes, all above 0. Each entry of the result covers the sizes ``low`` to ``high``.
    """
    power = np.frexp(sizes)[1] - 1  # floor(log2), exact
    clusters = np.bincount(power)
    instances = np.zeros(len(clusters), np.int64)
    np.add.at(instances, power, sizes)
    return [
        {"low": 2**b, "high": 2 ** (b + 1) - 1, "clusters": int(clusters[b]), "instances": int(instances[b])}
        for b in range(len(clusters))
    ]


OUTSIDE = 0.2  # warn if more than this share of the context's numbers is unlike the training data
FEW_EDGES = 0.95  # warn if approximate lists have a smaller share of the edges that matter
DOUBTFUL_F = 0.85  # warn if the expected pairwise F-score is below this
SURE = 0.8  # an expected score from here on counts as good


def doubts(
    result: Clustering,
    columns: int,
    copies: NDArray[np.integer] | None = None,
    found_edges: float | None = None,
    trained: int = 0,
) -> list[str]:
    """Return the reasons to doubt a clustering, one sentence each; empty if there are none.

    Parameters
    ----------
    result : Clustering
        The clustering of the N distinct instances, without copies.
    columns : int
        Neighbours in each row of the kNN graph, the row itself not counted.
    copies : (N,) integers, optional
        The number of instances of each distinct instance, itself and its copies. Default: 1 each.
    found_edges : float, optional
        Of an approximate kNN graph: the share of the edges that matter that it has.
    trained : int
        Neighbours in the lists that the model was trained on; 0 if it does not depend on them.
    """
    found, sizes = [], np.bincount(result.labels, copies)
    n = int(sizes.sum())
    if result.outside is not None and result.outside > OUTSIDE:
        found.append(
            f"the set is unlike the data that the model was trained on ({result.outside:.0%} of the numbers that "
            "describe the set are more than three standard deviations away): probabilities may be too high or too low; "
            f"check the clusters{advice(' with {}', 'starfc report')}, or choose thresholds on labelled data"
            f"{advice(' with {}', 'starfc tune')}"
        )
    if result.estimate is not None and columns < trained:
        found.append(
            f"neighbour lists have {columns} rows; in the training of the model they had {trained}: the expected "
            "scores can be far from the true ones"
        )
    alone = int(np.count_nonzero(sizes == 1))
    if n > 1 and result.summary.candidates == 0:
        if alone:
            found.append(
                f"{alone:,} of {n:,} instances are clusters of one: all pairs of instances are equally similar, so "
                "similarity does not show which instances belong together"
            )
    elif n > 1 and alone == n:
        found.append(
            f"all {n:,} instances are clusters of one: either no two of them have the same identity, or the embedding "
            "does not show it"
        )
    elif n >= 20 and alone > n / 2:
        found.append(
            f"{alone:,} of {n:,} instances are clusters of one: either most identities have only one instance, or the "
            "embedding does not show which instances belong together"
        )
    large = int(sizes[np.bincount(result.labels) > 2 * columns].sum())
    unsure = result.estimate is None or result.estimate.fscore < SURE
    if n >= 20 and columns > 0 and large > n / 2 and unsure and result.reached is None:
        found.append(
            f"{large:,} of {n:,} instances are in clusters larger than twice the {columns} neighbours of a list: "
            "many of their pairs are not in any list, and a large identity may be split into several clusters; look "
            "for clusters that should be one"
        )
    if found_edges is not None and found_edges < FEW_EDGES:
        found.append(
            f"the neighbour lists have only {found_edges:.1%} of the edges that matter: clusters are incomplete, and "
            f"probabilities are less certain; use an exact kNN graph, or one that reaches {word('knn_recall')} 0.98"
        )
    elif result.estimate is not None and result.estimate.fscore < DOUBTFUL_F and alone < n:
        found.append(
            f"the expected pairwise F-score is only {100 * result.estimate.fscore:.1f}: many pairs are uncertain, and "
            "clusters can hold strangers or parts of identities; look at them"
            f"{advice(' with {}', 'starfc report')}{advice(', and answer questions of {}', 'starfc ask')}"
        )
    return found


def surprising(giants: list[dict[str, Any]], columns: int, precision: float | None) -> list[dict[str, Any]]:
    """Return the giant clusters that wrong edges may have joined.

    A cluster of at most ``columns`` + 1 instances is left out: it fits into one neighbour list. If the expected
    pairwise ``precision`` is at least :data:`SURE`, the result is empty; None means that it is not known.
    """
    if precision is not None and precision >= SURE:
        return []
    return [giant for giant in giants if giant["size"] > columns + 1]


def giants_doubt(
    diagnostics: dict[str, Any], columns: int, precision: float | None = None, partition: str = "components"
) -> list[str]:
    """Return a doubt that lists the :func:`surprising` clusters and says what to do; empty if there are none."""
    giants = surprising(diagnostics["giants"], columns, precision)
    if not giants:
        return []
    thresholds = f"{word('tau1')} or {word('tau2')}" if partition == "components" else word("tau1")
    listed = "; ".join(
        f"cluster {g['label']}: {g['size']:,} instances ({g['share']:.1%}), "
        f"{g['edges_per_instance']:.1f} edges per instance, mean p {g['mean_p']:.3f}"
        for g in giants
    )
    return [
        f"thresholds: {len(giants)} cluster(s) of more than {diagnostics['giant_share']:g} of all instances"
        f"{advice(' ({})', 'giant_share')}: {listed}. Unless you expect such a large identity, wrong edges have joined "
        f"many identities: raise {thresholds}, or choose thresholds on labelled data of this kind"
        f"{advice(' with {}', 'starfc tune')}"
    ]


def diagnostics_table(
    diagnostics: dict[str, Any], tau1: float, tau2: float, refinement: str, partition: str = "components"
) -> str:
    """Format the diagnostics as a text table: edges and components after each threshold, then clusters by size."""
    second = {"fixed": f"NI > {tau2:g}", "dynamic": f"NI > dynamic, {tau2:g}"}[refinement]
    second = second if partition == "components" else f"within {partition} clusters"
    lines = [
        f"{'edges':<24}{'kept':>14}{'share':>8}{'components':>13}{'largest':>11}{'share':>8}",
        f"{'candidates':<24}{diagnostics['candidates']:>14,}",
    ]
    for name, stage in ((f"p > {tau1:g}", "parsed"), (second, "refined")):
        d = diagnostics[stage]
        lines.append(
            f"{name:<24}{d['edges']:>14,}{d['share']:>8.1%}{d['components']:>13,}"
            f"{d['largest']:>11,}{d['largest_share']:>8.1%}"
        )
    return "\n".join([*lines, "", sizes_table(diagnostics["sizes"])])


def sizes_table(sizes: list[dict[str, int]]) -> str:
    """Format the clusters by size (:func:`size_histogram`) as a text table."""
    total = sum(row["instances"] for row in sizes)
    lines = [f"{'cluster size':<24}{'clusters':>14}{'instances':>21}{'share':>8}"]
    for row in sizes:
        span = f"{row['low']:,} to {row['high']:,}" if row["high"] > 1 else "1"
        lines.append(f"{span:<24}{row['clusters']:>14,}{row['instances']:>21,}{row['instances'] / max(total, 1):>8.1%}")
    return "\n".join(lines)
