"""Test the part of a very large set in which decisions are made: its core, and the clusters beside it."""

import numpy as np
import pytest

from starfc.clustering import part
from starfc.clustering.choice import estimate
from starfc.clustering.part import draw_part
from starfc.graph.edges import EdgeList


@pytest.fixture(scope="module")
def edges():
    """300 random pairs of 120 rows."""
    rng = np.random.default_rng(0)
    p = np.zeros((120, 120), np.float32)
    p[tuple(rng.integers(0, 120, (2, 300)))] = rng.uniform(0.1, 1, 300)
    p = np.maximum(p, p.T)
    np.fill_diagonal(p, 0)
    rows, cols = np.nonzero(p)
    found = EdgeList.from_rows(rows, cols.astype(np.int32), p[rows, cols], 120)
    return EdgeList(found.indptr, found.cols, found.scores, symmetric=True)


def slow_part(edges, members, seed, room, core_room):
    """Cluster by cluster, in the order of the drawn rows, then by the mass that leads to them."""
    sizes = np.bincount(members, minlength=len(members))
    drawn = members[np.random.default_rng(seed).choice(len(members), min(len(members), core_room), replace=False)]
    core, beside = [], []
    for name in dict.fromkeys(drawn.tolist()):
        if sizes[name] > core_room:
            continue
        if sizes[core].sum() + sizes[name] > core_room:
            break
        core.append(name)
    mass = dict.fromkeys(range(len(members)), 0.0)
    for i, j, p in zip(edges.rows, edges.cols, edges.scores, strict=True):
        if members[i] in core and members[j] not in core:
            mass[members[j]] += float(p)
    room -= sizes[core].sum()
    for name in sorted((name for name in mass if mass[name] > 0), key=lambda name: (-mass[name], name)):
        if sizes[name] > room:
            continue
        if sizes[beside].sum() + sizes[name] > room:
            break
        beside.append(name)
    return np.flatnonzero(np.isin(members, core + beside)), core


@pytest.mark.parametrize("size", [1, 5, 20])
@pytest.mark.parametrize("seed", [0, 1])
def test_whole_clusters_of_random_rows_and_those_beside_them(edges, monkeypatch, size, seed):
    monkeypatch.setattr(part, "ROWS", 60)
    monkeypatch.setattr(part, "CORE", 25)
    members = np.arange(120) // size * size
    members[:30] = 0  # larger than the core
    found = draw_part(edges, members, seed)
    rows, core = slow_part(edges, members, seed, 60, 25)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.core, np.isin(members[rows], core))
    assert 0 < found.core.sum() <= 25
    assert found.core.sum() < len(found.rows) <= 60
    assert not found.core[np.isin(found.rows, np.arange(30))].any()


def test_a_set_of_one_cluster_has_no_part(edges, monkeypatch):
    monkeypatch.setattr(part, "CORE", 25)
    assert len(draw_part(edges, np.zeros(120, np.int64), 0).rows) == 0


def test_the_estimate_of_a_core_is_that_of_its_rows_among_all_edges(edges):
    members = np.arange(120) // 5 * 5
    core = members < 60
    found = estimate(edges, members, core)
    sums = {"n": 0.0, "found": 0.0, "every": 0.0}
    p = np.zeros((120, 120))
    p[edges.rows, edges.cols] = edges.scores
    for i in np.flatnonzero(core):
        own = members == members[i]
        inside = p[np.ix_(own, own)]
        mean = inside.sum() / max(np.count_nonzero(inside), 1)
        out, mine = p[i, ~own].sum(), p[i, own].sum()
        hits = (own.sum() - 1) * mean
        sums["n"] += own.sum() - 1
        sums["found"] += hits
        sums["every"] += hits + out * (max(1, hits / mine) if mine > 0 else 1)
    assert found.precision == pytest.approx(sums["found"] / sums["n"])
    assert found.recall == pytest.approx(sums["found"] / sums["every"])
    assert found != estimate(edges, members)
