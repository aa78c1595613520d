"""Test diagnostics without labels: hand-computed cases, slow twins, and the record of a run."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.edges import edge_list
from helpers.samples import blobs, random_graph, unit
from starfc.clustering.choice import Estimate
from starfc.clustering.components import components, largest_first
from starfc.clustering.diagnostics import diagnose, diagnostics_table, doubts, giants_doubt, size_histogram
from starfc.clustering.pipeline import Clustering, with_singletons
from starfc.clustering.summary import Kept, Summary, kept, summarise
from starfc.commands import cluster, train, words_of
from starfc.graph.affinity import propagation_matrix
from starfc.graph.edges import sums_of_rows
from starfc.graph.knn import exact_knn
from starfc.graph.neighbours import KnnGraph
from starfc.models.gcn import StarFCModel
from starfc.models.hierarchical import HierarchicalModel
from starfc.runtime.words import CONFIG, PYTHON, use
from starfc.scoring.projections import num_entries, num_pairs, project_nodes


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 25), st.integers(0, 2**32 - 1))
def test_a_summary_equals_its_twin(n, seed):
    rng = np.random.default_rng(seed)
    pairs = {(i, j) for i, j in rng.integers(n, size=(rng.integers(0, 2 * n), 2)).tolist() if i != j}
    edges = edge_list(pairs, n, rng.random(len(pairs)))
    labels = largest_first(components(edges))
    summary = summarise(99, kept(components(edges), len(edges)), labels, *sums_of_rows(edges.indptr, edges.scores), 1)
    adjacency = sp.csr_matrix((np.ones(len(edges)), (edges.rows, edges.cols)), shape=(n, n))
    count, twin = sp.csgraph.connected_components(adjacency, directed=False)
    assert summary.parsed == summary.refined == Kept(len(pairs), count, np.bincount(twin).max())
    large = np.flatnonzero(np.bincount(labels) > 1)
    assert len(summary.cluster_edges) == len(summary.cluster_scores) == len(large)
    for label in large:
        inside = labels[edges.rows] == label
        assert summary.cluster_edges[label] == inside.sum()
        assert summary.cluster_scores[label] == pytest.approx(edges.scores[inside].mean(), rel=1e-5)


def test_undirected_edges_count_once():
    both = replace(edge_list([(0, 1), (1, 0), (1, 2), (2, 1)], 4, [0.5, 0.5, 0.7, 0.7]), symmetric=True)
    summary = summarise(3, Kept(2, 2, 3), largest_first(components(both)), *sums_of_rows(both.indptr, both.scores), 2)
    assert summary.refined == Kept(2, 2, 3)
    assert summary.cluster_edges.tolist() == [2]
    assert summary.cluster_scores[0] == pytest.approx(0.6)


@pytest.mark.parametrize("seed", range(5))
def test_candidates_are_the_entries_of_the_graph(seed):
    graph = random_graph(20, 6, seed)
    for columns in (4, 6):
        assert graph.num_entries(columns) == (graph.ids[:, :columns] >= 0).sum()


@pytest.mark.parametrize("th_sim", [0.0, 0.4])
@pytest.mark.parametrize("scales", [None, (3, 5, 7)])
def test_candidate_pairs_are_those_of_the_affinity_graph(scales, th_sim):
    features, _ = blobs(noise=0.8)
    graph = exact_knn(unit(features), 9)
    generator = torch.Generator().manual_seed(0)
    model = StarFCModel(16, 32, generator=generator)
    if scales:
        model = HierarchicalModel(16, 32, scales=scales, generator=generator)
    nodes = project_nodes(model, unit(features), graph, th_sim)
    columns = scales[-1] - 1 if scales else graph.k
    largest = KnnGraph(graph.ids[:, :columns].copy(), graph.sims[:, :columns].copy())
    assert num_pairs(nodes) == (propagation_matrix(largest, th_sim).nnz - 180) // 2
    assert num_entries(nodes) == 180 * min(columns, 8)


def clustering(sizes, edges=100, scores=0.9) -> Clustering:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    large = sum(size > 1 for size in sizes)
    summary = Summary(
        1000,
        Kept(500, 1, sum(sizes)),
        Kept(250, len(sizes), max(sizes)),
        np.full(large, edges),
        np.full(large, scores, np.float32),
    )
    return Clustering(labels, np.zeros(len(labels), np.float32), summary)


def test_a_diagnosis_by_hand():
    found = diagnose(clustering([40, 9, 1]), 0.5)
    assert found["candidates"] == 1000
    assert found["parsed"] == {"edges": 500, "share": 0.5, "components": 1, "largest": 50, "largest_share": 1.0}
    assert found["refined"] == {"edges": 250, "share": 0.25, "components": 3, "largest": 40, "largest_share": 0.8}
    assert found["giants"] == [
        {"label": 0, "size": 40, "share": 0.8, "edges_per_instance": 2.5, "mean_p": pytest.approx(0.9)}
    ]
    assert [g["label"] for g in diagnose(clustering([40, 9, 1]), 0.1)["giants"]] == [0, 1]
    assert diagnose(clustering([40, 9, 1]), 0.8)["giants"] == []  # above the share, not at it
    assert diagnose(clustering([1, 1, 1]), 0.1)["giants"] == []  # a singleton has no edge that could be wrong
    json.dumps(found)  # what run.json holds


@settings(deadline=None)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=40))
def test_sizes_are_counted_by_powers_of_two(sizes):
    rows = size_histogram(np.array(sizes))
    assert rows[0]["low"] == 1
    assert all(a["high"] + 1 == b["low"] for a, b in pairwise(rows))
    for row in rows:
        inside = [s for s in sizes if row["low"] <= s <= row["high"]]
        assert (row["clusters"], row["instances"]) == (len(inside), sum(inside))
        assert row["high"] == 2 * row["low"] - 1
    assert sum(row["clusters"] for row in rows) == len(sizes)


def test_rows_without_direction_count_as_components():
    result = with_singletons(clustering([4, 1]), np.array([0, 3]))
    assert result.summary.parsed == Kept(500, 3, 5)
    assert result.summary.refined == Kept(250, 4, 4)
    assert diagnose(result, 0.5)["refined"]["largest_share"] == 4 / 7


def test_a_giant_is_warned_of():
    assert giants_doubt(diagnose(clustering([10, 9, 8]), 0.4), 9) == []
    assert giants_doubt(diagnose(clustering([40, 30, 1]), 0.4), 39) == []  # lists hold them whole
    assert giants_doubt(diagnose(clustering([40, 30, 1]), 0.4), 9, precision=0.9) == []
    (doubt,) = giants_doubt(diagnose(clustering([40, 30, 1]), 0.4), 9, partition="infomap")
    assert "raise tau1, or choose" in doubt  # communities ignore tau2
    (doubt,) = giants_doubt(diagnose(clustering([40, 30, 1]), 0.4), 9, precision=0.5)
    for part in (
        "2 cluster(s) of more than 0.4 of all instances",
        "cluster 0: 40 instances (56.3%), 2.5 edges per instance, mean p 0.900",
        "cluster 1: 30 instances (42.3%)",
        "raise tau1 or tau2",
        "or choose thresholds on labelled data of this kind",
    ):
        assert part in doubt


@pytest.mark.parametrize(
    ("words", "report", "tune"),
    [
        (PYTHON, " with StarFC.report", ""),
        (words_of(cluster), " with starfc report", " with starfc tune"),
        (words_of(train), " with starfc report", " with starfc tune"),
        (CONFIG, " with starfc report", " with starfc tune"),
    ],
    ids=["python", "cluster", "train", "config"],
)
def test_warnings_name_what_the_interface_has(words, report, tune):
    with use(words):
        (giants,) = giants_doubt(diagnose(clustering([40, 30, 1]), 0.4), 9)
        found = doubts(replace(clustering([10, 9, 8]), outside=0.9), 9)
    assert giants.endswith(f"labelled data of this kind{tune}")
    assert found[0].endswith(f"check the clusters{report}, or choose thresholds on labelled data{tune}")


def test_lists_shorter_than_those_of_the_training_make_the_estimate_doubtful():
    result = replace(clustering([10, 9, 8]), estimate=Estimate(0.99, 1.0, 0.995, 0.99))
    assert doubts(result, 26, trained=79)[0].startswith(
        "neighbour lists have 26 rows; in the training of the model they had 79"
    )
    assert not doubts(result, 79, trained=79)
    assert not doubts(clustering([10, 9, 8]), 26, trained=79)  # nothing is expected


def test_the_table_by_hand():
    found = diagnose(clustering([40, 9, 1]), 0.5)
    lines = [line.split() for line in diagnostics_table(found, 0.7, 0.72, "fixed").splitlines()]
    assert lines[1] == ["candidates", "1,000"]
    assert lines[2] == ["p", ">", "0.7", "500", "50.0%", "1", "50", "100.0%"]
    assert lines[3] == ["NI", ">", "0.72", "250", "25.0%", "3", "40", "80.0%"]
    assert lines[-1] == ["32", "to", "63", "1", "40", "80.0%"]
    assert lines[-6] == ["1", "1", "1", "2.0%"]
    assert "NI > dynamic, 0.78" in diagnostics_table(found, 0.85, 0.78, "dynamic")
    assert "within infomap clusters" in diagnostics_table(found, 0.7, 0.72, "fixed", "infomap")
