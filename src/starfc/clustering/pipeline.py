"""The pipeline: features and kNN graph -> clusters. Command line, estimator and training all call :func:`cluster`.

kNN graph -> propagation, GCN and node projections -> edge scores and graph parsing -> node intimacy -> components

:func:`cluster_dynamic` is the extended method: other candidate edges, and a threshold for each edge.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from starfc.clustering.adaptation import COMPONENTS, Chosen, adapt_to_set, choose_threshold
from starfc.clustering.choice import LOWEST, Choice, Estimate, doubted, estimate
from starfc.clustering.components import components, largest_first
from starfc.clustering.parsing import ENTRIES, PAIRS, ParsedEdges, parse
from starfc.clustering.partition import communities, edges_within
from starfc.clustering.reach import Reached, SampleSteps, Search, reach
from starfc.clustering.refinement import (
    dynamic_thresholds,
    node_intimacy,
    node_intimacy_undirected,
    refine,
)
from starfc.clustering.summary import Kept, Summary, kept, summarise
from starfc.data.dataset import Features, as_features
from starfc.errors import InputError
from starfc.graph.edges import EdgeList, edge_confidence, row_pointers
from starfc.graph.neighbours import KnnGraph, id_dtype
from starfc.graph.structure import NO_LOGIT
from starfc.models.checkpoint import Model
from starfc.models.contextual import ContextualModel
from starfc.runtime.defaults import RESOLUTION
from starfc.runtime.stages import Stages
from starfc.runtime.words import word


@dataclass(frozen=True)
class Clustering:
    """Labels (N,) int64, largest cluster first; confidence (N,) float32; what parsing and refinement kept.

    ``parsed`` holds the edges themselves where they were asked for. Of a contextual model, whose p are calibrated for
    the set, ``estimate`` is what is to be expected of the clusters, ``choice`` the threshold and why, ``outside`` the
    share of the context's numbers that are unlike those of the kinds that the model was trained on, ``rounds`` the
    F-scores to be expected before and after each round of adaptation, none where there was none, and ``reached`` how
    many clusters samples of the rows joined, and into how many; None where no sample was looked at.
    """

    labels: NDArray[np.int64]
    confidence: NDArray[np.float32]
    summary: Summary
    parsed: ParsedEdges | None = None
    estimate: Estimate | None = None
    choice: Choice | None = None
    outside: float | None = None
    rounds: tuple[float, ...] = ()
    reached: tuple[int, int] | None = None

    @property
    def edges_parsed(self) -> int:
        return self.summary.parsed.edges

    @property
    def edges_refined(self) -> int:
        return self.summary.refined.edges

    @property
    def num_clusters(self) -> int:
        return int(self.labels.max(initial=-1)) + 1


def cluster(
    features: Features | NDArray[np.float32],
    graph: KnnGraph,
    model: Model,
    *,
    tau1: float | None,
    tau2: float | None,
    th_sim: float = 0.0,
    partition: str = "components",
    resolution: float = RESOLUTION,
    adapt: str = "auto",
    search: Search | None = None,
    seed: int = 0,
    sizes: NDArray[np.integer] | None = None,
    keep_edges: bool = False,
    device: str | torch.device = "cpu",
    stages: Stages | None = None,
    scratch: Path | None = None,
) -> Clustering:
    """Cluster the nodes of a kNN graph (spec section 6).

    Parameters
    ----------
    features : Features, or (N, d) float32 L2-normalised
        float16 features on disk stay there, and are normalised as they are read.
    graph : KnnGraph
        kNN graph of these features.
    model : StarFCModel, HierarchicalModel or StructuralModel
        The graphs of a hierarchical model's scales are cut out of the kNN graph; its edges are those of the largest. A
        structural model's are undirected, and its k is that of the kNN graph.
    tau1, tau2 : float in [0, 1]
        Edges with p > τ1, and of those with node intimacy > τ2, stay. With a contextual model None leaves the choice
        to the data: τ1 by :func:`~starfc.clustering.choice.choose`; for components 0.5 and 0.7.
    th_sim : float
        kNN entries below this similarity do not enter the affinity graph; they are candidate edges all the same. 0 for
        a structural model.
    partition : {'components', 'infomap', 'leiden'}
        Components of the edges that node intimacy keeps, as published; or communities of all parsed edges
        (:mod:`starfc.clustering.partition`), where τ2 plays no part.
    resolution : float
        Of 'leiden'.
    adapt : {'auto', 'off'}
        With a contextual model and 'infomap': train its scorer further on the clusters of the set, as long as that
        raises the F-score to be expected (:mod:`starfc.clustering.adaptation`).
    search : function of Features, optional
        With a contextual model and communities: makes the kNN graph of a sample of the rows, where lists reach farther
        and clusters may turn out to be one (:mod:`starfc.clustering.reach`). None: that is not done.
    seed : int
        Of the communities, and of adaptation.
    sizes : (N,) integers, optional
        Rows that each node stands for, where the summary's largest component is to be that of all rows.
    keep_edges : bool
        Return the parsed edges with their scores and intimacies, which otherwise go when they are no longer needed.
    scratch : path, optional
        Folder for files of 6 N h bytes while edges are scored (the system's folder for temporary files otherwise).

    Returns
    -------
    Clustering
        ``confidence`` of an instance is the mean p of the refined edges at it, 0 where it has none.
    """
    stages = stages or Stages()
    contextual = model.kind.contextual
    if not contextual and (tau1 is None or tau2 is None):
        raise InputError(
            f"{word('tau1')}, {word('tau2')}: numbers needed with a model whose p is not calibrated for every set; "
            "found None"
        )
    by_component = partition == "components"
    if tau2 is None:
        tau2 = COMPONENTS[1] if by_component else 0.0
    lowest = LOWEST if tau1 is None else min(LOWEST, tau1) if contextual else tau1
    given: dict[str, Any] = {"th_sim": th_sim, "device": device, "stages": stages, "scratch": scratch}
    start = parse(features, graph, model, ENTRIES, tau1=lowest, tau2=tau2, **given)
    parsed, order, candidates = start.edges, start.order, start.candidates
    chosen: Chosen | None = None
    members: NDArray[np.integer] | None = None
    reached: Reached | None = None
    if contextual:
        assert start.scoring is not None  # a structural model's parsing has one
        with stages.stage("choice", needs=80 * len(parsed)):
            chosen = choose_threshold(parsed, start.mass, tau1, partition, seed)
        if adapt == "auto" and chosen.members is not None:
            # columns of the edges that are learnt from, and the edges as they are before and after
            with stages.stage("adaptation", needs=(256 << 20) + 200 * len(parsed)):
                chosen = adapt_to_set(start.scoring, chosen, lowest, tau1, seed)
        members = chosen.members
        parsed = chosen.edges.select(chosen.edges.scores > chosen.choice.tau1)
    if not by_component:
        with stages.stage("communities", needs=64 * len(parsed)):
            pieces = components(parsed)
            if members is None:
                members = communities(parsed, partition, resolution, seed, pieces)
        if chosen is not None and search is not None:
            steps = SampleSteps(model, search, lowest, tau1, partition, resolution, seed, device, scratch)
            tau, rows = chosen.choice.tau1, as_features(features)
            reached = reach(members, start.edges, graph.k - 1, tau, rows, steps, stages)
            members = reached.members
            if reached.links is not None:
                alone, parsed = parsed, reached.links.added_to(parsed)
                candidates += parsed.num_edges - alone.num_edges
                pieces = components(parsed)
        before = kept(pieces, parsed.num_edges, sizes)
        with stages.stage("edges of clusters", needs=64 * len(parsed)):
            refined = edges_within(parsed, members)
            edges = None
            if keep_edges:
                within = members[parsed.rows] == members[parsed.cols]
                edges = start.kept(
                    parsed, node_intimacy(parsed, order), within, None if chosen is None else chosen.adapted
                )
    else:
        with stages.stage("refinement", needs=20 * len(parsed)):
            before = kept(components(parsed), parsed.num_edges, sizes)
            intimacy = node_intimacy(parsed, order)
            refined = refine(parsed, intimacy, tau2)
            edges = start.kept(parsed, intimacy, intimacy > tau2) if keep_edges else None
            del intimacy
        members = components(refined)
    del parsed
    result = _clustering(refined, members, candidates, before, stages, edges)
    if chosen is None or start.scoring is None or not isinstance(model, ContextualModel):
        return result
    with stages.stage("estimate", needs=40 * len(start.edges)):
        # p that was adapted to the clusters would praise them; where nothing is a candidate, nothing is known
        expected = estimate(start.edges, members) if candidates else None
        if expected is not None and reached is not None and reached.agreed is not None:
            expected = doubted(expected, reached.agreed)
    context = start.scoring.context
    assert context is not None  # a contextual model has one
    outside = max(model.first.outside(context.first), model.second.outside(context.second))
    return replace(
        result,
        estimate=expected,
        outside=outside,
        choice=chosen.choice,
        rounds=chosen.rounds,
        reached=None if reached is None else reached.counts,
    )


def cluster_dynamic(
    features: Features | NDArray[np.float32],
    graph: KnnGraph,
    model: Model,
    *,
    tau1: float,
    tau2: float,
    th_sim: float = 0.0,
    sizes: NDArray[np.integer] | None = None,
    keep_edges: bool = False,
    device: str | torch.device = "cpu",
    stages: Stages | None = None,
    scratch: Path | None = None,
) -> Clustering:
    """Cluster the nodes of a kNN graph by the extended method (spec section 8).

    Candidate edges are those of the affinity graph of the largest scale, undirected; a pair stays where p > τ1 in
    either direction, and where its intimacy is above a threshold that rises with its nodes' degrees
    (:func:`starfc.clustering.refinement.dynamic_thresholds`).

    Parameters
    ----------
    tau1, tau2 : float in [0, 1]
        Threshold of p, and the ceiling of the dynamic thresholds.
    th_sim : float
        kNN entries below this similarity do not enter the affinity graph, and so are no candidates.
    features, graph, model, sizes, keep_edges, scratch
        As for :func:`cluster`.

    Returns
    -------
    Clustering
        Its numbers of edges count pairs.
    """
    stages = stages or Stages()
    given: dict[str, Any] = {"th_sim": th_sim, "device": device, "stages": stages, "scratch": scratch}
    start = parse(features, graph, model, PAIRS, tau1=tau1, tau2=tau2, **given)
    parsed, order = start.edges, start.order
    with stages.stage("refinement", needs=22 * len(parsed)):
        before = kept(components(parsed), parsed.num_edges, sizes)
        intimacy = node_intimacy_undirected(parsed, order)
        stay = intimacy > dynamic_thresholds(parsed, tau2)
        refined = parsed.select(stay)
        edges = start.kept(parsed, intimacy, stay) if keep_edges else None
        candidates = start.candidates
        del parsed, intimacy, stay, start
    return _clustering(refined, components(refined), candidates, before, stages, edges)


def without_search(n: int, keep_edges: bool = False) -> Clustering:
    """The clustering of n rows, none or one, of which there are no neighbours to search for."""
    edges = EdgeList(np.zeros(n + 1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32), symmetric=True)
    parsed = ParsedEdges(edges, np.empty(0, np.float32), np.empty(0, np.bool_)) if keep_edges else None
    none = Kept(0, n, n)
    summary = Summary(0, none, none, np.empty(0, np.int64), np.empty(0, np.float32))
    return Clustering(np.zeros(n, np.int64), np.zeros(n, np.float32), summary, parsed)


REFINEMENTS = {"fixed": cluster, "dynamic": cluster_dynamic}


def _clustering(
    refined: EdgeList,
    members: NDArray[np.integer],
    candidates: int,
    parsed: Kept,
    stages: Stages,
    edges: ParsedEdges | None,
) -> Clustering:
    """What both methods end with; ``members`` (N,) are the clusters, each named by one of its nodes."""
    with stages.stage("clusters", needs=8 * len(refined) + 48 * refined.num_nodes):
        labels = largest_first(members)
        summary = summarise(candidates, parsed, refined, labels)
        return Clustering(labels, edge_confidence(refined), summary, edges)


def with_singletons(result: Clustering, rows: NDArray[np.integer]) -> Clustering:
    """Insert instances at the given final positions, each a cluster of its own with confidence 0."""
    if not rows.size:
        return result
    n = len(result.labels) + len(rows)
    others = np.setdiff1d(np.arange(n), rows)
    labels, confidence = np.empty(n, np.int64), np.zeros(n, np.float32)
    labels[others], confidence[others] = result.labels, result.confidence
    labels[rows] = result.num_clusters + np.arange(len(rows))
    parsed = None if result.parsed is None else spread(result.parsed, others, n)
    summary = result.summary.with_singletons(len(rows))
    return replace(result, labels=labels, confidence=confidence, summary=summary, parsed=parsed)


def spread(parsed: ParsedEdges, others: NDArray[np.integer], n: int) -> ParsedEdges:
    """The edges where the nodes are rows ``others`` of n; the rows between have none."""
    edges, logits = parsed.edges, parsed.logits
    indptr = row_pointers(_inserted(np.diff(edges.indptr), others, n))
    if logits is not None:
        spread_logits = np.full((n, logits.shape[1]), NO_LOGIT, np.int8)
        spread_logits[others] = logits
        logits = spread_logits
    edges = replace(edges, indptr=indptr, cols=others[edges.cols].astype(id_dtype(n)))
    context = parsed.context
    if context is not None:
        context = replace(context, strangers=context.strangers.placed(others, n))
    return replace(parsed, edges=edges, logits=logits, context=context)


def _inserted(values: NDArray[np.int64], at: NDArray[np.integer], n: int) -> NDArray[np.int64]:
    """``values`` at the positions ``at`` of n zeros."""
    out = np.zeros(n, np.int64)
    out[at] = values
    return out


def without_small(result: Clustering, size: int) -> Clustering:
    """Instances of clusters of fewer than ``size`` get label -1; the others' labels stay, largest cluster first."""
    sizes = np.bincount(result.labels)
    return replace(result, labels=np.where(sizes[result.labels] < size, -1, result.labels))
