"""The pipeline from features and kNN graph to clusters. Command line, estimator and training call :func:`cluster`.

kNN graph -> propagation, GCN and node projections -> edge scores and graph parsing -> node intimacy -> components

:func:`cluster_dynamic` is the extended method. It has other candidate edges and a separate threshold for each edge.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from starfc.clustering.adaptation import COMPONENTS, PART_BYTES, Chosen, adapt_to_set, choose_threshold
from starfc.clustering.choice import LOWEST, Choice, Estimate, doubted, estimate
from starfc.clustering.components import components, largest_first
from starfc.clustering.parsing import ENTRIES, PAIRS, MakeParser, ParsedEdges, parse
from starfc.clustering.part import MANY
from starfc.clustering.partition import communities, search_bytes
from starfc.clustering.reach import Counts, Reached, SampleSteps, Search, reach
from starfc.clustering.refinement import (
    dynamic_thresholds,
    node_intimacy,
    node_intimacy_undirected,
)
from starfc.clustering.samples import stay_apart
from starfc.clustering.summary import Kept, Summary, kept, summarise
from starfc.data.dataset import Features, as_features
from starfc.errors import InputError
from starfc.graph.edges import EdgeList, Edges, edge_confidence, mean_score, row_pointers, sums_of_rows
from starfc.graph.neighbours import KnnGraph, id_dtype
from starfc.graph.structure import NO_LOGIT
from starfc.models.checkpoint import Model
from starfc.models.contextual import ContextualModel
from starfc.runtime.defaults import RESOLUTION
from starfc.runtime.stages import Stages
from starfc.runtime.words import word


@dataclass(frozen=True)
class Clustering:
    """The result of a clustering of N instances.

    The attributes from ``estimate`` on are set with a contextual model only, because its p is calibrated for the set.

    Attributes
    ----------
    labels : (N,) int64
        Cluster labels; label 0 is the largest cluster.
    confidence : (N,) float32
        The mean p of the refined edges at each instance, 0 without such an edge.
    summary : Summary
        Counts of the edges that parsing and refinement kept.
    parsed : ParsedEdges, optional
        The edges themselves, if they were requested.
    estimate : Estimate, optional
        Expected precision, recall and F-scores; None if there were no candidate edges.
    choice : Choice, optional
        τ1 and the reason for it.
    outside : float, optional
        Share of the context's numbers that are unlike those of the model's training data.
    rounds : tuple of float
        Expected F-scores before adaptation and after each round; empty without adaptation.
    reached : Counts, optional
        What samples of the rows changed (:mod:`starfc.clustering.reach`); None if no sample was drawn.
    """

    labels: NDArray[np.int64]
    confidence: NDArray[np.float32]
    summary: Summary
    parsed: ParsedEdges | None = None
    estimate: Estimate | None = None
    choice: Choice | None = None
    outside: float | None = None
    rounds: tuple[float, ...] = ()
    reached: Counts | None = None

    @property
    def edges_parsed(self) -> int:
        """Number of edges that graph parsing kept."""
        return self.summary.parsed.edges

    @property
    def edges_refined(self) -> int:
        """Number of edges that refinement kept."""
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
    make_parser: MakeParser | None = None,
) -> Clustering:
    """Cluster the nodes of a kNN graph (STAR-FC, CVPR 2021, sections 3.2 and 3.4).

    Parameters
    ----------
    features : Features, or (N, d) float32 L2-normalised
        float16 features on disk are memory-mapped and normalised block by block.
    graph : KnnGraph
        kNN graph of these features.
    model : StarFCModel, HierarchicalModel or StructuralModel
        A hierarchical model takes the graphs of its scales from the kNN graph; the largest one gives its edges. A
        structural model uses the k of the kNN graph, and its edges are undirected.
    tau1, tau2 : float in [0, 1], optional
        An edge is kept if p > τ1 and node intimacy > τ2. None is allowed with a contextual model only. τ1 is then
        chosen by :func:`~starfc.clustering.choice.choose`; for 'components' the defaults are 0.5 and 0.7.
    th_sim : float
        kNN entries below this similarity are left out of the affinity graph, but they are still candidate edges. Must
        be 0 with a structural model.
    partition : {'components', 'infomap', 'leiden'}
        'components' takes the connected components of the edges that node intimacy keeps, as published. The others
        take communities of all parsed edges (:mod:`starfc.clustering.partition`) and ignore τ2.
    resolution : float
        The resolution of 'leiden'.
    adapt : {'auto', 'off'}
        'auto', with a contextual model and 'infomap': train the scorer further on the clusters of the set, as long as
        this raises the expected F-score (:mod:`starfc.clustering.adaptation`).
    search : function (Features) -> KnnGraph, optional
        With a contextual model and communities: builds the kNN graph of a sample of the rows. In samples, lists reach
        farther, and clusters that belong together are found (:mod:`starfc.clustering.reach`). Default: no samples.
    seed : int
        Seed of communities, adaptation and samples.
    sizes : (N,) integers, optional
        The number of rows that each node represents, itself and its copies. The summary's largest component is then
        counted in rows.
    keep_edges : bool
        Return the parsed edges with p and node intimacy. Otherwise they are freed when they are no longer needed.
    device
        Device of the model, propagation, structural features and node intimacy.
    stages : Stages, optional
        Records time and memory of each stage.
    scratch : path, optional
        Folder for temporary files of 6 N h bytes while edges are scored. Default: the system's temporary folder.
    make_parser : function, optional
        Scores edges elsewhere (:data:`starfc.clustering.parsing.MakeParser`). Default: in this process.

    Returns
    -------
    Clustering
    """
    stages = stages or Stages()
    contextual = model.kind.contextual
    if not contextual and (tau1 is None or tau2 is None):
        raise InputError(
            f"{word('tau1')}, {word('tau2')}: numbers needed with this model, whose p is not calibrated for each set; "
            "found None; give both thresholds"
        )
    by_component = partition == "components"
    if tau2 is None:
        tau2 = COMPONENTS[1] if by_component else 0.0
    lowest = LOWEST if tau1 is None else min(LOWEST, tau1) if contextual else tau1
    given: dict[str, Any] = {"th_sim": th_sim, "device": device, "stages": stages, "scratch": scratch}
    start = parse(features, graph, model, ENTRIES, tau1=lowest, tau2=tau2, make_parser=make_parser, **given)
    order, candidates = start.order, start.candidates
    parsed: Edges = start.edges
    chosen: Chosen | None = None
    members: NDArray[np.integer] | None = None
    reached: Reached | None = None
    if contextual:
        assert start.scoring is not None  # a structural model's parsing has one
        with stages.stage("choice", needs=search_bytes(parsed)):
            chosen = choose_threshold(parsed, start.mass, tau1, partition, seed)
        if adapt == "auto" and chosen.members is not None:
            # the second round of scoring, then communities of the new edges; features of the training edges
            again = max(start.scoring.bytes_again, PART_BYTES if graph.num_nodes > MANY else 0)
            search_again = 8 * parsed.held + search_bytes(parsed)
            with stages.stage("adaptation", needs=(256 << 20) + max(again, search_again)):
                chosen = adapt_to_set(start.scoring, chosen, lowest, tau1, seed)
        members = chosen.members
        parsed = chosen.edges.above(chosen.choice.tau1)
        chosen = replace(chosen, edges=start.edges)  # frees the edges with adapted p
    edges: ParsedEdges | None = None
    if not by_component:
        with stages.stage("communities", needs=8 * parsed.num_nodes if members is not None else search_bytes(parsed)):
            pieces = components(parsed)
            if members is None:
                parsed = parsed.whole(scratch)
                members = communities(parsed, partition, resolution, seed, pieces)
        if chosen is not None and search is not None:
            steps = SampleSteps(model, search, lowest, tau1, partition, resolution, seed, device, scratch)
            tau, rows = chosen.choice.tau1, as_features(features)
            reached = reach(members, start.edges, graph.k - 1, tau, rows, steps, stages)
            members = reached.members
            if reached.former is not None:
                parsed = stay_apart(parsed, reached.former, members)
            if reached.links is not None:
                candidates -= parsed.num_edges
                parsed = reached.links.added_to(parsed)
                candidates += parsed.num_edges
                pieces = components(parsed)
        before = kept(pieces, parsed.num_edges, sizes)
        with stages.stage("edges of clusters", needs=(5 if keep_edges else 1) * parsed.held):
            if keep_edges:
                parsed = parsed.whole(scratch)
                adapted = None if chosen is None else chosen.adapted
                edges = start.kept(parsed, node_intimacy(parsed, order, device), parsed.inside(members), adapted)
            sums = _sums(parsed, members)
    else:
        with stages.stage("refinement", needs=6 * parsed.held):
            parsed = parsed.whole(scratch)
            before = kept(components(parsed), parsed.num_edges, sizes)
            intimacy = node_intimacy(parsed, order, device)
            refined = intimacy > tau2
            edges = start.kept(parsed, intimacy, refined) if keep_edges else None
            del intimacy
            members, sums = components(parsed, refined), _sums_of(parsed, refined)
            del refined
    result = _clustering(sums, members, candidates, before, stages, edges)
    del parsed
    if chosen is None or start.scoring is None or not isinstance(model, ContextualModel):
        return result
    with stages.stage("estimate", needs=start.edges.file_bytes + 100 * graph.num_nodes):
        # Use p before adaptation: the adapted p was trained on the clusters, so its estimate would be too high.
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
    make_parser: MakeParser | None = None,
) -> Clustering:
    """Cluster the nodes of a kNN graph by the extended method (TPAMI 2023), with dynamic thresholds.

    The candidate edges are the undirected edges of the affinity graph of the largest scale. A pair is kept if p > τ1
    in at least one direction, and if its node intimacy is above a threshold that increases with the nodes' degrees
    (:func:`starfc.clustering.refinement.dynamic_thresholds`).

    Parameters
    ----------
    tau1, tau2 : float in [0, 1]
        The threshold of p, and the upper limit of the dynamic thresholds.
    th_sim : float
        kNN entries below this similarity are left out of the affinity graph, so they are not candidate edges.
    features, graph, model, sizes, keep_edges, device, stages, scratch, make_parser
        As for :func:`cluster`.

    Returns
    -------
    Clustering
        Its edge counts are numbers of pairs.
    """
    stages = stages or Stages()
    given: dict[str, Any] = {"th_sim": th_sim, "device": device, "stages": stages, "scratch": scratch}
    start = parse(features, graph, model, PAIRS, tau1=tau1, tau2=tau2, make_parser=make_parser, **given)
    parsed, order = start.edges.whole(scratch), start.order
    with stages.stage("refinement", needs=14 * len(parsed)):
        before = kept(components(parsed), parsed.num_edges, sizes)
        intimacy = node_intimacy_undirected(parsed, order, device)
        refined = intimacy > dynamic_thresholds(parsed, tau2)
        edges = start.kept(parsed, intimacy, refined) if keep_edges else None
        candidates = start.candidates
        del intimacy, start
        members, sums = components(parsed, refined), _sums_of(parsed, refined)
    return _clustering(sums, members, candidates, before, stages, edges)


def without_search(n: int, keep_edges: bool = False) -> Clustering:
    """Return the clustering of n = 0 or 1 rows, which have no neighbours."""
    edges = EdgeList(np.zeros(n + 1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32), symmetric=True)
    parsed = ParsedEdges(edges, np.empty(0, np.float32), np.empty(0, np.bool_)) if keep_edges else None
    none = Kept(0, n, n)
    summary = Summary(0, none, none, np.empty(0, np.int64), np.empty(0, np.float32))
    return Clustering(np.zeros(n, np.int64), np.zeros(n, np.float32), summary, parsed)


REFINEMENTS = {"fixed": cluster, "dynamic": cluster_dynamic}


@dataclass(frozen=True)
class _Sums:
    """The edges that refinement kept, by the node from which they start.

    Attributes
    ----------
    total, count : (N,) float64, (N,) int32
        Sum of p, and number of edges.
    confidence : (N,) float32
        Mean p of the edges at each node (:func:`starfc.graph.edges.edge_confidence`).
    entries : int
        How often each edge counts: 2 in a symmetric list, otherwise 1.
    """

    total: NDArray[np.float64]
    count: NDArray[np.int32]
    confidence: NDArray[np.float32]
    entries: int


def _sums_of(parsed: EdgeList, refined: NDArray[np.bool_]) -> _Sums:
    """Return the sums of the edges that ``refined`` (E,) names."""
    total, count = sums_of_rows(parsed.indptr, parsed.scores, refined)
    return _Sums(total, count, edge_confidence(parsed, refined), 2 if parsed.symmetric else 1)


def _sums(parsed: Edges, members: NDArray[np.integer]) -> _Sums:
    """Return the sums of the edges inside clusters (N,)."""
    if isinstance(parsed, EdgeList):
        return _sums_of(parsed, parsed.inside(members))
    total, count, _ = parsed.split_sums(members)
    return _Sums(total, count, mean_score(total, count), 2)


def _clustering(
    sums: _Sums,
    members: NDArray[np.integer],
    candidates: int,
    before: Kept,
    stages: Stages,
    edges: ParsedEdges | None,
) -> Clustering:
    """Number the clusters and summarise the edges. The last step of both methods.

    ``members`` (N,) names each node's cluster by one of its nodes; ``before`` counts the parsed edges.
    """
    with stages.stage("clusters", needs=48 * len(members)):
        labels = largest_first(members)
        summary = summarise(candidates, before, labels, sums.total, sums.count, sums.entries)
        return Clustering(labels, sums.confidence, summary, edges)


def with_singletons(result: Clustering, rows: NDArray[np.integer]) -> Clustering:
    """Insert the instances ``rows``, each as a cluster of its own with confidence 0.

    ``rows`` are positions in the returned clustering.
    """
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
    """Move the nodes of ``parsed`` to the positions ``others`` among n rows; the other rows have no edges."""
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
    """Return n zeros with ``values`` at the positions ``at``."""
    out = np.zeros(n, np.int64)
    out[at] = values
    return out


def without_small(result: Clustering, size: int) -> Clustering:
    """Set the label of instances in clusters smaller than ``size`` to -1; other labels do not change."""
    sizes = np.bincount(result.labels)
    return replace(result, labels=np.where(sizes[result.labels] < size, -1, result.labels))
