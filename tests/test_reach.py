"""Clusters that are larger than the lists, looked at again in a sample of the rows."""

import json

import numpy as np
import pytest

from starfc import StarFC
from starfc.clustering.components import components
from starfc.clustering.edges import EdgeList
from starfc.clustering.reach import join_large, reach
from starfc.data.dataset import Features
from starfc.data.synthetic import Population, Synthetic
from starfc.evaluation.metrics import evaluate
from starfc.inference import run_inference
from starfc.models.checkpoint import PRETRAINED
from starfc.recipes import model_config
from starfc.runtime.stages import Stages


def edges_of(pairs, n, p=0.9):
    rows, cols = np.array(pairs, np.int64).reshape(-1, 2).T
    rows, cols = np.concatenate([rows, cols]), np.concatenate([cols, rows])
    order = np.lexsort((cols, rows))
    edges = EdgeList.from_rows(rows[order], cols[order].astype(np.int32), np.full(len(rows), p, np.float32), n)
    return EdgeList(edges.indptr, edges.cols, edges.scores, symmetric=True)


def chains(members):
    """Edges from every row to the next of its cluster."""
    order = np.argsort(members, kind="stable")
    same = members[order[1:]] == members[order[:-1]]
    return edges_of(np.stack([order[:-1][same], order[1:][same]], axis=1), len(members))


def slow_joined(members, columns, drawn, labels, theirs):
    """The rule of the module, cluster by cluster; the sets of rows that belong together."""
    goes_to = {}
    for name in np.unique(members):
        rows = np.flatnonzero(members == name)
        there = labels[np.isin(drawn, rows)]
        if len(rows) > columns and len(there):
            values, counts = np.unique(there, return_counts=True)
            if counts.max() >= 5 and counts.max() >= 0.9 * len(there):
                goes_to[name] = values[counts.argmax()]
    name = members.copy()
    changed = True
    while changed:
        changed = False
        for a, b in zip(drawn[theirs.rows], drawn[theirs.cols], strict=True):
            ours, others = members[a], members[b]
            if ours in goes_to and goes_to.get(ours) == goes_to.get(others) and name[a] != name[b]:
                name[np.isin(name, [name[a], name[b]])] = min(name[a], name[b])
                changed = True
    return name


@pytest.mark.parametrize("seed", range(8))
def test_clusters_are_joined_as_the_rule_says(seed):
    rng = np.random.default_rng(seed)
    of = rng.integers(0, 12, 400) ** 2 // 12
    members = np.array([np.flatnonzero(of == value)[0] for value in of])
    drawn = np.sort(rng.permutation(400)[:200])
    labels = of[drawn] // 3
    wrong = rng.random(200) < 0.05
    labels[wrong] = rng.integers(0, 4, wrong.sum())
    theirs = chains(labels)
    found = join_large(members, chains(members), 20, drawn, labels, theirs)
    np.testing.assert_array_equal(found.members, slow_joined(members, 20, drawn, labels, theirs))
    # the clusters hang together by the edges that are returned
    inside = found.members[found.edges.rows] == found.members[found.edges.cols]
    pieces = components(found.edges.select(inside))
    assert len(np.unique(pieces)) == len(np.unique(found.members))
    joined, into = found.counts
    assert len(np.unique(members)) - len(np.unique(found.members)) == joined - into


def test_edges_are_added_once_and_in_order():
    edges = edges_of([(0, 1), (1, 3)], 5, 0.5)
    more, at = edges.with_edges(np.array([3, 4, 1, 0]), np.array([1, 0, 3, 4]), np.full(4, 0.9))
    assert more.cols.tolist() == [1, 4, 0, 3, 1, 0]
    assert more.indptr.tolist() == [0, 2, 4, 4, 5, 6]
    np.testing.assert_allclose(more.scores, [0.5, 0.9, 0.5, 0.5, 0.5, 0.9])
    assert at.tolist() == [1, 4]


def test_nothing_is_drawn_where_lists_are_larger_than_clusters():
    members = np.repeat(np.arange(0, 4000, 20), 20)

    def clustered(rows, stages):
        raise AssertionError("there is nothing to look at")

    features = Features(np.ones((4000, 2), np.float32), "X")
    found = reach(members, chains(members), 79, features, clustered, 0, Stages())
    assert found.counts is None
    assert found.members is members


def test_identities_larger_than_the_lists_become_one(tmp_path):
    parameters = Synthetic(mean_size=1300, size_sigma=0.2, max_size=2000, noise_weight=1.2, modes=4, mode_weight=0.6)
    rows, truth = Population(4000, parameters, 5, 64).rows(0, 4000)
    rows = rows.astype(np.float32)
    off, auto = StarFC(adapt="off", reach="off").fit(rows), StarFC(adapt="off").fit(rows)
    before, after = (evaluate(truth, model.labels_, ("pairwise",))["pairwise"] for model in (off, auto))
    assert after["precision"] > 0.94
    assert after["recall"] > before["recall"] + 0.1
    assert after["recall"] > 0.85
    np.save(tmp_path / "x.npy", rows)
    config = model_config(PRETRAINED, {"adapt": "off", "model": {"kwargs": {"feature_dim": 64}}})
    run_inference(config, model_folder=PRETRAINED, features=tmp_path / "x.npy", out=tmp_path / "run")
    np.testing.assert_array_equal(np.load(tmp_path / "run" / "labels.npy"), auto.labels_)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["choices"]["reach"]["value"] == 3
    assert "became" in record["choices"]["reach"]["reason"]
    # what is added goes to the clusters, which stay whole
    auto.partial_fit(rows[:30] + np.float32(0.01))
    assert (auto.labels_[-30:] == auto.labels_[:30]).mean() > 0.9
    assert not auto.assigned_.splits
