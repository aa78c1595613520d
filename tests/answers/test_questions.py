"""Test evidence about sides, divisions, the judge, and the order of questions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import multivariate_normal

from helpers.samples import unit
from helpers.steps import graph_of
from starfc.answers.candidates import join_candidates, split_candidates
from starfc.answers.constraints import Clusters, enforce
from starfc.answers.covariances import ALIKE, Covariances
from starfc.answers.divide import by_edges, by_features, by_ward, divisions
from starfc.answers.evidence import Evidence, candidate_edges
from starfc.answers.judge import Judge
from starfc.answers.marks import Marks
from starfc.answers.measures import LIKENESS, MEASURES, pair_measures
from starfc.answers.questions import EACH, SHOWN, Asker, Question
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
    model = Covariances.of(evidence, sums)
    found = join_candidates(evidence, labels, sums, model)
    assert len(found.a) > 10
    for a, b, measures in zip(found.a, found.b, found.measures, strict=True):
        sides = [np.flatnonzero(labels == label) for label in (a, b)]
        np.testing.assert_allclose(measures, pair_measures(evidence, model, labels, *sides), rtol=1e-3, atol=1e-3)


def test_measures_of_divisions_are_those_of_their_rows():
    evidence, labels, _ = scene()
    model = Covariances.of(evidence, evidence.clusters(labels, labels.max() + 1))
    rows = np.flatnonzero(labels == labels.max())
    found = split_candidates(evidence, rows, labels, model)
    assert len(found.masks) > 0
    for mask, measures in zip(found.masks, found.measures, strict=True):
        slow = pair_measures(evidence, model, labels, rows[mask], rows[~mask])
        np.testing.assert_allclose(measures, slow, rtol=1e-3, atol=1e-3)


def test_what_is_between_clusters_is_counted_once():
    evidence, labels, _ = scene()
    dense, (a, b, between) = evidence.matrix.toarray().astype(float), evidence.crossing(labels)
    totals = {}
    for i in range(labels.max() + 1):
        for j in range(labels.max() + 1):
            totals[i, j] = dense[labels == i][:, labels == j].sum() if i != j else 0.0
    assert {(i, j) for i, j in zip(a, b, strict=True)} == {(i, j) for (i, j), p in totals.items() if p > 0 and i < j}
    for at, (i, j) in enumerate(zip(a, b, strict=True)):
        block = dense[labels == i][:, labels == j]
        assert between.total[at] == pytest.approx(block.sum(), rel=1e-5)
        assert between.count[at] == (block > 0).sum()
        cover = [(1 - np.prod(1 - block, axis=side)).sum() for side in (1, 0)]
        assert between.cover[at] == pytest.approx(cover, rel=1e-4)
        thirds = [max(p for (x, y), p in totals.items() if x == one and y != other) for one, other in ((i, j), (j, i))]
        assert between.rival[at] == pytest.approx(thirds, rel=1e-4, abs=1e-6)


def test_covariances_are_those_of_the_formula():
    evidence, labels, _ = scene()
    sums = evidence.clusters(labels, labels.max() + 1)
    model = Covariances.of(evidence, sums)
    x = evidence.rows(np.arange(len(labels))).astype(float)
    means = np.stack([x[labels == c].mean(axis=0) for c in range(labels.max() + 1)])
    within = (x - means[labels]).T @ (x - means[labels]) / (len(x) - len(means))
    within += (0.01 * np.trace(within) / 16 + 1e-9) * np.eye(16)
    between = np.cov(means[labels].T, bias=True) - within * len(means) / len(x)
    np.testing.assert_allclose(model.axes.T @ within @ model.axes, np.eye(16), atol=1e-3)
    projected = model.axes.T @ between @ model.axes
    np.testing.assert_allclose(np.maximum(np.diag(projected), 1e-3), model.between, rtol=1e-2, atol=1e-3)
    # log-odds of two clusters, with densities of the normal distribution
    a, b = (model.at(sums.at(np.array([c]))) for c in (0, 1))
    n = [sums.sizes[[c]] for c in (0, 1)]
    noise = [(1 + ALIKE * (m[0] - 1)) / m[0] for m in n]
    slow = 0.0
    for y, z, phi in zip(a[0], b[0], model.between, strict=True):
        alone = [multivariate_normal.logpdf(v, 0, phi + e) for v, e in ((y, noise[0]), (z, noise[1]))]
        both = [[phi + noise[0], phi], [phi, phi + noise[1]]]
        slow += multivariate_normal.logpdf([y, z], [0, 0], both) - sum(alone)
    assert model.log_odds(a, b, (n[0], n[1]))[0] == pytest.approx(slow, rel=1e-3)


@pytest.mark.parametrize("rows", [2, 300])
def test_covariances_of_clusters_of_one_row(rows):
    x = unit(np.random.default_rng(rows).normal(size=(rows, 64)) + 1)
    x[-1] = x[0]
    evidence = Evidence(graph_of({(0, 1): 0.5}, rows).parsed.edges, Features(x))
    sums = evidence.clusters(np.arange(rows), rows)
    model = Covariances.of(evidence, sums)
    means = model.at(sums)
    assert np.isfinite(means).all()
    assert np.isfinite(model.log_odds(means[:1], means[-1:], (sums.sizes[:1], sums.sizes[-1:]))).all()


def test_both_ways_find_the_two_groups():
    rng = np.random.default_rng(1)
    truth = np.repeat([0, 1], [6, 9])
    x = unit(np.eye(8)[3 * truth] + 0.2 * rng.normal(size=(15, 8)))
    p = np.where(truth[:, None] == truth, 0.9, 0.1) - 0.9 * np.eye(15)
    for side in (by_edges(p), by_features(x)):
        assert (side == (truth == 0)).all() or (side == (truth == 1)).all()
    assert any(sorted(part.tolist()) == np.flatnonzero(truth == 0).tolist() for part in by_ward(x))
    found = divisions(Evidence(graph_of({(0, 1): 0.5}, 15).parsed.edges, Features(x)).matrix, x)
    assert len(found) == len(np.unique(found, axis=0)) >= 4
    assert (found.any(axis=1) & ~found.all(axis=1)).all()
    assert any((mask == (truth == 1)).all() or (mask == (truth == 0)).all() for mask in found)


def test_answers_teach_the_judge():
    rng = np.random.default_rng(0)
    measures = rng.normal(size=(200, MEASURES))
    judge = replace(Judge.of("split", measures), weights=np.zeros(MEASURES + 1))
    same = measures[:, 2] > 0
    taught = judge.taught(measures, same)
    assert ((taught.log_odds(measures) > 0) == same).mean() > 0.9
    assert (judge.taught(measures[:0], same[:0]).weights == judge.weights).all()
    assert np.abs(judge.taught(measures[:3], same[:3]).weights).max() < np.abs(taught.weights).max()


def test_one_identity_is_more_probable_the_more_alike_the_sides_are():
    measures = np.random.default_rng(0).normal(size=(50, MEASURES))
    for judge in (Judge.of("join", measures), Judge.of("split", measures)):
        assert len(judge.weights) == MEASURES + 1
        assert (judge.weights[:LIKENESS] >= 0).all()


def test_questions_are_about_what_is_wrong():
    evidence, labels, truth = scene()
    questions = Asker(evidence).questions(labels, Marks(), 12)
    assert [q.gain for q in questions] == sorted((q.gain for q in questions), reverse=True)
    joins = [q for q in questions if q.kind == "join"]
    right = [truth[q.a[0]] == truth[q.b[0]] for q in joins]
    assert np.mean(right) > 0.8
    split = next(q for q in questions if q.kind == "split" and q.clusters[0] == labels.max())
    assert 1 in (len({*truth[list(split.a)]}), len({*truth[list(split.b)]}))


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


def test_rows_that_a_chain_of_must_links_connects_are_in_one_part():
    evidence, labels, _ = scene()
    split = next(q for q in Asker(evidence).questions(labels, Marks(), 50) if q.kind == "split")
    gone = int(np.flatnonzero(labels != split.clusters[0])[0])
    chain = Marks.of(len(labels), must_link=[[split.a[0], gone], [gone, split.b[0]]])
    labels[gone] = -1
    found = [q for q in Asker(evidence).questions(labels, chain, 50) if q.clusters == split.clusters]
    ends = {split.a[0], split.b[0]}
    assert all(ends <= {*q.a} or ends <= {*q.b} for q in found)


def test_an_answer_lowers_the_gain_of_divisions_like_it():
    evidence, labels, _ = scene()
    split = next(q for q in Asker(evidence).questions(labels, Marks(), 50) if q.kind == "split")
    again = Asker(evidence).questions(labels, Marks(answers=(split.answer(True),)), 50)
    other = [q for q in again if q.kind == "split" and q.clusters == split.clusters and not q.asked]
    assert all({*q.a} not in ({*split.a}, {*split.b}) and q.gain < split.gain / 2 for q in other)


def test_the_first_rows_are_typical_and_near():
    evidence, labels, _ = scene()
    question = next(q for q in Asker(evidence).questions(labels, Marks(), 9) if q.kind == "join")
    assert sorted(question.a) == np.flatnonzero(labels == question.clusters[0]).tolist()
    assert len(question.shown[0]) == min(SHOWN, len(question.a))
    x = evidence.rows(np.array(question.a))
    assert np.argmax(x @ x.mean(axis=0)) == 0


def test_the_cluster_of_two_identities_is_the_most_doubtful_one():
    evidence, _, truth = scene(seed=2)
    labels = np.minimum(truth, 10)  # the last two identities share a cluster
    labels[0] = -1
    found = Asker(evidence).doubts(labels, Marks())
    assert found[0] == 0
    assert set(np.flatnonzero(found == found.max())) == set(np.flatnonzero(labels == 10))
    model = Covariances.of(evidence, evidence.clusters(labels, 11))
    every = [split_candidates(evidence, np.flatnonzero(labels == c), labels, model) for c in range(11)]
    judge = Judge.of("split", np.concatenate([one.measures for one in every]))
    for c, one in enumerate(every):
        slow = 0.0
        for mask, measures in zip(one.masks, one.measures, strict=True):
            share = min(mask.sum(), (~mask).sum()) / len(mask)
            slow = max(slow, share * (1 - expit(judge.log_odds(measures[None])[0])))
        np.testing.assert_allclose(found[labels == c], slow)
    assert not Asker(evidence).doubts(np.full(len(labels), -1), Marks()).any()


def test_questions_need_no_features():
    evidence, labels, truth = scene()
    questions = Asker(Evidence(evidence.edges)).questions(labels, Marks(), 8)
    a, b, _ = evidence.crossing(labels)
    main = np.array([truth[labels == label][0] for label in range(labels.max() + 1)])
    found = np.mean([truth[q.a[0]] == truth[q.b[0]] for q in questions if q.kind == "join"])
    assert found > 2 * (main[a] == main[b]).mean()


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
