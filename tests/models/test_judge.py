"""The judge of single edges, and the correction of contexts, against the features of whole graphs."""

import numpy as np
import pytest
import torch
from scipy.special import expit

from starfc.data.dataset import Features
from starfc.data.synthetic import Population, Synthetic
from starfc.graph.knn import build_knn
from starfc.graph.recall import CANDIDATES, COLUMNS, Sample
from starfc.graph.strangers import Strangers
from starfc.graph.structure import Structure, smooth
from starfc.graph.structure_kernels import in_degrees
from starfc.models.checkpoint import PRETRAINED, load_model
from starfc.models.contextual import first_context, sampled_nodes
from starfc.models.judge import context_change, first_round_judge
from starfc.scoring.structural import Scoring


def rows_of(n, seed=3, dim=32):
    rows, _ = Population(n, Synthetic(), seed, dim).rows(0, n)
    return Features(rows.astype(np.float32))


def whole(features, graph, model):
    """Return the structure of a whole graph, as the scoring of all edges uses it."""
    strangers = Strangers.of(features)
    nodes = smooth(graph, features, model.smoothing)
    return Structure(graph, model.columns, model.candidates, nodes, strangers=strangers), strangers


def test_p_of_judged_edges_is_that_of_the_whole_graph():
    model, features = load_model(PRETRAINED), rows_of(600)
    graph = build_knn(features, 30)
    structure, strangers = whole(features, graph, model)
    sample = Sample.draw(features, 30, np.random.default_rng(0))
    counts = np.zeros((2, 600), np.float32)
    in_degrees(graph.ids, 10, counts)
    context = first_context(structure.first_round(np.arange(600)).features, 600, 32, strangers)
    found = first_round_judge(features, sample.edges, counts[:, sample.rows], context)
    pairs = structure.first_round(np.arange(600), every=True)
    with torch.inference_mode():
        p = expit(model.first.of(context)(torch.from_numpy(pairs.features)).numpy())
    wanted = dict(zip(zip(pairs.rows, graph.ids[pairs.rows, pairs.slots], strict=True), p, strict=True))
    ends = zip(sample.rows[sample.first], sample.rows[sample.second], strict=True)
    np.testing.assert_allclose(found.probability, [wanted[pair] for pair in ends], atol=2e-5)
    assert found.context is context
    own = first_round_judge(features, sample.edges, counts[:, sample.rows]).context
    assert distance(model, own, context) < 0.15


def in_lists_of(graph, model):
    """Return the function that tells how many lists have each of some rows."""
    counts = np.zeros((2, graph.num_nodes), np.float32)
    in_degrees(graph.ids[:, : model.columns], 10, counts)
    return lambda rows: counts[:, rows]


def distance(model, one, other):
    """Return the root mean square difference of two contexts, in standard deviations of the training data."""
    spread = model.first.members[0].context_std.numpy()
    return float(np.sqrt((((one - other) / spread) ** 2).mean()))


def test_the_search_measures_with_the_columns_of_the_packaged_model():
    model = load_model(PRETRAINED)
    assert (model.columns, model.candidates) == (COLUMNS, CANDIDATES)


def test_the_judge_gets_the_lists_that_the_model_reads():
    features, given = rows_of(700), []

    def judge(features, edges, in_lists, context=None):
        given.append((edges.rows, in_lists))
        return first_round_judge(features, edges, in_lists, context)

    params = {"nlist": 1, "nprobe": 1, "partitions": 1, "sweeps": 0}
    graph = build_knn(features, 250, "ivf", params, judge=judge)
    counts = np.zeros((2, 700), np.float32)
    in_degrees(graph.ids[:, : load_model(PRETRAINED).columns], 10, counts)
    rows, in_lists = given[0]
    np.testing.assert_array_equal(in_lists, counts[:, rows])
    assert graph.info["recalls"]["edges"] == 1
    assert graph.info["recalls"]["gained"] == 0


def test_exact_lists_change_no_context():
    model, features = load_model(PRETRAINED), rows_of(3000)
    graph = build_knn(features, 40)
    change = context_change(model, features, graph, Strangers.of(features), in_lists_of(graph, model))
    assert distance(model, change, np.zeros_like(change)) < 1e-4


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_the_context_of_approximate_lists_is_corrected_to_that_of_exact_lists(seed):
    model, features = load_model(PRETRAINED), rows_of(6000, seed)
    params = {"nlist": 200, "nprobe": 4, "partitions": 1, "sweeps": 0}
    exact, lists = build_knn(features, 40), build_knn(features, 40, "ivf", params)
    contexts = []
    for graph in (exact, lists):
        structure, strangers = whole(features, graph, model)
        edges = structure.first_round(sampled_nodes(len(features))).features
        contexts.append(first_context(edges, len(features), features.dim, strangers))
    change = context_change(model, features, lists, strangers, in_lists_of(lists, model))
    assert distance(model, contexts[1] + change, contexts[0]) < 0.8 * distance(model, contexts[1], contexts[0])
    scored = Scoring(model, features, lists).context.first
    np.testing.assert_allclose(scored, contexts[1] + change, rtol=1e-5, atol=1e-6)
