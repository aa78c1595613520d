"""Test that clusters are made again around marks: cuts against all divisions, joins, verdicts."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
from scipy import sparse

from helpers.steps import graph_of
from starfc.answers.constraints import (
    LEAST,
    MOST,
    Changes,
    Clusters,
    apart,
    enforce,
    kept_edges,
    log_odds,
    minimum_cut,
    verdicts,
)
from starfc.answers.marks import Answer, Marks
from starfc.incremental.clusters import regroup

N = 9


def cut_cost(weights: np.ndarray, side: np.ndarray) -> float:
    return float(weights[side][:, ~side].sum())


def brute_force(weights: np.ndarray, ones: list[int], others: list[int]) -> float:
    """The cost of the cheapest division, among all of them."""
    free = [i for i in range(len(weights)) if i not in (*ones, *others)]
    best = np.inf
    for chosen in itertools.product([False, True], repeat=len(free)):
        side = np.zeros(len(weights), bool)
        side[ones] = True
        side[free] = chosen
        best = min(best, cut_cost(weights, side))
    return best


@pytest.mark.parametrize("seed", range(40))
def test_the_cut_is_the_cheapest_of_all(seed):
    rng = np.random.default_rng(seed)
    weights = np.triu(rng.random((N, N)) * (rng.random((N, N)) < 0.5), 1)
    weights += weights.T
    rows = rng.permutation(N)
    ones, others = rows[: 1 + seed % 3], rows[-1 - seed % 2 :]
    side = minimum_cut(sparse.csr_matrix(np.triu(weights)), np.arange(N), ones, others)
    assert side[ones].all()
    assert not side[others].any()
    assert cut_cost(weights, side) == pytest.approx(brute_force(weights, ones.tolist(), others.tolist()), abs=0.02)


def test_rows_that_no_edge_connects_stay_with_the_larger_side():
    weights = sparse.csr_matrix(([1.0, 1.0], ([1, 2], [2, 3])), (6, 6))  # 0; 1-2-3; 4 and 5 alone
    assert minimum_cut(weights, np.arange(6), np.array([0]), np.array([1])).tolist() == [True] + [False] * 5
    assert minimum_cut(weights, np.arange(6), np.array([1]), np.array([0])).tolist() == [False] + [True] * 5


def test_log_odds_are_limited():
    assert log_odds(np.array([0.0, 0.5, 0.9, 1.0])) == pytest.approx([LEAST, LEAST, np.log(9), MOST])


def two_groups(n=8):
    """Two cliques of four rows, 0-3 and 4-7, with one weak edge between them."""
    pairs = {(i, j): 0.9 for g in (0, 4) for i in range(g, g + 4) for j in range(i + 1, g + 4)}
    return graph_of(pairs | {(3, 4): 0.6}, n).parsed


def applied(parsed, labels, marks, earlier=None):
    clusters = Clusters(np.array(labels), max(labels) + 1, parsed.edges, earlier)
    return clusters, enforce(clusters, marks)


def test_a_cannot_link_cuts_the_weak_edge():
    parsed = two_groups()
    clusters, changes = applied(parsed, [5] * 8, Marks.of(8, cannot_link=[[0, 7]]))
    assert clusters.labels.tolist() == [5] * 4 + [6] * 4 or clusters.labels.tolist() == [6] * 4 + [5] * 4
    assert changes.divided == [(5, 6)]
    flips = kept_edges(parsed, changes.rows, np.full(8, 5), clusters.labels)
    ends = {(int(parsed.edges.rows[e]), int(parsed.edges.cols[e])) for e in flips}
    assert ends == {(3, 4), (4, 3)}


def test_a_must_link_joins_and_the_larger_id_stays():
    clusters, changes = applied(two_groups(), [0, 0, 0, 0, 3, 3, 3, 1], Marks.of(8, must_link=[[4, 0]]))
    assert clusters.labels.tolist() == [0] * 7 + [1]
    assert changes.joined == [(0, 3)]
    assert changes.before.tolist() == [3, 3, 3]


def test_a_must_link_carries_only_the_side_of_the_row_if_a_cannot_link_forbids_more():
    parsed = two_groups()
    marks = Marks.of(9, must_link=[[0, 8]], cannot_link=[[7, 8]])
    wide = graph_of(
        {(i, j): 0.9 for g in (0, 4) for i in range(g, g + 4) for j in range(i + 1, g + 4)} | {(3, 4): 0.6}, 9
    )
    del parsed
    clusters, _ = applied(wide.parsed, [0] * 8 + [1], marks)
    assert clusters.labels[0] == clusters.labels[8] == clusters.labels[3]
    assert len(set(clusters.labels[4:8])) == 1
    assert clusters.labels[4] != clusters.labels[0]


@pytest.mark.parametrize("seed", range(30))
def test_all_marks_hold_after_random_ones(seed):
    rng = np.random.default_rng(seed)
    n = 30
    pairs = {tuple(sorted(rng.choice(n, 2, replace=False).tolist())): float(rng.uniform(0.5, 1)) for _ in range(90)}
    parsed = graph_of(pairs, n).parsed
    truth = rng.integers(0, 5, n)
    some = np.sort(np.array([rng.choice(n, 2, replace=False) for _ in range(25)]), axis=1)
    same = truth[some[:, 0]] == truth[some[:, 1]]
    marks = Marks.of(n, some[same], some[~same])
    clusters, _ = applied(parsed, rng.integers(0, 4, n).tolist(), marks)
    ends = clusters.labels[marks.must]
    assert (ends[:, 0] == ends[:, 1]).all()
    ends = clusters.labels[marks.cannot]
    assert (ends[:, 0] != ends[:, 1]).all()
    again = Clusters(clusters.labels.copy(), clusters.next_label, parsed.edges)
    assert not len(enforce(again, marks).rows)
    assert (clusters.labels < clusters.next_label).all()


def test_only_clusters_with_a_mark_change():
    labels = [0] * 4 + [1] * 4
    clusters, changes = applied(two_groups(), labels, Marks.of(8, cannot_link=[[0, 1]]))
    assert clusters.labels[4:].tolist() == [1] * 4
    assert set(changes.rows) <= set(range(4))


def test_an_answer_about_parts_divides_between_them():
    answer = Answer((0, 1, 2, 3), (4, 5, 6, 7), False, 0.9, "split")
    clusters, changes = applied(two_groups(), [0] * 8, Marks(answers=(answer,)))
    assert clusters.labels[:4].tolist() != clusters.labels[4:].tolist()
    assert len(set(clusters.labels)) == 2
    assert not changes.doubtful


@pytest.mark.parametrize("p", [0.001, 0.2, 0.5, 0.99])
@pytest.mark.parametrize("same", [True, False])
def test_one_answer_decides_whatever_the_question_thought(p, same):
    (verdict,) = verdicts([Answer((0,), (1,), same, p)])
    assert verdict.same == same


def test_opposite_answers_leave_the_probability_of_the_question():
    for p in (0.3, 0.7):
        (verdict,) = verdicts([Answer((0,), (1,), True, p), Answer((0,), (1,), False, p, asked=1)])
        assert verdict.same == (p > 0.5)


def test_a_weaker_answer_does_not_break_a_stronger_one():
    a, b = (0, 1, 2, 3), (4, 5, 6, 7)
    twice = (Answer(a, b, True), Answer(a, b, True, asked=1))
    clusters, changes = applied(two_groups(), [0] * 4 + [1] * 4, Marks(answers=(*twice, Answer((3,), (4,), False))))
    assert len(set(clusters.labels)) == 1
    assert [verdict.same for verdict in changes.doubtful] == [False]


def test_a_certain_pair_wins_against_answers():
    a, b = (0, 1, 2, 3), (4, 5, 6, 7)
    marks = Marks.of(8, cannot_link=[[0, 7]], answers=[Answer(a, b, True), Answer(a, b, True, asked=1)])
    clusters, changes = applied(two_groups(), [0] * 8, marks)
    assert clusters.labels[0] != clusters.labels[7]
    assert len(changes.doubtful) == 1


def test_a_part_gets_the_id_back_that_it_had():
    earlier = np.array([0] * 4 + [2] * 4)
    clusters, _ = applied(two_groups(), [0] * 8, Marks.of(8, cannot_link=[[0, 7]]), earlier)
    assert sorted(clusters.labels.tolist()) == [0] * 4 + [2] * 4


def test_removed_rows_are_left_alone():
    parsed = two_groups()
    clusters = Clusters(np.array([0] * 7 + [-1]), 1, parsed.edges)
    changes = enforce(clusters, Marks.of(8, must_link=[[0, 7]], answers=[Answer((7,), (1,), False)]))
    assert not len(changes.rows)
    assert isinstance(changes, Changes)


def test_clusters_that_marks_keep_apart_are_in_no_merge():
    """Clusters 0 to 3 in a chain; marks keep 0 and 2 apart, and 3 and 2. 4 is far from all and has no mark."""
    edges = graph_of({(0, 1): 0.8, (1, 2): 0.9, (2, 3): 0.95}, 5)
    marks = Marks.of(5, cannot_link=[[0, 2]], answers=[Answer((3,), (2,), False), Answer((0,), (4,), True)])
    labels, none = np.array([0, 1, 2, 3, -1]), np.empty(0, np.int64)
    np.testing.assert_array_equal(apart(labels, marks), [[0, 2], [2, 3]])
    keep = partial(apart, marks=marks)
    for apply in (False, True):
        found = regroup(labels, 4, edges, none, none, apply, apart=keep)
        assert [merge.clusters for merge in found.merges] == [(1, 2)]  # 0 and 1 would then bring 0 and 2 together
    assert found.labels.tolist() == [0, 1, 1, 3, -1]
    rows, cols = edges.parsed.edges.rows[found.across], edges.parsed.edges.cols[found.across]
    assert {(min(pair), max(pair)) for pair in zip(rows.tolist(), cols.tolist(), strict=True)} == {(0, 1), (2, 3)}
