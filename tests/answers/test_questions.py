"""Test evidence about sides, divisions, the judge, and the order of questions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from helpers.samples import unit
from helpers.steps import graph_of
from starfc.answers.constraints import Clusters, enforce
from starfc.answers.divide import by_edges, by_features, divisions
from starfc.answers.evidence import Evidence, Judge, candidate_edges, pair_measures
from starfc.answers.marks import Marks
from starfc.answers.questions import EACH, SHOWN, Asker, Question, join_candidates, split_candidates
from starfc.data.dataset import Features


def scene(seed=0, identities=12, size=8):
    """Identities, each in two clusters of equal size, apart from two identities that share one cluster."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(identities), size)
    x = unit(rng.normal(size=(identities, 16))[truth] + 0.35 * rng.normal(size=(identities * size, 16)))
    labels = 2 * truth + np.tile(np.arange(size) >= size // 2, identities)
    labels[truth >= identities - 2] = 2 * identities - 4
    pairs = {}
    for i in range(len(truth)):
        for j in range(i + 1, len(truth)):
            p = float(expit(12 * (x[i] @ x[j] - 0.6)))
            if p > 0.05:
                pairs[i, j] = p
    return Evidence(graph_of(pairs, len(truth)).parsed.edges, Features(x)), labels, truth


def test_measures_of_clusters_are_those_of_their_rows():
    evidence, labels, _ = scene()
    sums = evidence.clusters(labels, labels.max() + 1)
    background = evidence.background(sums)
    found = join_candidates(evidence, labels, sums, background)
    assert len(found.a) > 10
    for a, b, measures in zip(found.a, found.b, found.measures, strict=True):
        sides = [np.flatnonzero(labels == label) for label in (a, b)]
        np.testing.assert_allclose(measures, pair_measures(evidence, background, *sides), rtol=1e-4, atol=1e-5)


def test_measures_of_divisions_are_those_of_their_rows():
    evidence, labels, _ = scene()
    background = evidence.background(evidence.clusters(labels, labels.max() + 1))
    rows = np.flatnonzero(labels == labels.max())
    found = split_candidates(evidence, rows, background)
    assert len(found.masks) > 0
    for mask, measures in zip(found.masks, found.measures, strict=True):
        slow = pair_measures(evidence, background, rows[mask], rows[~mask])
        np.testing.assert_allclose(measures, slow, rtol=1e-4, atol=1e-5)


def test_crossing_edges_are_counted_once():
    evidence, labels, _ = scene()
    dense, (a, b, total, count) = evidence.matrix.toarray(), evidence.crossing(labels)
    for i, j, p, m in zip(a, b, total, count, strict=True):
        block = dense[labels == i][:, labels == j]
        assert p == pytest.approx(block.sum(), rel=1e-5)
        assert m == (block > 0).sum()


def test_both_ways_find_the_two_groups():
    rng = np.random.default_rng(1)
    truth = np.repeat([0, 1], [6, 9])
    x = unit(np.eye(8)[3 * truth] + 0.2 * rng.normal(size=(15, 8)))
    p = np.where(truth[:, None] == truth, 0.9, 0.1) - 0.9 * np.eye(15)
    for side in (by_edges(p), by_features(x)):
        assert (side == (truth == 0)).all() or (side == (truth == 1)).all()
    assert len(divisions(Evidence(graph_of({(0, 1): 0.5}, 15).parsed.edges, Features(x)).matrix, x)) >= 1


def test_answers_teach_the_judge():
    rng = np.random.default_rng(0)
    measures = rng.normal(size=(200, 6))
    judge = Judge.of(measures, np.zeros(7))
    same = measures[:, 2] > 0
    taught = judge.taught(measures, same)
    assert ((taught.logits(measures) > 0) == same).mean() > 0.9
    assert (judge.taught(measures[:0], same[:0]).weights == judge.weights).all()
    assert np.abs(judge.taught(measures[:3], same[:3]).weights).max() < np.abs(taught.weights).max()


def test_questions_are_about_what_is_wrong():
    evidence, labels, truth = scene()
    questions = Asker(evidence).questions(labels, Marks(), 12)
    assert [q.gain for q in questions] == sorted((q.gain for q in questions), reverse=True)
    joins = [q for q in questions if q.kind == "join"]
    right = [truth[q.a[0]] == truth[q.b[0]] for q in joins]
    assert np.mean(right) > 0.8
    split = next(q for q in questions if q.kind == "split" and q.clusters[0] == labels.max())
    assert len({*truth[list(split.a)]}) == len({*truth[list(split.b)]}) == 1


def test_a_few_answers_set_everything_right():
    evidence, labels, truth = scene()
    asker, marks = Asker(evidence), Marks()
    clusters = Clusters(labels.copy(), int(labels.max()) + 1, evidence.edges)
    for _ in range(6):
        asked = asker.questions(clusters.labels, marks, 8)
        marks = marks.added(Marks(answers=tuple(q.answer(bool(truth[q.a[0]] == truth[q.b[0]])) for q in asked)))
        enforce(clusters, marks)
    pairs = np.unique(np.stack([clusters.labels, truth]), axis=1)
    assert pairs.shape[1] == len(np.unique(truth)) == len(np.unique(clusters.labels))


def test_a_cluster_is_in_few_questions_of_one_call():
    evidence, labels, _ = scene()
    met: dict[int, int] = {}
    for question in Asker(evidence).questions(labels, Marks(), 50):
        for label in set(question.clusters):
            met[label] = met.get(label, 0) + 1
    assert max(met.values()) <= EACH + 1


def test_decided_sides_are_not_asked_about():
    evidence, labels, _ = scene()
    first = Asker(evidence).questions(labels, Marks(), 50)
    apart = Marks.of(len(labels), cannot_link=[[q.a[0], q.b[0]] for q in first if q.kind == "join"])
    again = Asker(evidence).questions(labels, apart, 50)
    assert not {q.clusters for q in again if q.kind == "join"} & {q.clusters for q in first if q.kind == "join"}


def test_the_first_rows_are_typical_and_near():
    evidence, labels, _ = scene()
    question = next(q for q in Asker(evidence).questions(labels, Marks(), 9) if q.kind == "join")
    assert sorted(question.a) == np.flatnonzero(labels == question.clusters[0]).tolist()
    assert len(question.shown[0]) == min(SHOWN, len(question.a))
    x = evidence.rows(np.array(question.a))
    assert np.argmax(x @ x.mean(axis=0)) == 0


def test_questions_need_no_features():
    evidence, labels, truth = scene()
    questions = Asker(Evidence(evidence.edges)).questions(labels, Marks(), 8)
    assert np.mean([truth[q.a[0]] == truth[q.b[0]] for q in questions if q.kind == "join"]) > 0.8


def test_no_rows_and_no_edges_give_no_questions():
    empty = Evidence(graph_of({(0, 1): 0.9}, 4).parsed.edges)
    assert not Asker(empty).questions(np.full(4, -1), Marks(), 5)
    assert not [q for q in Asker(empty).questions(np.arange(4), Marks(), 5) if isinstance(q, Question) and q.p > 1]


def test_edges_of_the_run_that_are_no_candidates_count():
    parsed = graph_of({(0, 1): 0.9, (1, 2): 0.8}, 4).parsed
    faint = graph_of({(0, 1): 0.3, (2, 3): 0.1}, 4).parsed.edges
    both = candidate_edges(faint, parsed)
    found = {(int(i), int(j)): round(float(p), 3) for i, j, p in zip(both.rows, both.cols, both.scores, strict=True)}
    assert found == {(a, b): p for x, p in {(0, 1): 0.3, (2, 3): 0.1, (1, 2): 0.8}.items() for a, b in (x, x[::-1])}
