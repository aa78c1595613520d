"""Test adding and removing instances in memory: lists, edges, clusters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.paths import STRUCTURAL
from helpers.samples import same_partition, unit
from helpers.steps import NONE, clustering, graph_of, state_of
from starfc.clustering.components import components
from starfc.clustering.parsing import ParsedEdges
from starfc.clustering.pipeline import cluster
from starfc.clustering.refinement import node_intimacy
from starfc.data.dataset import Features
from starfc.errors import InputError
from starfc.estimator import StarFC
from starfc.graph.edges import EdgeList, undirected
from starfc.graph.knn import exact_knn
from starfc.graph.structure import NO_LOGIT
from starfc.incremental import lists as lists_module
from starfc.incremental.clusters import regroup
from starfc.incremental.edges import Changed, changed, without
from starfc.incremental.lists import Lists
from starfc.incremental.state import make_rule
from starfc.models.checkpoint import load_model
from starfc.models.hierarchical import HierarchicalModel
from starfc.models.structural import StructuralModel


def lattice(n: int, dim: int, seed: int) -> np.ndarray:
    """Unit vectors of ±1/√d or so whose products are exact in float32 and tie often."""
    return (np.random.default_rng(seed).choice([-1.0, 1.0], (n, dim)) / np.sqrt(dim)).astype(np.float32)


def empty_lists(k: int) -> Lists:
    return Lists(
        np.empty((0, k), np.int32), np.empty((0, k), np.float32), np.empty(0, bool), np.empty((0, 0), np.int8),
        np.empty(0, bool), 0,
    )  # fmt: skip


def searched(features: np.ndarray, k: int, first: int, remove=()) -> Lists:
    """Lists of the first rows, then of all, some of the first removed on the way."""
    lists = empty_lists(k).grown(np.ones(first, bool))
    lists.enter(lists.search(Features(features[:first], normalise=False), 0, NONE))
    lists = lists.grown(np.ones(len(features) - first, bool))
    gone = np.asarray(remove, np.int64)
    lists.remove(gone)
    lists.enter(lists.search(Features(features, normalise=False), first, gone))
    return lists


@pytest.mark.parametrize(("dim", "k"), [(64, 20), (4, 20), (16, 90)])
def test_lists_are_those_of_a_search_of_everything(dim, k):
    """Many ties; many duplicates, so that a node's own id falls out; and fewer nodes than k at first."""
    features = lattice(160, dim, 0)
    features[:, 0] = np.abs(features[:, 0])
    if dim == 16:  # similarities clipped to 0 have no order: keep the others only
        features = np.abs(features) * np.where(np.random.default_rng(1).random(features.shape) < 0.15, -1, 1)
        features = features.astype(np.float32)
    lists, whole = searched(features, k, 80), exact_knn(features, k)
    clear = (whole.sims[:, -2] > 0) | (whole.ids[:, -2] < 0)
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(lists.ids[clear], whole.ids[clear])
    np.testing.assert_array_equal(lists.sims[clear], whole.sims[clear])


def test_lists_after_removal_are_those_of_the_rows_that_remain():
    features = unit(np.random.default_rng(0).normal(1, 1, (150, 24)))
    gone = np.array([3, 4, 99])
    lists = searched(features, 12, 100, remove=gone)
    stay = np.setdiff1d(np.arange(150), gone)
    whole = exact_knn(features[stay], 12)
    np.testing.assert_array_equal(lists.ids[stay], np.append(stay, -1)[whole.ids])
    np.testing.assert_allclose(lists.sims[stay], whole.sims, atol=1e-6)
    assert (lists.ids[gone] == -1).all()
    assert not lists.alive[gone].any()


@pytest.mark.long
def test_rounded_products_find_the_same_lists(monkeypatch):
    """Groups so narrow that rounding cannot tell their members apart are searched for again."""
    rng = np.random.default_rng(0)
    features = rng.normal(0.3, 1, (900, 48))
    features[300:700] = features[300] + 1e-3 * features[300:700]
    features = unit(features[rng.permutation(900)])
    gone = np.array([3, 4, 99])
    plain = searched(features, 12, 600, remove=gone)
    monkeypatch.setattr(lists_module, "product_dtype", lambda: torch.bfloat16)
    monkeypatch.setattr(lists_module, "_SMALL", 0)
    calls = []
    products = lists_module._products
    monkeypatch.setattr(lists_module, "_products", lambda *given: calls.append(given) or products(*given))
    rounded = searched(features, 12, 600, remove=gone)
    assert {given[-1] for given in calls} == {torch.float32, torch.bfloat16}
    np.testing.assert_allclose(rounded.sims, plain.sims, atol=1e-6)
    sharp = np.diff(plain.sims[:, :11], axis=1).max(axis=1) < -1e-6  # float32 sums of another order differ
    assert sharp.sum() > 100
    assert (rounded.ids[sharp, :10] == plain.ids[sharp, :10]).mean() > 0.999


def test_codes_move_with_their_entries():
    features = unit(np.random.default_rng(0).normal(1, 1, (60, 8)))
    lists = searched(features[:50], 10, 50)
    lists.codes, lists.candidates = (lists.ids[:, :9] % 100).astype(np.int8), 6
    lists.codes[:, 6:] = NO_LOGIT
    lists = lists.grown(np.ones(10, bool))
    lists.enter(lists.search(Features(features, normalise=False), 50, NONE))
    old = lists.ids[:50, :6]
    assert (old >= 50).any()
    np.testing.assert_array_equal(lists.codes[:50, :6], np.where(old >= 50, NO_LOGIT, old))
    assert (lists.codes[:, 6:] == NO_LOGIT).all()


def random_edges(n: int, seed: int, symmetric: bool) -> ParsedEdges:
    rng = np.random.default_rng(seed)
    dense = np.triu(rng.random((n, n)) < 0.25, 1) if symmetric else rng.random((n, n)) < 0.2
    np.fill_diagonal(dense, False)
    rows, cols = np.nonzero(dense)
    edges = EdgeList.from_rows(rows, cols.astype(np.int32), rng.random(len(rows)).astype(np.float32), n)
    edges = undirected(edges) if symmetric else edges
    intimacy = node_intimacy(edges)
    return ParsedEdges(edges, intimacy, intimacy > 0.4)


@pytest.mark.parametrize("symmetric", [True, False])
def test_intimacies_are_those_of_the_whole_list(symmetric):
    """Edges of nodes 0..39, then those at 40..49 added; nodes 5 and 45 taken out on the way and at the end."""
    whole = random_edges(50, 0, symmetric)
    early = (whole.edges.rows < 40) & (whole.edges.cols < 40)
    edges = whole.edges.select(early)
    edges = EdgeList(edges.indptr[:41], edges.cols, edges.scores, symmetric)
    intimacy = node_intimacy(edges)
    parsed = ParsedEdges(edges, intimacy, intimacy > 0.4)
    added = whole.edges.rows[~early], whole.edges.cols[~early], whole.edges.scores[~early]
    result = changed(parsed, added, 50, np.empty(0, np.int64), 0.4).parsed
    assert result.edges.symmetric == symmetric
    np.testing.assert_array_equal(result.intimacy, node_intimacy(result.edges))
    np.testing.assert_array_equal(result.kept, result.intimacy > 0.4)
    if symmetric:
        np.testing.assert_array_equal(result.edges.cols, whole.edges.cols)
        np.testing.assert_array_equal(result.intimacy, whole.intimacy)
    nothing = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    rest, ends = without(result, np.array([5, 45]))
    result = changed(rest, nothing, 50, ends, 0.4).parsed
    assert not np.isin(result.edges.cols, [5, 45]).any()
    assert not np.isin(result.edges.rows, [5, 45]).any()
    np.testing.assert_array_equal(result.intimacy, node_intimacy(result.edges))
    np.testing.assert_array_equal(result.kept, result.intimacy > 0.4)


def test_new_instances_join_bridge_and_found_by_hand():
    """Clusters {0, 1, 2} and {3, 4}; 5 is between both, nearer to the second; 6 and 7 are new together; 8 is alone."""
    edges = graph_of({(0, 1): 0.9, (1, 2): 0.9, (3, 4): 0.9, (1, 5): 0.8, (4, 5): 0.95, (6, 7): 0.9}, 9)
    labels = np.array([0, 0, 0, 4, 4, -1, -1, -1, -1])
    found = regroup(labels, 7, edges, np.arange(5, 9), np.empty(0, np.int64), apply=False)
    np.testing.assert_array_equal(found.labels, [0, 0, 0, 4, 4, 4, 7, 7, 8])
    assert (found.next_label, found.joined, found.created.tolist()) == (9, 1, [7, 8])
    (merge,) = found.merges
    assert (merge.clusters, merge.via, merge.into, merge.edges) == ((0, 4), [5], None, 1)
    assert merge.evidence == [(1, 5, pytest.approx(0.8), pytest.approx(0.9))]
    found = regroup(labels, 7, edges, np.arange(5, 9), np.empty(0, np.int64), apply=True)
    np.testing.assert_array_equal(found.labels, [0, 0, 0, 0, 0, 0, 7, 7, 8])
    assert found.merges[0].into == 0


def test_a_chain_of_new_instances_does_not_join_two_clusters():
    edges = graph_of({(0, 1): 0.9, (2, 3): 0.9, (0, 4): 0.8, (4, 5): 0.7, (3, 5): 0.9}, 6)
    found = regroup(np.array([0, 0, 1, 1, -1, -1]), 2, edges, np.arange(4, 6), np.empty(0, np.int64), apply=False)
    np.testing.assert_array_equal(found.labels, [0, 0, 1, 1, 0, 1])
    assert found.merges[0].via == [4, 5]


def test_a_cluster_that_comes_apart_is_listed_and_stays_listed():
    edges = graph_of({(0, 1): 0.9, (2, 3): 0.9, (3, 4): 0.9}, 6, lost=((1, 2),))
    labels = np.array([3, 3, 3, 3, 3, 1])
    found = regroup(labels, 4, edges, np.empty(0, np.int64), np.empty(0, np.int64), apply=False)
    np.testing.assert_array_equal(found.labels, labels)
    (split,) = found.splits
    assert (split.cluster, split.sizes, split.rows, split.ids) == (3, [3, 2], [[0, 1]], None)
    quiet = Changed(edges.parsed, np.empty(0, np.int64), np.empty(0, bool), np.zeros(6, bool))
    again = regroup(labels, 4, quiet, np.empty(0, np.int64), found.suspects, apply=True)
    np.testing.assert_array_equal(again.labels, [4, 4, 3, 3, 3, 1])
    assert again.splits[0].ids == [3, 4]
    assert not again.suspects.size


@pytest.mark.parametrize("kind", ["structural", "gcn"])
def test_a_step_scores_new_edges_as_clustering_everything_would(kind):
    features, _, model, k, taus = clustering(kind)
    state = state_of(features, 200, model, k, taus)
    state.lists.known[:] = False  # so that no logit is of the graph before
    before = state.labels.copy()
    assigned = state.step(Features(features))
    whole = cluster(
        Features(features), exact_knn(Features(features), k), model, tau1=taus[0], tau2=taus[1], keep_edges=True
    )
    found, wanted = (
        {
            (i, j): p
            for i, j, p in zip(e.rows.tolist(), e.cols.tolist(), e.scores.tolist(), strict=True)
            if max(i, j) >= 200
        }
        for e in (state.parsed.edges, whole.parsed.edges)
    )
    assert len(wanted) > 50
    assert len(found.keys() ^ wanted.keys()) <= 0.01 * len(wanted)  # similarities differ by their rounding
    assert max(abs(found[e] - wanted[e]) for e in found.keys() & wanted.keys()) < 0.02
    np.testing.assert_array_equal(state.labels[:200], before)
    assert assigned.joined + np.isin(assigned.labels, assigned.created).sum() == len(features) - 200
    np.testing.assert_array_equal(state.parsed.intimacy, node_intimacy(state.parsed.edges))


@pytest.mark.parametrize("kind", ["structural", "gcn"])
def test_with_merges_applied_clusters_are_the_components(kind):
    features, _, model, k, taus = clustering(kind)
    state = state_of(features, 150, model, k, taus)
    state.step(Features(features[:180]), remove=[3, 8, 20])
    state.step(Features(features), remove=[151], apply_merges=True)
    there = state.labels >= 0
    assert np.flatnonzero(~there).tolist() == [3, 8, 20, 151]
    kept = state.parsed.edges.select(state.parsed.kept)
    assert same_partition(components(kept)[there], state.labels[there])
    assert not np.isin(kept.cols, [3, 8, 20, 151]).any()
    with pytest.raises(InputError, match="removed before"):
        state.step(state.features, remove=[8])
    with pytest.raises(InputError, match="rows from 0 to"):
        state.step(state.features, remove=[224])


@pytest.mark.parametrize(("columns", "candidates"), [(79, 40), (19, 40), (19, 5)])
def test_every_row_whose_logits_are_known_has_one_for_each_candidate(columns, candidates):
    features, _, _, _, _ = clustering("structural")
    generator = torch.Generator().manual_seed(0)
    model = StructuralModel(16, columns=columns, candidates=candidates, generator=generator)
    state = state_of(features, 150, model, columns + 1, (0.4, 0.3))
    for stop, remove in ((170, [4, 9]), (170, [11]), (224, [160])):
        state.step(Features(features[:stop]), remove=remove)
        lists, own = state.lists, slice(0, min(columns, candidates))
        asked = lists.known[:, None] & (lists.ids[:, own] >= 0)
        assert asked.sum() > 100 * min(candidates, columns)
        assert (lists.codes[:, own][asked] != NO_LOGIT).all()
        assert (lists.codes[:, own][lists.ids[:, own] < 0] == NO_LOGIT).all()


def test_kinds_that_cannot_be_added_to_are_refused():
    with pytest.raises(InputError, match="fixed refinement"):
        make_rule(load_model(STRUCTURAL), 0.6, 0.5, 0.0, "dynamic", "components")
    with pytest.raises(InputError, match="hierarchical"):
        make_rule(HierarchicalModel(16, 32, scales=(5, 10, 20)), 0.6, 0.5, 0.0, "fixed", "components")


def test_the_estimator_grows():
    features, _, model, k, taus = clustering("structural")
    estimator = StarFC(STRUCTURAL, tau1=taus[0], tau2=taus[1]).partial_fit(features[:200])
    before = estimator.labels_
    assert len(estimator.edge_scores_.edges) > 0
    estimator.partial_fit(features[200:212]).partial_fit(features[212:], apply_merges=True)
    state = state_of(features, 200, model, k, taus)
    state.step(Features(features[:212]))
    assert len(before) == 200
    state.step(Features(features), apply_merges=True)
    np.testing.assert_array_equal(estimator.labels_, state.labels)
    assert estimator.edge_scores_.edges.num_nodes == len(estimator.confidence_) == 224
    assert estimator.assigned_.first_row == 212
    assert not hasattr(StarFC(refinement="dynamic"), "partial_fit")
