"""Compare the linear-time metrics with scikit-learn and with a slow twin that sorts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.metrics import normalized_mutual_info_score
from sklearn.metrics.cluster import pair_confusion_matrix

from starfc.clustering.components import largest_first
from starfc.errors import InputError
from starfc.evaluation.metrics import (
    Contingency,
    bcubed,
    contingency,
    evaluate,
    fscore_error,
    nmi,
    pairwise,
    pairwise_around,
)

HUGE = 2**63 - 1


def sorted_contingency(truth, predicted) -> Contingency:
    """The table by three sorts."""
    _, rows, row_sums = np.unique(truth, return_inverse=True, return_counts=True)
    _, cols, col_sums = np.unique(predicted, return_inverse=True, return_counts=True)
    keys, cells = np.unique(rows.astype(np.int64) * len(col_sums) + cols, return_counts=True)
    return Contingency(cells, keys // len(col_sums), keys % len(col_sums), row_sums, col_sums)


def in_order(table: Contingency) -> list[np.ndarray]:
    order = np.lexsort((table.col_of_cell, table.row_of_cell))
    cells = (table.cells[order], table.row_of_cell[order], table.col_of_cell[order])
    return [*cells, table.row_sums, table.col_sums]


values = st.one_of(
    st.integers(-3, 8), st.integers(0, 200), st.sampled_from([-HUGE - 1, HUGE, HUGE - 1, 0, 10**12, -(10**12)])
)
labelings = st.integers(1, 60).flatmap(
    lambda n: st.tuples(*(st.lists(values, min_size=n, max_size=n) for _ in range(2)))
)


@pytest.mark.long
@settings(deadline=None, max_examples=200)
@given(labelings)
@example(([HUGE], [-HUGE - 1]))
@example(([0, 0, 1, 1], [5, 6, 5, 6]))
def test_the_table_and_every_metric_equal_the_sorting_twin(labels):
    truth, predicted = (np.array(values, np.int64) for values in labels)
    table, twin = contingency(truth, predicted), sorted_contingency(truth, predicted)
    for ours, theirs in zip(in_order(table), in_order(twin), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for metric in (pairwise, bcubed):
        for name in ("precision", "recall", "fscore"):
            assert getattr(metric(table), name) == pytest.approx(getattr(metric(twin), name), rel=1e-12, abs=1e-12)
    assert nmi(table) == pytest.approx(nmi(twin), rel=1e-12, abs=1e-12)


@pytest.mark.long
@settings(deadline=None, max_examples=100)
@given(labelings)
def test_pairs_and_mutual_information_equal_scikit_learns(labels):
    truth, predicted = (np.array(values, np.int64) for values in labels)
    table = contingency(truth, predicted)
    (_, false_pairs), (missed, true_pairs) = pair_confusion_matrix(truth, predicted)
    score = pairwise(table)
    assert score.precision == pytest.approx(true_pairs / max(1, true_pairs + false_pairs), rel=1e-12)
    assert score.recall == pytest.approx(true_pairs / max(1, true_pairs + missed), rel=1e-12)
    assert nmi(table) == pytest.approx(normalized_mutual_info_score(truth, predicted), abs=1e-12)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64, np.bool_])
def test_every_integer_type_counts(dtype):
    rng = np.random.default_rng(0)
    low, high = (0, 1) if dtype is np.bool_ else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    truth = rng.choice(np.array([low, high], dtype), 50)
    predicted = rng.integers(0, 2, 50).astype(dtype)
    for ours, theirs in zip(
        in_order(contingency(truth, predicted)), in_order(sorted_contingency(truth, predicted)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_large_labelings_equal_the_sorting_twin():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3000, 100_000)
    predicted = np.where(rng.random(100_000) < 0.2, 10**6 + np.arange(100_000), truth * 7)
    table, twin = contingency(truth, predicted), sorted_contingency(truth, predicted)
    assert table.cells.dtype == np.int32
    for ours, theirs in zip(in_order(table), in_order(twin), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for metric in (pairwise, bcubed):
        assert metric(table).fscore == pytest.approx(metric(twin).fscore, rel=1e-12)
    assert nmi(table) == pytest.approx(nmi(twin), rel=1e-12)


@pytest.mark.filterwarnings("ignore:pairwise")
def test_lists_and_one_instance():
    perfect = {"precision": 1.0, "recall": 1.0, "fscore": 1.0}
    assert evaluate([7], [-7]) == {"pairwise": dict.fromkeys(perfect, 0.0), "bcubed": perfect, "nmi": 1.0}


def sorted_largest_first(members) -> np.ndarray:
    """Labels by size, then by first member, with a sort."""
    ids, first, which, sizes = np.unique(members, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(ids), np.int64)
    rank[np.lexsort((first, -sizes))] = np.arange(len(ids))
    return rank[which]


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 60).flatmap(lambda n: st.lists(st.integers(0, n - 1), min_size=n, max_size=n)),
    st.sampled_from([np.int32, np.int64]),
)
def test_largest_first_equals_its_sorting_twin(members, dtype):
    members = np.array(members, dtype)
    labels = largest_first(members)
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, sorted_largest_first(members))


def test_no_instances_have_no_labels():
    assert largest_first(np.empty(0, np.int64)).shape == (0,)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_the_error_of_f_against_pairs_counted_one_by_one(share):
    rng = np.random.default_rng(3)
    truth, predicted = rng.integers(0, 12, 90), rng.integers(0, 9, 90)
    scored = truth < 12 * share
    names = np.unique(truth[scored])
    found, both = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for i, j in itertools.combinations(range(90), 2):
        for end, other in ((i, j), (j, i)):
            if scored[end]:
                part = 0.5 if scored[other] else 1.0
                found[truth[end]] += part * (truth[i] == truth[j] and predicted[i] == predicted[j])
                both[truth[end]] += part * (int(truth[i] == truth[j]) + int(predicted[i] == predicted[j]))
    a, b = np.array([found[i] for i in names]), np.array([both[i] for i in names])
    score = 2 * a.sum() / b.sum()
    table = contingency(truth, predicted)
    if share == 1:
        expected = pairwise(table)
    else:
        expected = pairwise_around(table, contingency(truth[~scored], predicted[~scored]))
    assert score == pytest.approx(expected.fscore)
    error = np.sqrt(((2 * a - score * b) ** 2).sum()) / b.sum()
    assert fscore_error(truth, predicted, scored) == pytest.approx(error)


def test_the_error_of_f_is_that_of_drawing_identities_again():
    """Clusters are of one identity, so that a draw of identities takes their clusters along."""
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(400), rng.integers(2, 30, 400))
    predicted = 3 * truth + rng.integers(0, 3, len(truth)) * (truth % 3 > 0)
    everything = np.ones(len(truth), bool)
    pairs = [pairwise_pairs(truth[truth == i], predicted[truth == i]) for i in range(400)]
    found, both = np.array(pairs, float).T
    draws = rng.integers(0, 400, (2000, 400))
    spread = (2 * found[draws].sum(axis=1) / both[draws].sum(axis=1)).std()
    assert fscore_error(truth, predicted, everything) == pytest.approx(spread, rel=0.1)


def pairwise_pairs(truth, predicted):
    """Pairs that are found, and true plus predicted pairs, of one identity."""
    size, parts = len(truth), np.unique(predicted, return_counts=True)[1]
    within = (parts * (parts - 1)).sum() / 2
    return within, size * (size - 1) / 2 + within


small_labelings = st.integers(1, 60).flatmap(
    lambda n: st.tuples(*(st.lists(st.integers(-3, 8), min_size=n, max_size=n) for _ in range(2)))
)


@pytest.mark.filterwarnings("ignore:pairwise")
@settings(deadline=None, max_examples=100)
@given(small_labelings)
def test_metrics_equal_their_twins(labels):
    truth, predicted = map(np.array, labels)
    table = contingency(truth, predicted)
    (_, false_pairs), (missed, true_pairs) = pair_confusion_matrix(truth, predicted)
    score = pairwise(table)
    assert score.precision == pytest.approx(true_pairs / (true_pairs + false_pairs) if true_pairs + false_pairs else 0)
    assert score.recall == pytest.approx(true_pairs / (true_pairs + missed) if true_pairs + missed else 0)
    same_truth, same_predicted = truth[:, None] == truth, predicted[:, None] == predicted
    both = (same_truth & same_predicted).sum(axis=1)
    assert bcubed(table).precision == pytest.approx((both / same_predicted.sum(axis=1)).mean())
    assert bcubed(table).recall == pytest.approx((both / same_truth.sum(axis=1)).mean())
    assert nmi(table) == pytest.approx(normalized_mutual_info_score(truth, predicted), abs=1e-9)


def test_singletons_have_no_precision_and_say_so():
    with pytest.warns(UserWarning, match="no two instances share a cluster"):
        score = evaluate([0, 0, 1], [0, 1, 2], ("pairwise",))["pairwise"]
    assert score == {"precision": 0.0, "recall": 0.0, "fscore": 0.0}


def test_metrics_refuse_other_lengths():
    with pytest.raises(InputError, match="same length"):
        evaluate([0, 1], [0, 1, 2])
