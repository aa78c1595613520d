"""Test edges on shards: what clustering asks of them is what it gets of the same edges in memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from starfc.clustering.choice import choose, communities_at, finished
from starfc.clustering.components import components
from starfc.clustering.parsing import ENTRIES
from starfc.clustering.samples import stay_apart
from starfc.data.dataset import Features
from starfc.data.synthetic import sample
from starfc.errors import InputError
from starfc.graph.opening import Search
from starfc.models.checkpoint import PRETRAINED, load_model
from starfc.shards.driver import Shards
from starfc.shards.engine import LocalEngine
from starfc.shards.store import Store

pytestmark = pytest.mark.long  # the edges take two seconds

THRESHOLDS = (0.3, 0.9, 0.98)


@pytest.fixture(scope="module")
def edges(tmp_path_factory):
    """The scored edges of 900 rows in shards of 128."""
    features = Features(sample(900, seed=3, dim=32)[0], "x")
    store = Store(str(tmp_path_factory.mktemp("store")))
    shards = Shards(store, LocalEngine(0), load_model(PRETRAINED), Search(), 128)
    return shards.parser(features, shards.graph(features, 40), ENTRIES, 0.0).parse(0.1)[0]


@pytest.fixture(scope="module")
def whole(edges):
    return edges.whole()


@pytest.fixture(scope="module")
def members(whole):
    """Clusters that do not follow the edges, and some that do."""
    found = components(whole, whole.scores > 0.8)
    halves = np.random.default_rng(0).random(len(found)) < 0.5
    return np.where(halves, found, components(whole, whole.scores > 0.95))


def test_the_list_is_symmetric_and_sorted(whole):
    assert len(whole) > 3000
    keys = whole.rows.astype(np.int64) * whole.num_nodes + whole.cols
    assert (np.diff(keys) > 0).all()
    back = np.argsort(whole.cols.astype(np.int64) * whole.num_nodes + whole.rows)
    np.testing.assert_array_equal(whole.scores, whole.scores[back])


def test_components_and_numbers_of_edges_at_any_threshold(edges, whole):
    for line in (0.1, 0.42, *THRESHOLDS, 0.999):
        expected = components(whole, whole.scores > line)
        np.testing.assert_array_equal(edges.components_above(line), expected)
        np.testing.assert_array_equal(components(edges.above(line)), expected)
        assert edges.above(line).num_edges == np.count_nonzero(whole.scores > line) / 2


def test_sums_over_edges(edges, whole, members):
    for line in (0.0, 0.5):
        for ours, theirs in zip(edges.split_sums(members, line), whole.split_sums(members, line), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_the_edges_between_some_rows(edges, whole):
    nodes = np.sort(np.random.default_rng(1).choice(whole.num_nodes, 300, replace=False))
    ours, theirs = edges.among(nodes), whole.among(nodes)
    table = np.zeros((whole.num_nodes,) * 2, np.float32)
    table[whole.rows, whole.cols] = whole.scores
    rows, cols = np.nonzero(table[np.ix_(nodes, nodes)])
    np.testing.assert_array_equal(theirs.rows, rows)
    np.testing.assert_array_equal(theirs.cols, cols)
    for name in ("indptr", "cols", "scores"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def test_the_edges_of_some_rows(edges, whole):
    nodes = np.sort(np.random.default_rng(1).choice(whole.num_nodes, 300, replace=False))
    ours, theirs = edges.above(0.5).ends_of(nodes), whole.above(0.5).ends_of(nodes)
    table = np.zeros((whole.num_nodes,) * 2, np.float32)
    table[whole.rows, whole.cols] = whole.scores
    expected = np.where(table[nodes] > 0.5, table[nodes], 0).sum(axis=0, dtype=np.float64)
    for ends, scores in (ours, theirs):
        np.testing.assert_array_equal(np.bincount(ends, scores, whole.num_nodes), expected)


@pytest.mark.parametrize("apart", [False, True])
def test_more_edges_and_clusters_that_stay_apart(edges, whole, members, apart):
    ours, theirs = edges.above(0.3), whole.above(0.3)
    if apart:
        former = components(whole, whole.scores > 0.3)
        ours, theirs = stay_apart(ours, former, members), stay_apart(theirs, former, members)
        assert theirs.num_edges < np.count_nonzero(whole.scores > 0.3) / 2
    pairs = np.unique(np.sort(np.random.default_rng(2).integers(0, whole.num_nodes, (200, 2)), axis=1), axis=0)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    known = np.stack([theirs.rows, theirs.cols], axis=1)[:: len(theirs) // 40]  # some are there already
    pairs = np.unique(np.concatenate([pairs, np.sort(known, axis=1)]), axis=0)
    links = (*np.concatenate([pairs, pairs[:, ::-1]]).T, np.full(2 * len(pairs), 0.75, np.float32))
    ours, theirs = ours.plus(*links), theirs.plus(*links)
    assert ours.num_edges == theirs.num_edges
    np.testing.assert_array_equal(components(ours), components(theirs))
    for one, other in zip(ours.split_sums(members)[:2], theirs.split_sums(members)[:2], strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(ours.whole().cols, theirs.cols)
    np.testing.assert_array_equal(ours.whole().scores, theirs.scores)


@pytest.mark.parametrize("large", [1 << 17, 20])
def test_communities_at_several_thresholds_and_at_the_chosen_one(edges, whole, monkeypatch, large):
    """Also if components count as large, which are searched quickly first."""
    for name in ("clustering.map_equation", "clustering.choice", "shards.communities", "shards.edge_set"):
        monkeypatch.setattr(f"starfc.{name}.LARGE", large)
    ours, theirs = (communities_at(some, THRESHOLDS, 5, True) for some in (edges, whole))
    np.testing.assert_array_equal(ours, theirs)
    assert len(np.unique(ours[0])) > len(np.unique(components(whole, whole.scores > 0.3)))
    for tau1, found in zip(THRESHOLDS, ours, strict=True):
        np.testing.assert_array_equal(finished(edges, found, tau1, 5, True), finished(whole, found, tau1, 5, True))


def test_packs_hold_whole_components_of_about_as_many_edges_as_a_shard(edges, whole):
    pieces = components(whole, whole.scores > 0.98)
    sizes = np.bincount(pieces)[pieces]
    packs = edges.packs(pieces, sizes > 2)
    assert 1 < len(packs) <= 2 * len(edges.run.shards)
    nodes = np.concatenate([pack.nodes for pack in packs])
    np.testing.assert_array_equal(np.sort(nodes), np.flatnonzero(sizes > 2))
    for pack in packs:
        for part in np.split(pack.nodes, np.cumsum(pack.sizes)[:-1]):
            np.testing.assert_array_equal(part, np.flatnonzero(pieces == part[0]))


def test_a_component_that_does_not_fit_is_refused(edges):
    engine = LocalEngine(0)
    engine.memory = 10_000
    with pytest.raises(InputError, match=r"communities: a component of \d+ rows and [\d,]+ edges needs .* higher tau1"):
        choose(replace(edges, engine=engine), 1000.0, THRESHOLDS)
