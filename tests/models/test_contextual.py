"""Test the model for any embedding: strangers, contexts, scorers, choice and estimate without labels, kinds."""

from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.samples import some_rows
from starfc import StarFC
from starfc.clustering.choice import LOWEST, Estimate, choose, edge_fscore, estimate, why_tau1
from starfc.clustering.components import components, largest_first
from starfc.clustering.joining import join_communities
from starfc.clustering.pipeline import cluster
from starfc.config.config import Config, Kinds
from starfc.config.recipes import model_config
from starfc.config.schema import build
from starfc.data.dataset import Features
from starfc.errors import InputError
from starfc.evaluation.metrics import evaluate
from starfc.graph.edges import EdgeList
from starfc.graph.knn import build_knn, exact_knn
from starfc.graph.neighbours import KnnGraph
from starfc.graph.strangers import Strangers
from starfc.graph.structure import FEATURES, FIRST_FEATURES, EdgeLogits, Structure, encode, smooth
from starfc.models.checkpoint import PRETRAINED, load_model, save_model
from starfc.models.contextual import (
    COLUMNS_FIRST,
    COLUMNS_SECOND,
    CONTEXT_FIRST,
    CONTEXT_SECOND,
    Context,
    ContextScorer,
    ContextualModel,
    MeanScorer,
    first_context,
    joined,
    second_context,
)
from starfc.runs.assign import assign
from starfc.runs.cluster import run_inference
from starfc.storage.atomic import write_json
from starfc.training import contextual
from starfc.training.contextual import fit, run_kinds_training, sample_edges
from starfc.training.kinds import Real, draw_sizes, make_kind
from starfc.training.sample_files import read_samples


def pairs(num_nodes, weights):
    """A symmetric list of edges {(i, j): p}."""
    both = {**weights, **{(j, i): p for (i, j), p in weights.items()}}
    rows, cols = np.array(sorted(both)).T
    scores = np.array([both[key] for key in sorted(both)], np.float32)
    edges = EdgeList.from_rows(rows, cols.astype(np.int32), scores, num_nodes)
    return EdgeList(edges.indptr, edges.cols, edges.scores, symmetric=True)


def test_strangers_are_those_of_a_slow_twin():
    rows, _ = some_rows()
    found, sims = Strangers.of(rows), rows @ rows.T
    everyone = sims[np.triu_indices(len(rows), 1)]
    middle, low = np.quantile(everyone, [0.5, 0.16])
    assert found.cohort.tolist() == list(range(len(rows)))
    assert found.median == pytest.approx(middle, abs=1e-6)
    assert found.spread == pytest.approx(middle - low, abs=1e-6)
    for i in range(0, len(rows), 17):
        ordered = np.sort(sims[i])
        at = [int(q * (len(rows) - 1)) for q in (0.16, 0.5)]
        assert found.node_median[i] == pytest.approx(ordered[at[1]], abs=1e-6)
        spread = max(ordered[at[1]] - ordered[at[0]], 0.3 * found.spread)
        assert found.node_spread[i] == pytest.approx(spread, abs=1e-6)


def test_strangers_of_later_rows_are_judged_by_the_earlier_cohort():
    rows, _ = some_rows(identities=40)
    early = Strangers.of(rows[:500])
    grown = early.grown(Features(rows, normalise=False))
    assert (grown.median, grown.spread) == (early.median, early.spread)
    np.testing.assert_array_equal(grown.node_median[:500], early.node_median)
    twin = np.sort(rows[700] @ rows[early.cohort].T)[int(0.5 * (len(early.cohort) - 1))]
    assert grown.node_median[700] == pytest.approx(twin, abs=1e-6)
    places = np.flatnonzero(np.arange(600) % 6 != 5)
    spread_out = early.placed(places, 600)
    np.testing.assert_array_equal(spread_out.node_median[places], early.node_median)
    np.testing.assert_array_equal(spread_out.cohort, places[early.cohort])


@pytest.mark.long
def test_the_common_scale_puts_strangers_of_a_cone_at_zero():
    rows, _ = some_rows(cone=3.0)
    strangers, graph = Strangers.of(rows), exact_knn(rows, 30)
    assert strangers.median > 0.5
    centre = np.float32(strangers.median)
    scaled = np.clip((graph.sims - centre) / (1 - centre), 0, 1)
    assert strangers.without_ties(graph) is graph
    structure = Structure(graph, 29, 20, strangers=strangers)
    twin = Structure(KnnGraph(graph.ids, scaled), 29, 20)
    found = structure.first_round(np.arange(len(rows))).features
    np.testing.assert_array_equal(found[:, :19], twin.first_round(np.arange(len(rows))).features[:, :19])


def test_absolute_columns_are_those_of_a_slow_twin():
    from scipy.stats import norm

    rows, _ = some_rows(seed=1)
    graph, strangers = exact_knn(rows, 40), Strangers.of(rows)
    structure = Structure(graph, 39, 20, smooth(graph, rows, 5), strangers=strangers)
    found = structure.first_round(np.arange(len(rows)))
    assert found.features.shape[1] == structure.num_features == COLUMNS_FIRST
    ids, sims, k = structure.ids, graph.sims, structure.ids.shape[1]
    in_ten, in_all = (
        np.bincount(ids[:, :10].ravel(), minlength=len(rows)),
        np.bincount(ids.ravel(), minlength=len(rows)),
    )
    for e in range(0, len(found.slots), 97):
        i, slot = found.rows[e], found.slots[e]
        j, s = ids[i, slot], sims[i, slot]
        z = sorted((s - strangers.node_median[a]) / strangers.node_spread[a] for a in (i, j))
        back = np.flatnonzero(ids[j] == i)
        ranks = sorted([slot + 1, back[0] + 1 if back.size else k + 1])
        degrees = [sorted(np.log1p([count[i], count[j]])) for count in (in_ten, in_all * 79 / k)]
        tail = np.clip(np.log(len(rows)) + norm.logsf(z[0]), -40, 10) / 5
        twin = [(s - strangers.median) / strangers.spread / 4, *np.array(z) / 4]
        twin += [(s - strangers.centre) / (1 - strangers.centre), *np.log(ranks), *degrees[0], *degrees[1], tail]
        np.testing.assert_allclose(found.features[e, FIRST_FEATURES:], twin, atol=2e-3)


def test_the_second_rounds_columns_do_not_depend_on_strangers():
    rows, _ = some_rows(seed=2)
    graph = exact_knn(rows, 40)
    known = Strangers(0.0, 0.2, *np.full((2, len(rows)), 0.2, np.float32), np.arange(5))  # at 0: the scale is the same
    plain, absolute = (Structure(graph, 39, 20, smooth(graph, rows, 5), strangers=s) for s in (None, known))
    everyone = np.arange(len(rows))
    found = plain.first_round(everyone)
    logits = EdgeLogits(plain)
    logits.put(found, encode(np.linspace(-3, 3, len(found.slots)).astype(np.float32)))
    logits.sum_degrees(everyone)
    left, right = (s.second_round(everyone, logits).features for s in (plain, absolute))
    assert (left.shape[1], right.shape[1]) == (FEATURES, COLUMNS_SECOND)
    np.testing.assert_array_equal(left[:, :FIRST_FEATURES], right[:, :FIRST_FEATURES])
    np.testing.assert_array_equal(left[:, FIRST_FEATURES:], right[:, COLUMNS_FIRST:])


def scorer_of_random_weights(features=7, context=9, nhid=8):
    generator = torch.Generator().manual_seed(0)
    scorer = ContextScorer(features, context, nhid, generator)
    for parameter in scorer.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3, generator=generator)
    scorer.standardise(torch.randn(50, features, generator=generator), torch.randn(20, context, generator=generator))
    return scorer.eval(), generator


def test_a_context_folded_into_the_weights_gives_the_same_logits():
    scorer, generator = scorer_of_random_weights()
    features, context = torch.randn(30, 7, generator=generator), torch.randn(9, generator=generator)
    with torch.no_grad():
        found = scorer.of(context.numpy())(features)
        twin = scorer(features, scorer.modulation(context[None]))
        other = scorer(features, scorer.modulation(-context[None]))
    np.testing.assert_allclose(found, twin, atol=1e-5)
    assert (twin - other).abs().max() > 0.01


def test_the_logit_of_a_round_is_the_mean_of_its_members():
    generator = torch.Generator().manual_seed(0)
    scorer = MeanScorer(7, 9, 8, 3, generator)
    for member in scorer.members:
        for parameter in member.parameters():
            torch.nn.init.normal_(parameter, 0, 0.3, generator=generator)
        member.standardise(torch.randn(50, 7, generator=generator), torch.randn(20, 9, generator=generator))
    features, context = torch.randn(30, 7, generator=generator), torch.randn(9, generator=generator).numpy()
    with torch.no_grad():
        found = scorer.eval().of(context)(features)
        each = torch.stack([member.of(context)(features) for member in scorer.members])
    np.testing.assert_allclose(found, each.mean(dim=0), atol=1e-5)
    assert (each.std(dim=0) > 0.01).all()


def test_joined_trainings_give_the_mean_of_their_logits(command, tmp_path):
    """The packaged weights are joined from two trainings by scripts/join_weights.py."""
    first, second = (ContextualModel(8, members=n, generator=torch.Generator().manual_seed(n)) for n in (1, 2))
    for model, name in ((first, "first"), (second, "second")):
        (tmp_path / name).mkdir()
        save_model(model, tmp_path / name)
    code, _, _ = command("scripts/join_weights.py", tmp_path / "first", tmp_path / "second", "--out", tmp_path / "both")
    assert code == 0
    both, context = load_model(tmp_path / "both"), np.zeros(CONTEXT_SECOND, np.float32)
    edges = torch.randn(20, COLUMNS_SECOND, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, two = (model.second.of(context)(edges) for model in (first.eval(), second.eval()))
        np.testing.assert_allclose(both.second.of(context)(edges), (one + 2 * two) / 3, atol=1e-5)
    assert (one - two).abs().max() > 0.01
    with pytest.raises(InputError, match="models of one size needed"):
        joined([first, ContextualModel(16)])
    with pytest.raises(InputError, match="at most 16 scorers per round allowed; found 18; join fewer trainings"):
        joined([second] * 9)
    structural = Path(__file__).parents[2] / "src" / "starfc" / "pretrained" / "structural"
    code, _, err = command("scripts/join_weights.py", structural, "--out", tmp_path / "none")
    assert (code, (tmp_path / "none").exists()) == (2, False)
    assert "a model of type 'gcn_structural_any' needed; found 'gcn_structural'" in err


def test_a_context_that_is_unlike_those_of_training_is_noticed():
    scorer, _ = scorer_of_random_weights()
    mean, std = scorer.context_mean.numpy(), scorer.context_std.numpy()
    assert scorer.outside(mean) == 0
    away = mean.copy()
    away[:3] += 4 * std[:3]
    assert scorer.outside(away) == pytest.approx(3 / 9)


def test_contexts_have_the_numbers_that_they_say():
    rows, _ = some_rows(seed=3)
    graph, strangers = exact_knn(rows, 40), Strangers.of(rows)
    structure = Structure(graph, 39, 20, smooth(graph, rows, 5), strangers=strangers)
    everyone = np.arange(len(rows))
    pairs_of_first = structure.first_round(everyone)
    features = pairs_of_first.features
    context = first_context(features, len(rows), rows.shape[1], strangers)
    assert context.shape == (CONTEXT_FIRST,)
    np.testing.assert_allclose(context[:COLUMNS_FIRST], features.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(context[COLUMNS_FIRST : 2 * COLUMNS_FIRST], features.std(axis=0), rtol=1e-3, atol=1e-5)
    quantiles = context[2 * COLUMNS_FIRST : -4].reshape(-1, 5)
    nearest = np.exp(features[:, 24]).round() == 1  # one end is the nearest neighbour of the other
    assert 100 < nearest.sum() < len(nearest) / 5
    of_all, of_nearest = [2, 4, 6, 19, 20, 23, 24], [2, 4, 6, 8, 9, 11, 19, 20, 23, 25]
    for found, column in zip(quantiles[:7], of_all, strict=True):
        np.testing.assert_allclose(found, np.quantile(features[:, column], (0.1, 0.3, 0.5, 0.7, 0.9)), atol=1e-5)
    for found, column in zip(quantiles[7:], of_nearest, strict=True):
        some = np.quantile(features[nearest, column], (0.1, 0.3, 0.5, 0.7, 0.9))
        np.testing.assert_allclose(found, some, atol=1e-5)
    np.testing.assert_allclose(context[-4], np.log(len(rows)) / 4, rtol=1e-6)
    logits = EdgeLogits(structure)
    logits.put(pairs_of_first, encode(np.zeros(len(features), np.float32)))
    logits.sum_degrees(everyone)
    later = second_context(context, structure.second_round(everyone, logits).features)
    assert later.shape == (CONTEXT_SECOND,)
    np.testing.assert_array_equal(later[: 2 * COLUMNS_FIRST + 35], context[: 2 * COLUMNS_FIRST + 35])
    np.testing.assert_array_equal(later[2 * COLUMNS_FIRST + 35 :][:4], context[-4:])
    kept = Context(strangers, len(rows), context, later)
    again = Context.from_arrays(kept.arrays())
    np.testing.assert_array_equal(again.second, later)
    assert again.strangers.spread == strangers.spread
    damaged = {
        "first": later,
        "second": np.full(CONTEXT_SECOND, np.nan),
        "pairs": np.array([0.1, 0.0]),
        "node_median": np.zeros(5, np.float32),
        "node_spread": np.zeros((len(rows), 1)),
        "cohort": np.array([len(rows)]),
        "num_nodes": np.array([3, 4]),
    }
    for name, array in damaged.items():
        with pytest.raises(ValueError, match="needed"):
            Context.from_arrays({**kept.arrays(), name: array})


def test_edge_f_and_estimates_by_hand():
    # two clusters {0, 1, 2} and {3, 4}, a lone 5
    edges = pairs(6, {(0, 1): 0.9, (1, 2): 0.8, (0, 2): 0.4, (3, 4): 0.6, (2, 3): 0.3, (4, 5): 0.2})
    members = np.array([0, 0, 0, 3, 3, 5])
    assert edge_fscore(*edges.split_sums(members)[:2], 3.2) == pytest.approx(2 * 2.7 / (4 + 3.2))
    found = estimate(edges, members)
    mean = np.array([0.7, 0.7, 0.7, 0.6, 0.6, 0.0])
    right = np.array([2, 2, 2, 1, 1, 0]) * mean
    inside = np.array([1.3, 1.7, 1.2, 0.6, 0.6, 0.0])
    leaving = np.array([0, 0, 0.3, 0.3, 0.2, 0.2])
    every = right + leaving * np.array([max(1, r / w) if w else 1 for r, w in zip(right, inside, strict=True)])
    sizes = np.array([3, 3, 3, 2, 2, 1])
    precision, recall = right.sum() / 8, right.sum() / every.sum()
    of_cluster, of_identity = ((1 + right) / sizes).mean(), ((1 + right) / (1 + every)).mean()
    twin = Estimate(
        precision,
        recall,
        2 * precision * recall / (precision + recall),
        2 * of_cluster * of_identity / (of_cluster + of_identity),
    )
    for name in ("precision", "recall", "fscore", "bcubed"):
        assert getattr(found, name) == pytest.approx(getattr(twin, name), rel=1e-5)
    assert found.agreement is None


def test_the_threshold_of_the_highest_edge_f_is_chosen():
    inside = {(i, j): 0.95 for a in (0, 4) for i in range(a, a + 4) for j in range(i + 1, a + 4)}
    between = {(i, j): 0.3 for i in range(4) for j in range(4, 8)}
    weights = inside | between
    edges, mass = pairs(8, weights), sum(weights.values())
    choice, members = choose(edges, mass, (0.2, 0.7))
    np.testing.assert_array_equal(members, [0] * 4 + [4] * 4)
    assert choice.tau1 == 0.7
    assert choice.tried == pytest.approx({0.2: 2 * 16.2 / (28 + 16.2), 0.7: 2 * 11.4 / (12 + 16.2)})
    assert f"{100 * choice.tried[0.7]:.2f} at 0.7" in choice.reason
    by_hand, _ = choose(edges, mass, (0.3,))
    assert (by_hand.tau1, by_hand.reason) == (0.3, "given, not chosen from the data")


@pytest.mark.long
def test_communities_are_joined_only_by_many_good_edges():
    def two_cliques(between):
        inside = {(i, j): 0.9 for a in (0, 5) for i in range(a, a + 5) for j in range(i + 1, a + 5)}
        return pairs(10, inside | between)

    members = np.array([0] * 5 + [5] * 5)
    many = {(i, j): 0.8 for i in range(5) for j in range(5, 10) if (i + j) % 2}
    np.testing.assert_array_equal(join_communities(two_cliques(many), members, 0.7), np.zeros(10, int))
    np.testing.assert_array_equal(
        join_communities(two_cliques(many), members, 0.85), members
    )  # no edge would hold them
    poor = dict.fromkeys(many, 0.4)
    np.testing.assert_array_equal(join_communities(two_cliques(poor), members, 0.3), members)
    one = {(0, 5): 0.99}
    np.testing.assert_array_equal(join_communities(two_cliques(one), members, 0.3), members)


def test_weights_are_saved_and_opened(tmp_path, monkeypatch):
    model = load_model(PRETRAINED)
    assert isinstance(model, ContextualModel)
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    with monkeypatch.context() as earlier:
        for name, width in (("CONTEXT_FIRST", 101), ("CONTEXT_SECOND", 131)):
            earlier.setattr(f"starfc.models.contextual.{name}", width)
        save_model(ContextualModel(8), tmp_path / "earlier")
    with pytest.raises(InputError, match="contexts of 151 numbers needed; found 101; they were trained by another"):
        load_model(tmp_path / "earlier")


@pytest.mark.long
def test_the_default_says_what_to_expect_and_what_is_doubtful(caplog):
    rows, labels = some_rows(identities=30, size=12, dim=64, noise=0.4)
    model = StarFC().fit(rows)
    score = evaluate(labels, model.labels_)["pairwise"]["fscore"]
    assert score > 0.95
    assert abs(model.estimate_["fscore"] - score) < 0.1
    assert model.partition_ == "infomap"
    assert 0.3 <= model.tau1_ == model.choice_.tau1 <= 0.8
    noise = np.random.default_rng(0).normal(size=(600, 64))
    alone = StarFC().fit(noise)
    assert any("instances are clusters of one" in doubt for doubt in alone.doubts_)
    assert any("instances are clusters of one" in record.message for record in caplog.records)


@pytest.mark.long
def test_it_does_not_matter_how_many_threads_and_in_what_units():
    rows, _ = some_rows(identities=30, size=12, dim=64, noise=0.6)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(StarFC().fit_predict(rows))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(*found)
    np.testing.assert_array_equal(found[0], StarFC().fit_predict(3.5 * rows.astype(np.float64)))


def test_thresholds_are_needed_where_p_is_not_calibrated_for_every_set():
    rows, _ = some_rows()
    structural = load_model(PRETRAINED.parent / "structural")
    with pytest.raises(InputError, match="tau1, tau2: numbers needed"):
        cluster(rows, build_knn(rows, 80), structural, tau1=None, tau2=None)
    assert LOWEST < 0.3


@pytest.fixture
def one_thread():
    """Kinds are made with one thread each; two would wait for one another on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.long
def test_a_kind_is_a_function_of_seed_and_number(one_thread):
    rows, labels = some_rows(identities=60, size=30, dim=32)
    real = Real(Features(rows), labels)
    families = set()
    for number in range(9):
        one, other = (make_kind(5, number, real) for _ in range(2))
        assert (one is None) == (other is None)
        if one is not None:
            families.add(one.family)
            np.testing.assert_array_equal(one.features, other.features)
            assert len(one.labels) == len(one.features) >= 30
    assert len(families) > 1
    assert all(kind is None or kind.family != "real" for kind in (make_kind(5, number) for number in range(4)))
    rng = np.random.default_rng(0)
    for _ in range(20):
        sizes = draw_sizes(rng, 1000)
        assert sizes.min() >= 1
        assert len(sizes) >= 2
    largest = [draw_sizes(rng, 1000).max() for _ in range(200)]
    assert sum(size <= 10 for size in largest) > 25  # kinds in which all identities are small
    assert sum(size > 100 for size in largest) > 25


@pytest.mark.long
def test_a_scorer_learns_from_kinds():
    kinds = [make_kind(0, number) for number in (3, 6, 8, 10, 14, 19, 21, 23)]
    samples = []
    for number, kind in enumerate(kinds):
        found = sample_edges(kind, np.random.default_rng(number), 500, None, knn=40, candidates=20)
        assert set(found) == {"first"}
        features, same, context = found["first"]
        assert features.shape == (len(same), COLUMNS_FIRST)
        samples.append((features, same, context, kind.family))
    generator = torch.Generator().manual_seed(0)
    scorer = ContextScorer(COLUMNS_FIRST, CONTEXT_FIRST, 16, generator)
    record = fit(scorer, samples, Kinds(steps=150, batch=512), generator)
    assert record["loss"] < 0.45
    assert record["kinds"] + 1 == len(samples)


def test_a_context_far_from_all_kinds_says_nothing():
    model = load_model(PRETRAINED)
    near = model.first.neutral
    spread = model.first.members[0].context_std.numpy()
    slightly, far = near + 2 * spread, near + np.where(np.arange(CONTEXT_FIRST) < 75, 9, 0) * spread
    edges = torch.from_numpy(np.random.default_rng(0).normal(size=(30, COLUMNS_FIRST)).astype(np.float32))
    neutral, other, outside = (model.first.of(context.astype(np.float32))(edges) for context in (near, slightly, far))
    torch.testing.assert_close(outside, neutral)
    assert (other - neutral).abs().max() > 0.1
    assert model.first.outside(far) > 0.4


@pytest.mark.long
def test_what_is_made_of_kinds_is_read_again(tmp_path):
    path = tmp_path / "early-00010-00014.npz"
    contextual._make_chunk(path, range(10, 14), None, {"edges": 50, "few": False}, 0, None, 20, 40, 10)
    read = list(read_samples(path))
    kinds = [kind for number in range(10, 14) if (kind := make_kind(0, number)) is not None]
    assert len(read) == len(kinds) == 3  # one of them is hopeless
    for (of_round, (features, same, context, family)), kind in zip(read, kinds, strict=True):
        assert of_round == "first"
        assert features.shape == (len(same), COLUMNS_FIRST)
        assert context.shape == (CONTEXT_FIRST,)
        assert family == kind.family


def test_a_stopped_training_is_not_gone_on_with_by_other_settings(tmp_path):
    write_json(tmp_path / "kinds" / "settings.json", {"seed": 7})
    config = build(Config, {"model": {"type": "gcn_structural_any"}, "prefix": str(tmp_path)})
    with pytest.raises(InputError, match=r"made by a run with .*'seed': 7.*'seed': 0.*delete this folder"):
        run_kinds_training(config, tmp_path)


def test_where_nothing_is_expected_the_highest_threshold_stays():
    weights = {(0, 1): 0.35, (2, 3): 0.34} | {(i, j): 0.15 for i in range(4, 12) for j in range(i + 1, 12)}
    choice, members = choose(pairs(12, weights), sum(weights.values()), (0.3, 0.8))
    assert max(choice.tried.values()) < 0.5
    assert choice.tau1 == 0.8
    assert choice.reason.startswith("2 values were tried, with an expected F of edges of ")
    assert choice.reason.endswith("; all are below 50, so most joins would be wrong, and the highest value was taken")
    np.testing.assert_array_equal(members, np.arange(12))


def test_the_reason_names_what_was_tried_and_taken():
    tried = {0.4: 0.983, 0.7: 0.9827, 0.8: 0.97}
    listed = "3 values were tried, with an expected F of edges of 98.30 at 0.4, 98.27 at 0.7, 97.00 at 0.8; "
    assert why_tau1(0.4, tried, False, 0.0) == listed + "0.4 has the best"
    equal = dict.fromkeys((0.3, 0.4), 0.9)
    assert why_tau1(0.4, equal, False, 0.0).endswith("; all are equal, and the highest value was taken")
    assert why_tau1(0.7, tried, False, 0.0005) == (
        listed + "0.4 has the best, and 0.7 is the highest that is at most 0.05 below it: a higher tau1 joins fewer "
        "strangers"
    )


@pytest.mark.long
def test_a_set_of_equal_lists_has_the_choices_that_were_made(tmp_path):
    rows, _ = some_rows(identities=30, size=12, dim=64, noise=0.4)
    np.save(tmp_path / "rows.npy", rows)
    config = model_config(PRETRAINED, {"model": {"kwargs": {"feature_dim": 64}}})
    record = run_inference(config, features=tmp_path / "rows.npy", out=tmp_path / "out", keep_edges=True)
    chosen = record["choices"]
    assert chosen["knn"]["value"] == 80
    assert chosen["tau1"]["value"] == record["thresholds"]["tau1"]
    assert chosen["partition"]["value"] == "infomap"
    assert chosen["copies"]["reason"] == "0 instances are copies of others"
    assert record["estimate"].keys() == {"precision", "recall", "fscore", "bcubed", "agreement"}
    twin = StarFC().fit(rows)
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "labels.npy"), twin.labels_)
    assert record["doubts"] == twin.doubts_


@pytest.mark.long
@pytest.mark.parametrize("given", [{}, {"tau1": 0.0, "tau2": 0.0, "partition": "components"}])
def test_the_doubts_of_a_run_are_those_of_the_estimator(tmp_path, caplog, given):
    """Few rows in short lists; and, at so low a threshold, a cluster of nearly all of them."""
    rows, _ = some_rows(identities=30, size=5, dim=16, noise=0.9)
    np.save(tmp_path / "rows.npy", rows[: 150 if given else 60])
    changes = {"adapt": "off", "model": {"kwargs": {"feature_dim": 16}}}
    changes |= {"partition": {"type": "components"}} if given else {}
    config = model_config(PRETRAINED, changes)
    with caplog.at_level("WARNING", "starfc"):
        pair = given.get("tau1"), given.get("tau2")
        record = run_inference(config, features=tmp_path / "rows.npy", tau1=pair[0], tau2=pair[1], out=tmp_path / "out")
    assert record["doubts"] == [logged.getMessage() for logged in caplog.records]
    estimator = StarFC(adapt="off", **given).fit(np.load(tmp_path / "rows.npy"))
    twins = [doubt.replace(f"{tmp_path / 'rows.npy'}:", "X:") for doubt in record["doubts"]]
    assert twins == estimator.doubts_
    assert any(("thresholds: 1 cluster" if given else "lists of at most 59 neighbours") in doubt for doubt in twins)


def test_a_run_of_few_rows_says_how_many_neighbours_it_has(tmp_path):
    rows, _ = some_rows(identities=5, size=10, dim=64)
    np.save(tmp_path / "rows.npy", rows)
    config = model_config(PRETRAINED, {"model": {"kwargs": {"feature_dim": 64}}})
    record = run_inference(config, features=tmp_path / "rows.npy", out=tmp_path / "out")
    assert record["choices"]["knn"] == {"value": 50, "reason": "there are only 50 distinct instances"}


@pytest.mark.long
def test_a_threshold_by_hand_is_what_holds_clusters_together():
    rows, _ = some_rows(identities=30, size=12, dim=64, noise=0.8)
    for tau1 in (0.5, 0.9, 1.0):
        model = StarFC(tau1=tau1).fit(rows)
        parsed = model.edge_scores_
        held = components(parsed.edges.select(parsed.kept))
        np.testing.assert_array_equal(model.labels_, largest_first(held))
    assert model.labels_.max() + 1 == len(rows)


def test_a_run_of_one_row_grows_by_a_sensible_threshold():
    rows, labels = some_rows(identities=10, size=20, dim=64, noise=0.4)
    alone = StarFC().fit(rows[:1])
    assert alone.tau1_ == 0.5
    alone.partial_fit(rows[1:])
    assert evaluate(labels, alone.labels_)["pairwise"]["fscore"] > 0.9


@pytest.mark.long
def test_a_run_without_its_context_is_refused_and_one_with_a_damaged_one(tmp_path):
    rows, _ = some_rows(identities=30, size=12, dim=64, noise=0.4)
    np.save(tmp_path / "rows.npy", rows)
    config = model_config(PRETRAINED, {"model": {"kwargs": {"feature_dim": 64}}})
    run_inference(config, features=tmp_path / "rows.npy", out=tmp_path / "out", keep_edges=True)
    edges = tmp_path / "out" / "edges"
    whole = dict(np.load(edges / "context.npz"))
    np.savez(
        edges / "context.npz",
        **{name: value[:100] if name.startswith("node") else value for name, value in whole.items()},
    )
    with pytest.raises(InputError, match=r"context.npz: has .* bytes, but files.json says"):
        assign(tmp_path / "out", rows[:3])
    (tmp_path / "out" / "files.json").unlink()
    with pytest.raises(InputError, match="damaged context"):
        assign(tmp_path / "out", rows[:3])
    (edges / "context.npz").unlink()
    (edges / "logits.npy").unlink()
    with pytest.raises(InputError, match="lacks the context of its model"):
        assign(tmp_path / "out", rows[:3])
