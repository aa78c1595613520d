"""Compare every baseline with a hand-made graph, a slow twin, or the library that it replaces."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import scipy.sparse as sp

from baselines import BASELINES, Baseline, grid
from baselines.communities import (
    chinese_whispers,
    early_stopping,
    edge_probabilities,
    fc_es,
    infomap,
    leiden,
    map_equation,
)
from baselines.connected import rank_distances, rank_order, single_link, sweep_single_link
from baselines.density import knn_dbscan, knn_hdbscan
from baselines.edges import first_neighbours, ordered, undirected
from baselines.means import finch, kmeans
from helpers.samples import blobs, random_graph, same_partition, unit
from starfc.errors import InputError
from starfc.evaluation.metrics import contingency, pairwise
from starfc.graph.knn import build_knn, exact_knn
from starfc.graph.neighbours import KnnGraph


def graph_of(rows, width=None):
    """A graph from lists of (id, similarity) a node; what is shorter than the longest ends in missing slots."""
    width = width or max(map(len, rows))
    ids, sims = np.full((len(rows), width), -1, np.int32), np.zeros((len(rows), width), np.float32)
    for i, row in enumerate(rows):
        for c, (j, s) in enumerate(row):
            ids[i, c], sims[i, c] = j, s
    return KnnGraph(ids, sims)


def cliques(bridge):
    """Two groups of four of similarity 0.9, with a node of each joined by ``bridge``, and a node with no neighbour."""
    groups = ([0, 1, 2, 3], [4, 5, 6, 7])
    rows = [[(j, 0.9) for j in group if j != i] for group in groups for i in group]
    rows[0].append((4, bridge))
    rows[4].append((0, bridge))
    return graph_of([*rows, []])


TWO_AND_ONE = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2])


@pytest.fixture(scope="module")
def points():
    """Features, labels and a graph of all other nodes, in which nothing is missing."""
    features, labels = blobs(identities=8, size=15, noise=0.3)
    features = unit(features)
    return features, labels, first_neighbours(exact_knn(features, len(features)), len(features))


def needs(name):
    baseline = BASELINES[name]
    if not baseline.available:
        pytest.skip(f"{baseline.package} is not installed: the extra `baselines`")


# what they share


def test_labels_are_largest_first_and_noise_is_alone():
    np.testing.assert_array_equal(ordered(np.array([-1, 5, 5, -1, 9, 9, 9])), [2, 1, 1, 3, 0, 0, 0])


def test_undirected_edges_are_those_of_either_list():
    matrix = undirected(graph_of([[(1, 0.9), (2, 0.4)], [], [(1, 0.6)]]), 0.5).toarray()
    np.testing.assert_array_equal(matrix, np.array([[0, 0.9, 0], [0.9, 0, 0.6], [0, 0.6, 0]], np.float32))


def test_k_counts_the_node_itself_and_is_checked():
    graph = random_graph(9, 4, seed=0)
    np.testing.assert_array_equal(first_neighbours(graph, 3).ids, graph.ids[:, :2])
    with pytest.raises(InputError, match="k: must be between 2 and 5"):
        first_neighbours(graph, 6)


def test_grids_hold_every_combination():
    assert grid(a=(1, 2), b=("x",)) == ({"a": 1, "b": "x"}, {"a": 2, "b": "x"})


def test_a_baseline_whose_package_is_missing_says_so():
    assert not Baseline("x", "nobody", single_link, (), package="no_such_package").available


@pytest.mark.long
@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_labels_a_graph_with_missing_neighbours(name):
    """Labels are 0..C-1, largest first, the same each time; who lists none and is listed by none stays alone."""
    needs(name)
    baseline, some = BASELINES[name], random_graph(120, 79, seed=1)
    ids, sims = (np.pad(array, ((0, 1), (0, 0))) for array in (some.ids, some.sims))
    ids[120] = -1
    graph, features = KnnGraph(ids, sims), unit(np.random.default_rng(0).normal(size=(121, 8)))
    told = {"num_clusters": 5} if baseline.told_clusters else {}
    for parameters in (baseline.grid[0], baseline.grid[-1]):
        labels = baseline.run(graph, features, **parameters, **told)
        assert (labels.shape, labels.dtype) == ((121,), np.int64)
        sizes = np.bincount(labels)
        assert sizes.min() > 0
        assert (np.diff(sizes) <= 0).all()
        if name not in ("finch", "kmeans"):  # which look at features
            assert sizes[labels[120]] == 1
        np.testing.assert_array_equal(labels, baseline.run(graph, features, **parameters, **told))


# connected


@pytest.mark.long
def test_single_link_is_the_components_at_each_threshold(tmp_path):
    features, labels = blobs()
    graph = build_knn(unit(features), 12)
    for name in ("ids", "sims"):
        np.save(tmp_path / f"{name}.npy", getattr(graph, name))
    mapped = KnnGraph(*(np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("ids", "sims")))
    thresholds = [0.0, 0.75, 0.8, 0.85, 0.9, 1.0]
    points = sweep_single_link(mapped, labels, thresholds)
    assert [point.threshold for point in points] == thresholds[::-1]
    for point in points:
        kept = (graph.ids >= 0) & (graph.sims >= np.float32(point.threshold))
        edges = (np.ones(kept.sum()), (np.nonzero(kept)[0], graph.ids[kept]))
        count, predicted = sp.csgraph.connected_components(sp.csr_matrix(edges, (len(labels), len(labels))))
        score = pairwise(contingency(labels, predicted))
        assert point[1:] == (score.precision, score.recall, score.fscore, count)
        assert same_partition(single_link(mapped, min_sim=point.threshold), predicted)
    assert len({point.num_clusters for point in points}) >= 3


def test_missing_neighbours_join_nothing():
    graph = graph_of([[(1, 0.0)], [], []], width=2)
    (point,) = sweep_single_link(graph, np.array([0, 0, 1]), [0.0])
    assert (point.fscore, point.num_clusters) == (1.0, 2)
    np.testing.assert_array_equal(single_link(graph, min_sim=0.0), [0, 0, 1])


def slow_rank_distance(lists, a, b, k):
    """Otto's distance in sets and lists, from the definition."""

    def absent(x, first, y):
        return sum(m not in lists[y] and m != y for m in lists[x][: min(first, k)])

    forth = lists[a].index(b) + 1
    back = lists[b].index(a) + 1 if a in lists[b] else k + 1
    return (absent(a, forth, b) + absent(b, back, a)) / min(forth, back)


@pytest.mark.long
def test_rank_distances_are_those_of_the_definition():
    graph = random_graph(40, 12, seed=3)
    lists = [row[row >= 0].tolist() for row in graph.ids]
    distances = rank_distances(graph)
    for a, c in np.ndindex(*graph.ids.shape):
        b = graph.ids[a, c]
        expected = np.inf if b < 0 else np.float32(slow_rank_distance(lists, a, b, 12))
        assert distances[a, c] == expected


def test_rank_order_by_hand():
    # 0, 1, 2 list each other: distance 0. 3 lists 0, 1 and is listed by none: d(3, 0) = 0, d(0, 3) = |{}| of {1, 2}
    # less 3's list {0, 1} = 1, so (0 + 1) / 1
    graph = graph_of([[(1, 0.9), (2, 0.9)], [(0, 0.9), (2, 0.9)], [(0, 0.9), (1, 0.9)], [(0, 0.5), (1, 0.5)]])
    np.testing.assert_array_equal(rank_distances(graph)[:, 0], np.array([0, 0, 0, 1], np.float32))
    np.testing.assert_array_equal(rank_order(graph, threshold=0.2), [0, 0, 0, 1])
    np.testing.assert_array_equal(rank_order(graph, threshold=1.0), [0, 0, 0, 0])


# density


@pytest.mark.parametrize(("min_sim", "min_points"), [(0.9, 3), (0.93, 4), (0.92, 6)])
def test_dbscan_is_scikit_learns_but_for_the_core_a_border_joins(points, min_sim, min_points):
    from sklearn.cluster import DBSCAN

    features, _, graph = points
    distances = 1 - np.clip(features @ features.T, 0, 1)
    np.put_along_axis(distances, graph.ids, 1 - graph.sims, axis=1)  # the same rounding
    reference = DBSCAN(eps=float(np.float32(1) - np.float32(min_sim)), min_samples=min_points, metric="precomputed")
    expected, core = reference.fit(np.maximum(distances, 0)), np.zeros(len(features), bool)
    core[expected.core_sample_indices_] = True
    labels = knn_dbscan(graph, min_sim=min_sim, min_points=min_points)
    assert 0 < core.sum() < len(features)
    assert same_partition(labels[core], expected.labels_[core])
    noise = expected.labels_ == -1
    assert (np.bincount(labels)[labels[noise]] == 1).all()
    for i in np.flatnonzero(~core & ~noise):
        assert labels[i] == labels[next(j for j in graph.ids[i] if core[j])]


def test_dbscan_by_hand():
    # 1 is a core (0, 2 and itself); 0 and 2 are borders; 3 nears 2 only, no core, and is noise
    graph = graph_of([[(1, 0.9)], [(0, 0.9), (2, 0.8)], [(1, 0.8), (3, 0.8)], [(2, 0.8)]])
    np.testing.assert_array_equal(knn_dbscan(graph, min_sim=0.85, min_points=2), [0, 0, 1, 2])
    cut = graph_of([[(1, 0.9)], [(0, 0.9), (2, 0.8)], [(1, 0.8)], [(2, 0.7)]])
    np.testing.assert_array_equal(knn_dbscan(cut, min_sim=0.75, min_points=3), [0, 0, 0, 1])
    with pytest.raises(InputError, match="min_points: must be between 1 and 3"):
        knn_dbscan(graph, min_sim=0.5, min_points=4)


@pytest.mark.parametrize(
    ("size", "samples", "selection"), [(3, 2, "eom"), (5, 4, "eom"), (4, 3, "leaf"), (5, 1, "eom")]
)
def test_hdbscan_on_a_complete_graph_is_scikit_learns(points, size, samples, selection):
    from sklearn.cluster import HDBSCAN

    features, _, graph = points
    distances = np.zeros((len(features),) * 2)
    np.put_along_axis(distances, graph.ids, np.sqrt(2 - 2 * graph.sims.astype(np.float64)), axis=1)
    distances = (distances + distances.T) / 2  # as a product the similarity of a pair may differ in its last bit
    reference = HDBSCAN(
        min_cluster_size=size,
        min_samples=samples,
        metric="precomputed",
        cluster_selection_method=selection,
        copy=True,
    )
    expected = ordered(reference.fit_predict(distances).astype(np.int64))
    labels = knn_hdbscan(graph, min_cluster_size=size, min_samples=samples, selection=selection)
    assert len(np.unique(expected)) > 3
    assert same_partition(labels, expected)


def test_hdbscan_of_a_graph_in_pieces_with_duplicates():
    """Components of the graph stay apart, equal points stay together, and a node without neighbours is noise."""
    graph = cliques(bridge=0.1)
    graph.sims[:8, :3] = 1.0
    labels = knn_hdbscan(graph, min_cluster_size=3, min_samples=2)
    np.testing.assert_array_equal(labels, TWO_AND_ONE)


# communities


def test_chinese_whispers_finds_groups():
    np.testing.assert_array_equal(chinese_whispers(cliques(0.6), min_sim=0.5), TWO_AND_ONE)
    np.testing.assert_array_equal(chinese_whispers(cliques(0.6), min_sim=0.95), np.arange(9))


@pytest.mark.parametrize("seed", range(3))
def test_chinese_whispers_is_its_slow_twin(seed):
    graph = random_graph(60, 6, seed)
    weights, rng, classes = undirected(graph, 0.3).toarray(), np.random.default_rng(seed), list(range(60))
    for _ in range(5):
        for i in rng.permutation(60):
            sums = {classes[i]: 0.0}
            for j in np.flatnonzero(weights[i]):
                sums[classes[j]] = sums.get(classes[j], 0.0) + float(weights[i, j])
            classes[i] = max(sums, key=sums.get)  # the first of equals: its own, then by the neighbours' ids
    found = chinese_whispers(graph, min_sim=0.3, iterations=5, seed=seed)
    assert same_partition(found, np.array(classes))


@pytest.mark.parametrize("objective", ["CPM", "modularity"])
def test_leiden_finds_groups_and_leaves_the_random_numbers_alone(objective):
    needs("leiden")
    import igraph

    resolution = {"CPM": 0.3, "modularity": 1.0}[objective]
    found = [
        leiden(cliques(0.6), min_sim=0.5, resolution=resolution, objective=objective, seed=seed) for seed in (0, 0, 1)
    ]
    for labels in found:
        np.testing.assert_array_equal(labels, TWO_AND_ONE)
    graphs = []
    for _ in range(2):
        random.seed(5)
        graphs.append(igraph.Graph.Erdos_Renyi(20, 0.3).get_edgelist())
    assert graphs[0] == graphs[1]


@pytest.mark.long
def test_infomap_finds_groups_and_leaves_single_nodes_alone():
    needs("infomap")
    ids = np.array([[1, 2], [0, 2], [0, 1], [4, 5], [3, 5], [3, 4], [0, 1]], np.int32)
    sims = np.full(ids.shape, 0.9, np.float32)
    sims[6] = 0.1
    labels = infomap(KnnGraph(ids, sims), min_sim=0.5)
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, [0, 0, 0, 1, 1, 1, 2])
    np.testing.assert_array_equal(infomap(KnnGraph(ids, sims), min_sim=0.95), np.arange(7))


def test_the_map_equation_finds_groups_without_the_package():
    ids = np.array([[1, 2, 6], [0, 2, -1], [0, 1, 3], [4, 5, -1], [3, 5, -1], [3, 4, -1], [0, 1, -1]], np.int32)
    sims = np.where(ids >= 0, 0.9, 0).astype(np.float32)
    sims[6] = 0.1
    sims[0, 2] = sims[2, 2] = 0.2
    expected = [0, 0, 0, 1, 1, 1, 2]
    np.testing.assert_array_equal(map_equation(KnnGraph(ids, sims), min_sim=0.5), expected)
    np.testing.assert_array_equal(map_equation(KnnGraph(ids, sims), min_sim=0.95), np.arange(7))
    sims[0, 2] = sims[2, 2] = 0.9  # beyond the first two neighbours
    np.testing.assert_array_equal(map_equation(KnnGraph(ids, sims), min_sim=0.5, k=3), expected)


def test_edge_probabilities_are_those_of_the_definition():
    graph, sigma = random_graph(30, 8, seed=2), 0.5
    p = np.zeros((30, 30))
    for i in range(30):
        p[i, i] = 1
        for j, s in zip(graph.ids[i], graph.sims[i], strict=True):
            if j >= 0:
                p[i, j] = np.exp(-(2 - 2 * s) / sigma)
        p[i] /= p[i].sum()
    probabilities = edge_probabilities(graph, sigma)
    for i, c in np.ndindex(*graph.ids.shape):
        j = graph.ids[i, c]
        common = (p[i] > 0) & (p[j] > 0)
        expected = 0 if j < 0 else (p[i, common] + p[j, common]).sum() / 2
        assert probabilities[i, c] == pytest.approx(expected, abs=1e-6)


def test_early_stopping_ends_a_list_at_its_first_improbable_edge():
    graph = graph_of([[(1, 0.9), (2, 0.8), (3, 0.7)], [(0, 0.9)], [], []])
    probabilities = np.array([[0.5, 0.1, 0.6], [0.2, 0, 0], [0, 0, 0], [0, 0, 0]], np.float32)
    kept = early_stopping(graph, probabilities, theta=0.2)
    np.testing.assert_array_equal(kept, [[1, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(early_stopping(graph, probabilities, theta=0)[:, 0], [True, True, False, False])


def test_fc_es_finds_groups():
    needs("fc_es")
    np.testing.assert_array_equal(fc_es(cliques(0.6), theta=0.7), TWO_AND_ONE)


# means


def slow_finch(features, level):
    labels = np.arange(len(features))
    for _ in range(level):
        means = np.stack([features[labels == c].mean(axis=0) for c in range(labels.max() + 1)])
        sims = unit(means) @ unit(means).T
        np.fill_diagonal(sims, -1)
        first = sims.argmax(axis=1)
        links = np.zeros_like(sims, bool)
        for i, j in itertools.product(range(len(means)), repeat=2):
            links[i, j] = first[i] == j or first[j] == i or first[i] == first[j]
        labels = sp.csgraph.connected_components(sp.csr_matrix(links))[1][labels]
    return labels


def test_finch_is_its_slow_twin(points):
    features, _, graph = points
    found = [finch(graph, features, level=level) for level in (1, 2, 3)]
    for level, labels in enumerate(found, start=1):
        assert same_partition(labels, slow_finch(features, level))
    counts = [labels.max() + 1 for labels in found]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1] > 1


def test_finch_ends_before_all_are_one(points):
    features, _, graph = points
    last = finch(graph, features, level=50)
    assert last.max() > 0
    with pytest.raises(InputError, match="level"):
        finch(graph, features, level=0)


def test_kmeans_finds_well_separated_blobs():
    features, labels = blobs(identities=5, size=20, noise=0.05)
    found = kmeans(
        KnnGraph(np.empty((100, 0), np.int32), np.empty((100, 0), np.float32)), unit(features), num_clusters=5
    )
    assert same_partition(found, labels)
