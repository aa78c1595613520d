"""Test adding to communities and removing from them: the search that keeps clusters whole, and steps."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from helpers.edges import edges_of, partitions, planted, random_edges, slow_code_length
from helpers.paths import ROOT, STRUCTURAL
from helpers.samples import blobs, same_partition
from helpers.steps import NONE, check_communities, clustering, graph_of, state_of
from starfc.clustering import map_equation
from starfc.clustering.parsing import ParsedEdges
from starfc.clustering.partition import infomap
from starfc.clustering.refinement import node_intimacy
from starfc.data.dataset import Features
from starfc.errors import InputError
from starfc.estimator import StarFC
from starfc.evaluation.metrics import evaluate
from starfc.graph.edges import EdgeList, undirected
from starfc.incremental.clusters import Grouping, regroup
from starfc.incremental.communities import condense, within_communities
from starfc.incremental.edges import Changed, changed, without
from starfc.incremental.state import State, make_rule
from starfc.models.checkpoint import load_model
from starfc.models.hierarchical import HierarchicalModel

METHODS = ["infomap", "leiden"]


@pytest.fixture(params=METHODS)
def method(request) -> str:
    if request.param == "leiden" and importlib.util.find_spec("igraph") is None:
        pytest.skip("igraph is not installed: the extra `communities`")
    return request.param


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def placed(edges: Changed, labels: list[int], next_label: int, partition: str, apply: bool = False) -> Grouping:
    """The grouping of a step that adds the rows whose label is -1; resolution and seed are the defaults."""
    labels = np.array(labels)
    new = np.flatnonzero(labels < 0)
    kept = within_communities(edges.parsed, labels, next_label, new, partition, 0.1, 0)
    parsed = ParsedEdges(edges.parsed.edges, edges.parsed.intimacy, kept)
    return regroup(labels, next_label, Changed(parsed, NONE, np.empty(0, bool), edges.at), new, NONE, apply)


def clique(rows: range, p: float) -> dict[tuple[int, int], float]:
    return {(i, j): p for i in rows for j in rows if i < j}


@pytest.mark.parametrize("symmetric", [False, True])
def test_groups_are_condensed_as_a_double_loop_does(symmetric):
    edges = edges_of(30, random_edges(30, 0.2, 0))
    edges = undirected(edges) if symmetric else edges
    groups = np.random.default_rng(1).integers(0, 9, 30)
    found, wanted = np.zeros((10, 10)), np.zeros((10, 10))
    for i, j, p in zip(edges.rows, edges.cols, edges.scores, strict=True):
        if groups[i] != groups[j]:
            wanted[groups[i], groups[j]] += p
    condensed = condense(edges, groups, 10)  # the last group has no member
    found[condensed.rows, condensed.cols] = condensed.scores
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert condensed.symmetric == symmetric


@pytest.mark.long
def test_groups_fall_into_the_modules_of_least_code_length():
    """The least over all partitions of 7 groups of 21 nodes, by the codebooks of the nodes, mostly; or near to it."""
    above = []
    for seed in range(12):
        edges, groups, strength = three_of_each(7, seed)
        found = infomap(condense(edges, groups, 7), pieces=np.zeros(7, np.int32), strength=strength)
        least = min(slow_code_length(edges, np.array(labels)[groups]) for labels in partitions(7))
        above.append(slow_code_length(edges, found[groups]) / least - 1)
    assert np.median(above) < 1e-6
    assert max(above) < 0.04


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_code_lengths_of_groups_differ_as_those_of_their_nodes_do(seed):
    edges, groups, strength = three_of_each(5, seed)
    condensed = condense(edges, groups, 5)
    given = (condensed.indptr, condensed.cols, condensed.scores, None, np.arange(5, dtype=np.int32), strength)
    graph = map_equation.symmetric(np.arange(5), *given)
    assert graph.flow.sum() == pytest.approx(1)
    differences = []
    for labels in map(np.array, partitions(5)):
        ours = map_equation._length(map_equation._coarse(graph, labels, labels.max() + 1))
        differences.append(ours - slow_code_length(edges, labels[groups]))
    np.testing.assert_allclose(differences, differences[0], atol=1e-6)


def three_of_each(count: int, seed: int) -> tuple[EdgeList, np.ndarray, np.ndarray]:
    """A graph of groups of three nodes, two edges inside each; the groups, and the sum of p at each."""
    pairs = {(i, j): p for i, j, p in random_edges(3 * count, 0.08, seed)}
    pairs |= {(i, i + count): 0.9 for i in range(2 * count)}
    edges = edges_of(3 * count, [(i, j, p) for (i, j), p in pairs.items()])
    groups, strength = np.arange(3 * count) % count, np.zeros(count)
    for ends in (edges.rows, edges.cols):
        np.add.at(strength, groups[ends], edges.scores)
    return edges, groups, strength


@pytest.mark.long
def test_new_instances_go_where_they_belong(method):
    """Clusters of six; 12 and 13 are of the second and touch the first; 14 to 18 are new together.

    The best edges of 12 and 14 lead to the first cluster, which is not theirs.
    """
    pairs = clique(range(6), 0.9) | clique(range(6, 12), 0.9)
    pairs |= {(i, 12): 0.9 for i in range(6, 11)} | {(12, 13): 0.8, (6, 13): 0.8, (7, 13): 0.8, (0, 12): 0.95}
    pairs |= clique(range(14, 19), 0.75) | {(0, 14): 0.95, (1, 14): 0.8}
    found = placed(graph_of(pairs, 20), [0] * 6 + [3] * 6 + [-1] * 8, 5, method)
    np.testing.assert_array_equal(found.labels, [0] * 6 + [3] * 8 + [5] * 5 + [6])
    assert (found.next_label, found.joined, found.created.tolist()) == (7, 2, [5, 6])
    assert not found.merges
    assert not found.splits


def test_what_new_instances_tie_together_is_listed_and_done_when_asked(method):
    """Two halves of an identity, of which the new instances know all the members."""
    halves = clique(range(4), 0.9) | clique(range(4, 8), 0.9)
    pairs = halves | clique(range(8, 13), 0.9) | {(i, j): 0.9 for i in range(8) for j in range(8, 13)}
    labels = [2] * 4 + [0] * 4 + [-1] * 5
    found = placed(graph_of(pairs, 13), labels, 3, method)
    np.testing.assert_array_equal(found.labels[:8], labels[:8])
    assert np.isin(found.labels[8:], [0, 2]).all()
    (merge,) = found.merges
    assert (merge.clusters, merge.into, merge.edges) == ((0, 2), None, 20)
    assert merge.via
    assert len(merge.evidence) == 5
    found = placed(graph_of(pairs, 13), labels, 3, method, apply=True)
    assert len(np.unique(found.labels)) == 1
    assert found.merges[0].into == found.labels[0]
    none = graph_of(halves | {(3, 4): 0.7}, 8)  # an edge between them was there before, and is no reason now
    assert not placed(none, labels[:8], 3, method).merges


def test_the_search_without_new_instances_asks_for_nothing(method):
    edges, labels = planted(groups=20, size=15, within=0.5, between=0.01, seed=0)
    parsed = ParsedEdges(edges, np.zeros(len(edges), np.float32), np.zeros(len(edges), bool))
    kept = within_communities(parsed, labels, 20, NONE, method, 0.1, 0)
    np.testing.assert_array_equal(kept, labels[edges.rows] == labels[edges.cols])


def test_threads_change_nothing(method, threads, monkeypatch):
    monkeypatch.setattr("starfc.clustering.partition._BATCH", 64)
    parts = [random_edges(40, 0.08, seed) for seed in range(12)]
    edges = edges_of(480, [(40 * c + i, 40 * c + j, p) for c, part in enumerate(parts) for i, j, p in part])
    parsed = ParsedEdges(edges, np.zeros(len(edges), np.float32), np.zeros(len(edges), bool))
    labels = infomap(edges).astype(np.int64)
    new = np.flatnonzero(np.random.default_rng(0).random(480) < 0.3)
    labels[new] = -1
    found = []
    for count in (1, 2, 3):
        threads(count)
        found.append(within_communities(parsed, labels, 480, new, method, 0.1, 0))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.long
@pytest.mark.parametrize("symmetric", [True, False])
def test_what_was_kept_stays_kept_where_no_intimacy_decides(symmetric):
    edges = edges_of(40, random_edges(40, 0.2, 0))
    edges = undirected(edges) if symmetric else edges
    early = (edges.rows < 30) & (edges.cols < 30)
    before = edges.select(early)
    before = EdgeList(before.indptr[:31], before.cols, before.scores, symmetric)
    kept = undirected_mask(before)
    parsed = ParsedEdges(before, node_intimacy(before), kept)
    added = edges.rows[~early], edges.cols[~early], edges.scores[~early]
    result = changed(parsed, added, 40, NONE, None)
    np.testing.assert_array_equal(result.parsed.intimacy, node_intimacy(result.parsed.edges))
    rows, cols = result.parsed.edges.rows, result.parsed.edges.cols
    wanted = dict(zip(zip(before.rows.tolist(), before.cols.tolist(), strict=True), kept.tolist(), strict=True))
    for i, j, k in zip(rows.tolist(), cols.tolist(), result.parsed.kept.tolist(), strict=True):
        assert k == wanted.get((i, j), False)
    np.testing.assert_array_equal(result.was_kept, result.parsed.kept[result.entries])
    rest, ends = without(result.parsed, np.array([4, 35]))
    result = changed(rest, (NONE, NONE, np.empty(0, np.float32)), 40, ends, None)
    np.testing.assert_array_equal(result.parsed.kept, rest.kept)


def undirected_mask(edges: EdgeList) -> np.ndarray:
    """Some of the edges, both directions or none."""
    return (edges.rows.astype(np.int64) + edges.cols) % 3 > 0


def state_by(features: np.ndarray, rows: int, kind: str, partition: str) -> State:
    _, _, model, k, taus = clustering(kind)
    return state_of(features, rows, model, k, taus, partition)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["structural", "gcn"])
def test_steps_keep_ids_and_edges_within_clusters(kind, method):
    features, _, _, _, _ = clustering(kind)
    state = state_by(features, 170, kind, method)
    check_communities(state)
    for stop, remove, apply in ((190, [], False), (200, [3, 8, 20], False), (224, [171], False), (224, [], True)):
        before = state.labels.copy()
        assigned = state.step(Features(features[:stop]), remove=remove, apply_merges=apply)
        check_communities(state)
        stay = np.setdiff1d(np.arange(len(before)), [*remove, 3, 8, 20])
        if not apply:
            np.testing.assert_array_equal(state.labels[stay], before[stay])
        assert (state.labels[remove] == -1).all()
        assert assigned.joined + np.isin(assigned.labels, assigned.created).sum() == stop - len(before)


def test_a_community_that_a_removal_takes_apart_is_listed_and_split_when_asked(method):
    """Row 3 alone holds its cluster together; 0 to 2 and 4 to 6 know nobody else."""
    pairs = clique(range(4), 0.9) | clique(range(3, 7), 0.9)
    edges = graph_of(pairs, 7)
    parsed, ends = without(edges.parsed, np.array([3]))
    edges = changed(parsed, (NONE, NONE, np.empty(0, np.float32)), 7, ends, None)
    labels = np.array([0, 0, 0, -1, 0, 0, 0])
    for apply in (False, True):
        kept = within_communities(edges.parsed, labels, 1, NONE, method, 0.1, 0)
        parsed = ParsedEdges(edges.parsed.edges, edges.parsed.intimacy, kept)
        found = regroup(labels, 1, Changed(parsed, NONE, np.empty(0, bool), edges.at), NONE, np.array([0]), apply)
        (split,) = found.splits
        assert (split.cluster, split.sizes, split.rows) == (0, [3, 3], [[4, 5, 6]])
        np.testing.assert_array_equal(found.labels, [0, 0, 0, -1, 1, 1, 1] if apply else labels)
        assert found.suspects.tolist() == ([] if apply else [0])


def test_kinds_that_cannot_be_added_to_are_refused():
    with pytest.raises(InputError, match="fixed refinement"):
        make_rule(load_model(STRUCTURAL), 0.6, 0.5, 0.0, "dynamic", "components")
    with pytest.raises(InputError, match="hierarchical"):
        make_rule(HierarchicalModel(16, 32, scales=(5, 10, 20)), 0.6, 0.5, 0.0, "fixed", "infomap")
    with pytest.raises(InputError, match="partition: one of"):
        make_rule(load_model(STRUCTURAL), 0.6, 0.5, 0.0, "fixed", "louvain")
    rule = make_rule(load_model(STRUCTURAL), 0.6, 0.5, 0.0, "fixed", "infomap")
    assert (rule.partition, rule.communities) == ("infomap", True)
    assert not make_rule(load_model(STRUCTURAL), 0.6, 0.5, 0.0, "fixed", "components").communities


@pytest.mark.long
def test_the_estimator_grows_by_communities(method):
    """Identities that are far enough apart, the last of which comes whole with the last batch."""
    features, truth = blobs(identities=14, size=20, dim=32, noise=0.7, seed=3)
    features = np.concatenate([features[truth != 5], features[truth == 5]])
    parameters = {"tau1": 0.7, "tau2": 0.0, "partition": method}
    whole, grown = StarFC(**parameters).fit(features), StarFC(**parameters)
    for part in np.split(features, [230, 250, 260]):
        grown.partial_fit(part)
    assert grown.assigned_.first_row == 260
    assert len(grown.labels_) == len(grown.confidence_) == grown.edge_scores_.edges.num_nodes == 280
    assert whole.labels_.max() == 13
    assert same_partition(grown.labels_, whole.labels_)
    assert "cluster" in grown.explain(0, 1).text()
    assert not hasattr(StarFC(refinement="dynamic"), "partial_fit")


@pytest.mark.long
@pytest.mark.parametrize("steps", [1, 3])
def test_the_sample_in_steps_is_as_good_as_at_once(steps):
    """A quarter of the sample's identities: pairwise F within a point."""
    labels = np.loadtxt(ROOT / "data" / "glyph" / "labels" / "sample.meta", dtype=np.int64)
    rows = np.random.default_rng(0).permutation(np.flatnonzero(np.isin(labels, np.unique(labels)[:40])))
    features = np.load(ROOT / "data" / "glyph" / "features" / "sample.npy", mmap_mode="r")[rows].astype(np.float32)
    first, parameters = int(0.9 * len(rows)), {"partition": "infomap", "tau1": 0.7, "tau2": 0.0}
    whole, grown = StarFC(**parameters).fit(features), StarFC(**parameters).fit(features[:first])
    before = grown.labels_
    for part in np.array_split(np.arange(first, len(rows)), steps):
        grown.partial_fit(features[part])
    np.testing.assert_array_equal(grown.labels_[:first], before)
    f = [evaluate(labels[rows], one.labels_, ("pairwise",))["pairwise"]["fscore"] for one in (grown, whole)]
    assert f[0] > f[1] - 0.01
