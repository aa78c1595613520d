"""Both thresholds judged without labels: what each kept, which clusters came out, and which are suspiciously large.

Thresholds chosen on other data can be far too low for the data at hand. A few wrong edges then join identity to
identity until one component holds much of the graph: pairwise precision falls to almost nothing while every number that
looks at edges one by one still looks well. The size of the largest component shows it, and needs no labels.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starfc.clustering.pipeline import Clustering
from starfc.clustering.summary import Kept
from starfc.runtime.words import advice, word

log = logging.getLogger("starfc")


def diagnose(result: Clustering, giant_share: float) -> dict[str, Any]:
    """What a run's record holds of its thresholds' effect.

    Parameters
    ----------
    giant_share : float
        Clusters that hold more than this share of the N instances are listed as giants.

    Returns
    -------
    dict
        ``candidates``: edges scored. ``parsed`` and ``refined``: edges kept, their share of the candidates, components,
        instances of the largest and their share of all. ``sizes``: clusters and instances by cluster size, in powers of
        two. ``giants``: label, size, share, edges per instance and mean p of each, largest first.
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
        # a cluster of one instance has no edges that could be wrong
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
    """Cluster sizes (C,), all above 0, by powers of two: clusters and instances of the sizes ``low`` to ``high``."""
    power = np.frexp(sizes)[1] - 1  # floor(log2), exact
    clusters = np.bincount(power)
    instances = np.zeros(len(clusters), np.int64)
    np.add.at(instances, power, sizes)
    return [
        {"low": 2**b, "high": 2 ** (b + 1) - 1, "clusters": int(clusters[b]), "instances": int(instances[b])}
        for b in range(len(clusters))
    ]


OUTSIDE = 0.2  # share of the context's numbers, from which on a set is called unlike the training kinds
DOUBTFUL_F = 0.85
SURE = 0.8  # of an estimate: from here on what it is about is believed


def doubts(result: Clustering, columns: int, copies: NDArray[np.integer] | None = None) -> list[str]:
    """What a user should know before the clusters are believed, a sentence each; empty where nothing is doubtful.

    Parameters
    ----------
    result : Clustering
        Of the distinct instances: copies fill no list.
    columns : int
        Neighbours that a list of the kNN graph holds.
    copies : (N,) integers, optional
        How many instances each of the distinct ones stands for, where that is not one.
    """
    found, sizes = [], np.bincount(result.labels, copies)
    n = int(sizes.sum())
    if result.outside is not None and result.outside > OUTSIDE:
        found.append(
            f"the set is unlike the data that the model was trained on ({result.outside:.0%} of the numbers that "
            "describe it are more than three standard deviations away): probabilities may be too high or too low; "
            f"check clusters{advice(' with {}', 'starfc report')}, or choose thresholds on labelled data"
            f"{advice(' with {}', 'starfc tune')}"
        )
    alone = int(np.count_nonzero(sizes == 1))
    if n > 1 and result.summary.candidates == 0:
        if alone:
            found.append(
                f"{alone:,} of {n:,} instances are clusters of one: no two are more similar than any two others are, "
                "so that nothing tells which belong together"
            )
    elif n >= 20 and alone > n / 2:
        found.append(
            f"{alone:,} of {n:,} instances are clusters of one: either most identities have one instance, or the "
            "embedding does not tell which belong together"
        )
    large = int(sizes[np.bincount(result.labels) > 2 * columns].sum())
    unsure = result.estimate is None or result.estimate.fscore < SURE
    if n >= 20 and columns > 0 and large > n / 2 and unsure and result.reached is None:
        found.append(
            f"{large:,} of {n:,} instances are in clusters of more than twice the {columns} neighbours that a list "
            "holds, which leaves many pairs open: an identity larger than the lists may have come apart; look for "
            "clusters that should be one"
        )
    if result.estimate is not None and result.estimate.fscore < DOUBTFUL_F:
        found.append(
            f"the pairwise F-score to be expected is {result.estimate.fscore:.2f}: the embedding leaves many pairs open"
        )
    return found


def surprising(giants: list[dict[str, Any]], columns: int, precision: float | None) -> list[dict[str, Any]]:
    """Those giant clusters that wrong edges may have made.

    Not one that lists of ``columns`` neighbours hold whole, and none where the pairs inside clusters are expected to be
    right (``precision``, None where that is not known).
    """
    if precision is not None and precision >= SURE:
        return []
    return [giant for giant in giants if giant["size"] > columns + 1]


def warn_of_giants(diagnostics: dict[str, Any], columns: int, precision: float | None = None) -> None:
    """Log one warning that names the :func:`surprising` clusters, if any, and says what to do."""
    giants = surprising(diagnostics["giants"], columns, precision)
    if not giants:
        return
    listed = "; ".join(
        f"cluster {g['label']}: {g['size']:,} instances ({g['share']:.1%}), "
        f"{g['edges_per_instance']:.1f} edges an instance, mean p {g['mean_p']:.3f}"
        for g in giants
    )
    log.warning(
        "thresholds: %d cluster(s) of more than %g of all instances%s: %s. Unless so large an identity is expected, "
        "wrong edges have joined many: raise %s or %s, or choose thresholds on labelled data like these%s",
        len(giants),
        diagnostics["giant_share"],
        advice(" ({})", "giant_share"),
        listed,
        word("tau1"),
        word("tau2"),
        advice(" with {}", "starfc tune"),
    )


def diagnostics_table(
    diagnostics: dict[str, Any], tau1: float, tau2: float, refinement: str, partition: str = "components"
) -> str:
    """The diagnostics as text: edges and components after each threshold, then the clusters by size."""
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
    """Clusters by size (:func:`size_histogram`) as text."""
    total = sum(row["instances"] for row in sizes)
    lines = [f"{'cluster size':<24}{'clusters':>14}{'instances':>21}{'share':>8}"]
    for row in sizes:
        span = f"{row['low']:,} to {row['high']:,}" if row["high"] > 1 else "1"
        lines.append(f"{span:<24}{row['clusters']:>14,}{row['instances']:>21,}{row['instances'] / max(total, 1):>8.1%}")
    return "\n".join(lines)
