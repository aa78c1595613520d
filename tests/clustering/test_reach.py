"""Test that clusters are joined which samples of the rows hold together, and taken apart which they divide."""

import json

import numpy as np
import pytest

from starfc import StarFC
from starfc.clustering.components import components
from starfc.clustering.reach import Counts, join, mates, mean_inside, reach
from starfc.clustering.samples import sample, taken_apart
from starfc.config.recipes import model_config
from starfc.data.dataset import Features
from starfc.data.synthetic import Population, Synthetic
from starfc.evaluation.metrics import evaluate
from starfc.graph.edges import EdgeList
from starfc.models.checkpoint import PRETRAINED
from starfc.runs.cluster import cluster_text, run_inference
from starfc.runtime.stages import Stages


def edges_of(pairs, n, p=0.9):
    rows, cols = np.array(pairs, np.int64).reshape(-1, 2).T
    rows, cols = np.concatenate([rows, cols]), np.concatenate([cols, rows])
    order = np.lexsort((cols, rows))
    edges = EdgeList.from_rows(rows[order], cols[order].astype(np.int32), np.full(len(rows), p, np.float32), n)
    return EdgeList(edges.indptr, edges.cols, edges.scores, symmetric=True)


def chains(members, p=0.95):
    """Edges from every row to the next of its cluster."""
    order = np.argsort(members, kind="stable")
    same = members[order[1:]] == members[order[:-1]]
    return edges_of(np.stack([order[:-1][same], order[1:][same]], axis=1), len(members), p)


def slow_joined(members, inside, columns, tau1, samples):
    """The rule of the module, pair of clusters by pair; each row's cluster by its smallest member."""
    name = members.copy()
    names = np.unique(members)
    for a in names:
        for b in names[names > a]:
            smaller = min((members == a).sum(), (members == b).sum())
            shares, together, pairs, scores = [], 0, 0, []
            for drawn in samples:
                ours, theirs = (np.flatnonzero(members[drawn.rows] == c) for c in (a, b))
                same = (drawn.labels[ours][:, None] == drawn.labels[theirs]).sum()
                shares.append(same / max(len(ours) * len(theirs), 1))
                together, pairs = together + same, pairs + len(ours) * len(theirs)
                leads = (members[drawn.links.rows] == a) & (members[drawn.links.cols] == b)
                scores += drawn.links.scores[leads].tolist()
            if not scores or max(scores) <= tau1:
                continue
            if smaller > columns:
                one = max(shares) >= 0.9
            else:
                one = (
                    smaller >= 10 and together >= 0.9 * pairs and np.mean(scores) >= max(0.9, min(inside[a], inside[b]))
                )
            if one:
                ends = name[a], name[b]
                name[np.isin(name, ends)] = min(ends)
    return name


@pytest.mark.long
@pytest.mark.parametrize("seed", range(12))
def test_clusters_are_joined_as_the_rule_says(seed):
    rng = np.random.default_rng(seed)
    of = rng.integers(0, 12, 400) ** 2 // 12
    members = np.array([np.flatnonzero(of == value)[0] for value in of])
    samples = []
    for part in np.array_split(rng.permutation(400), 3):
        rows = np.sort(part)
        labels = of[rows] // (3 if seed % 2 else rng.integers(2, 4))
        wrong = rng.random(len(rows)) < 0.04
        labels[wrong] = rng.integers(0, 4, wrong.sum())
        edges = chains(labels)
        p = rng.choice([0.4, 0.85, 0.99], 12)[np.minimum(of[rows][edges.rows], of[rows][edges.cols])]
        edges = EdgeList(edges.indptr, edges.cols, p.astype(np.float32), symmetric=True)
        samples.append(sample(members, rows, labels, edges))
    columns, tau1 = 40, 0.9 if seed % 3 else 0.5
    inside = rng.choice([0.8, 0.92, 0.999], 400)
    found = join(members, inside, columns, tau1, samples)
    np.testing.assert_array_equal(found.members, slow_joined(members, inside, columns, tau1, samples))
    assert (found.links.scores > tau1).all()
    # the clusters hang together by their own edges and those that are returned
    whole = found.links.added_to(chains(members))
    pieces = components(whole.select(found.members[whole.rows] == found.members[whole.cols]))
    np.testing.assert_array_equal(pieces, found.members)
    counts = found.counts
    assert len(np.unique(members)) - len(np.unique(found.members)) == counts.joined - counts.into


def test_the_rule_has_cases_of_every_kind():
    """Of the sets above some are joined and some are not, large clusters and small ones."""
    members = np.repeat([0, 60, 120, 135], [60, 60, 15, 15])
    rows = np.arange(150)
    labels = np.repeat([0, 1], [120, 30])
    weak, sure = chains(labels, 0.8), chains(labels)
    apart, large, both = [0, 60, 120, 135], [0, 120, 135], [0, 120]
    for edges, inside, columns, expected in (
        (weak, 0.9, 40, large),
        (sure, 0.9, 40, both),
        (sure, 0.99, 40, large),
        (weak, 0.7, 80, apart),
        (sure, 0.7, 80, both),
    ):
        found = join(members, np.full(150, inside), columns, 0.5, [sample(members, rows, labels, edges)])
        assert np.unique(found.members).tolist() == expected


def test_the_mean_inside_is_that_of_likely_edges():
    edges = edges_of([(0, 1), (1, 2), (3, 4), (2, 3)], 6)
    p = np.where((edges.rows + edges.cols) == 3, 0.6, 0.9)  # (1, 2); the others 0.9
    p[(edges.rows + edges.cols) == 7] = 0.4  # (3, 4): not likely
    edges = EdgeList(edges.indptr, edges.cols, p.astype(np.float32), symmetric=True)
    found = mean_inside(np.array([0, 0, 0, 3, 3, 5]), edges)
    np.testing.assert_allclose(found, [0.75, 0, 0, 0, 0, 0], atol=1e-6)


def test_edges_are_added_once_and_in_order():
    edges = edges_of([(0, 1), (1, 3)], 5, 0.5)
    more, at = edges.with_edges(np.array([3, 4, 1, 0]), np.array([1, 0, 3, 4]), np.full(4, 0.9))
    assert more.cols.tolist() == [1, 4, 0, 3, 1, 0]
    assert more.indptr.tolist() == [0, 2, 4, 4, 5, 6]
    np.testing.assert_allclose(more.scores, [0.5, 0.9, 0.5, 0.5, 0.5, 0.9])
    assert at.tolist() == [1, 4]


class Steps:
    """Clusters samples as they are told, and counts them."""

    seed, scratch = 0, None

    def __init__(self, of, p=0.95):
        self.of, self.p, self.times = of, p, 0

    def __call__(self, rows, stages):
        self.times += 1
        labels = self.of[rows.array[:, 1].astype(np.int64)]
        return labels, chains(labels, self.p)


def numbered(n):
    """Features that say which row they are."""
    return Features(np.stack([np.ones(n), np.arange(n)], axis=1).astype(np.float32), "X")


@pytest.mark.parametrize(("size", "n", "times"), [(5, 4000, 0), (20, 900, 0), (20, 4000, 1)])
def test_samples_are_clustered_only_where_they_can_say_something(size, n, times):
    members = np.repeat(np.arange(0, n, size), size)
    steps = Steps(members)
    found = reach(members, chains(members, 0.9), 79, 0.5, numbered(n), steps, Stages())
    assert steps.times == times
    np.testing.assert_array_equal(found.members, members)
    assert found.counts == (Counts(0, 0) if times else None)


def test_all_three_samples_are_clustered_where_the_first_joins_something():
    members = np.repeat(np.arange(0, 4000, 20), 20)
    steps, stages = Steps(members // 40), Stages()
    found = reach(members, chains(members, 0.9), 79, 0.5, numbered(4000), steps, stages)
    assert steps.times == 3
    np.testing.assert_array_equal(found.members, np.repeat(np.arange(0, 4000, 40), 40))
    assert found.counts == Counts(200, 100)
    assert [stage.name for stage in stages.finished] == ["samples"]


def slow_taken_apart(members, edges, columns, tau1, rows, labels):
    """The rule of the module, cluster by cluster and row by row."""
    after = members.copy()
    for name in np.unique(members):
        mine = np.flatnonzero(members == name)
        drawn = np.flatnonzero(np.isin(rows, mine))
        same = labels[drawn][:, None] == labels[drawn]
        pairs = len(drawn) * (len(drawn) - 1)
        if len(mine) <= columns or len(drawn) < 10 or same.sum() - len(drawn) >= 0.5 * pairs:
            continue
        piece = {int(rows[d]): int(labels[d]) for d in drawn}
        sizes = {label: list(piece.values()).count(label) for label in set(piece.values())}
        large = [label for label, size in sizes.items() if size >= 10]
        if len(large) < 2 and (len(drawn) < 100 or max(sizes.values()) >= 0.1 * len(drawn)):
            continue
        parts = {row: label for row, label in piece.items() if label in large}
        for i in set(mine.tolist()) - set(piece):
            votes, total = {}, 0.0
            for e in range(edges.indptr[i], edges.indptr[i + 1]):
                if (j := int(edges.cols[e])) in piece:
                    votes[piece[j]] = votes.get(piece[j], 0.0) + float(edges.scores[e])
                    total += float(edges.scores[e])
            label = max(large, key=lambda part: votes.get(part, 0.0), default=None)
            if label is not None and 2 * votes.get(label, 0.0) > total:
                parts[i] = label
        for i in mine.tolist():
            reached, new = {i}, [i]
            while new:
                row = new.pop()
                for e in range(edges.indptr[row], edges.indptr[row + 1]):
                    j = int(edges.cols[e])
                    in_part = i in parts and parts.get(j) == parts[i]
                    if in_part and edges.scores[e] > tau1 and j not in reached:
                        reached.add(j)
                        new.append(j)
            after[i] = min(reached)
    return after


@pytest.mark.parametrize("seed", range(8))
def test_clusters_are_taken_apart_as_the_rule_says(seed):
    rng = np.random.default_rng(seed)
    n = 960
    members = (np.arange(n) // 120) * 120
    members[720:] = 720
    rows = np.sort(np.r_[rng.choice(720, 288, replace=False), rng.choice(np.arange(720, n), 130, replace=False)])
    # pieces of the clusters in the sample: one, two alike, many, one large and dust, three, only small ones, only dust
    wanted = np.array([[0, 0, 0, 0], [1, 1, 2, 2], [3, 4, 5, 6], [7, 7, 8, 9], [10, 10, 11, 12], [0] * 4, [0] * 4])
    cluster = np.minimum(rows // 120, 6)
    labels = wanted[cluster, rng.integers(0, 4, len(rows))]
    labels[cluster == 5] = 1000 + np.arange((cluster == 5).sum()) // 8
    dust = ((cluster == 3) & (labels > 7)) | ((cluster == 2) & (rng.random(len(rows)) < 0.5)) | (cluster == 6)
    labels[dust] = 20 + np.arange(dust.sum())
    pairs = np.unique(np.sort(rng.integers(0, n, (12_000, 2)), axis=1), axis=0)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    edges = edges_of(pairs, n)
    p = rng.random((n, n)).astype(np.float32)
    edges = EdgeList(edges.indptr, edges.cols, np.maximum(p, p.T)[edges.rows, edges.cols], symmetric=True)
    drawn = sample(members, rows, labels, edges_of([], len(rows)))
    found, count = taken_apart(members, edges, 79, 0.6, drawn)
    np.testing.assert_array_equal(found, slow_taken_apart(members, edges, 79, 0.6, rows, labels))
    assert 2 <= count <= 5
    assert (found[:120] == 0).all()  # the sample holds it together
    assert (found[600:720] == 600).all()  # the sample has few rows of it, and no piece of ten
    assert len(np.unique(found[720:])) == 240  # many rows of the sample, all alone
    whole, none = taken_apart(members, edges, 240, 0.6, drawn)
    np.testing.assert_array_equal(whole, members)  # not larger than a list
    assert none == 0


def test_of_very_many_rows_one_sample_is_clustered(monkeypatch):
    monkeypatch.setattr("starfc.clustering.reach.MANY", 3999)
    monkeypatch.setattr("starfc.clustering.reach.SMALLEST", 1000)
    identities = np.repeat(np.arange(0, 4000, 100), 100)
    members = identities.copy()
    members[:400] = 0  # four identities in one cluster
    steps = Steps(identities // 200 * 200)  # the sample puts two and two together
    found = reach(members, chains(members, 0.9), 79, 0.5, numbered(4000), steps, Stages())
    assert steps.times == 1
    assert found.counts == Counts(joined=36, into=18, apart=1, times=4)
    assert found.agreed is not None  # a quarter of the rows
    monkeypatch.setattr("starfc.clustering.reach.LARGEST", 600)
    assert reach(members, chains(members, 0.9), 79, 0.5, numbered(4000), steps, Stages()).agreed is None  # a seventh
    monkeypatch.setattr("starfc.clustering.reach.LARGEST", 300_000)
    monkeypatch.setattr("starfc.clustering.reach.SMALLEST", 1000)
    found = reach(members, chains(members, 0.9), 79, 0.5, numbered(4000), Steps(identities // 200 * 200, 0.8), Stages())
    assert found.counts == Counts(joined=0, into=0, apart=1, times=4)  # look-alikes, by edges of lower p
    large = np.repeat(np.arange(0, 4000, 200), 200)  # larger than two lists: the same edges join them
    found = reach(large, chains(large, 0.9), 79, 0.5, numbered(4000), Steps(large // 400 * 400, 0.8), Stages())
    assert found.counts == Counts(joined=20, into=10, apart=0, times=4)
    steps = Steps(identities)
    found = reach(members, chains(identities, 0.9), 79, 0.5, numbered(4000), steps, Stages())
    assert found.counts == Counts(joined=0, into=0, apart=1, times=4)
    rows = np.arange(4000)
    assert (found.members == identities)[rows >= 400].all()
    assert len(np.unique(found.members[:400])) >= 4
    one = reach(np.zeros(4000, np.int64), chains(identities, 0.9), 79, 0.5, numbered(4000), Steps(identities), Stages())
    assert one.counts == Counts(joined=0, into=0, apart=1, times=4)  # a single cluster, of all rows
    assert all(len(np.unique(identities[found.members == name])) == 1 for name in np.unique(found.members))


@pytest.mark.long
def test_a_run_says_how_many_rows_its_sample_had(tmp_path, monkeypatch):
    monkeypatch.setattr("starfc.clustering.reach.MANY", 1000)
    monkeypatch.setattr("starfc.clustering.reach.LARGEST", 400)
    rows, _ = Population(2500, Synthetic(), 5, 64).rows(0, 2500)
    np.save(tmp_path / "x.npy", rows.astype(np.float32))
    config = model_config(PRETRAINED, {"adapt": "off", "model": {"kwargs": {"feature_dim": 64}}})
    record = run_inference(config, model_folder=PRETRAINED, features=tmp_path / "x.npy", out=tmp_path / "run")
    assert record["choices"]["reach"]["value"] == 6
    text = cluster_text(record, tmp_path / "run")
    assert "searched farther in samples of 1/6 of the rows" in text
    assert "clustered alone" not in text  # the sample is too small to compare F
    assert "a third" not in text


@pytest.mark.long
def test_samples_choose_their_own_search(tmp_path):
    rows, _ = Population(2400, Synthetic(), 5, 64).rows(0, 2400)
    np.save(tmp_path / "x.npy", rows.astype(np.float32))
    config = {"adapt": "off", "knn": 20, "model": {"kwargs": {"feature_dim": 64}}, "knn_method": "ivf"}
    config["knn_params"] = {"nlist": 1000, "nprobe": 3}  # more cells than a sample has rows
    config = model_config(PRETRAINED, config)
    record = run_inference(config, model_folder=PRETRAINED, features=tmp_path / "x.npy", out=tmp_path / "run")
    assert record["knn_graph"]["params"]["nlist"] == 1000
    assert [stage["name"] for stage in record["stages"]].count("samples") == 1
    assert any("of the edges that matter: clusters are incomplete" in doubt for doubt in record["doubts"])


@pytest.mark.long
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


@pytest.mark.long
def test_later_steps_do_not_join_what_was_taken_apart(monkeypatch):
    for name, value in {
        "reach.MANY": 1000,
        "reach.LARGEST": 700,
        "samples.SCATTERED": 10,
        "samples.SCATTER": 1,
    }.items():
        monkeypatch.setattr(f"starfc.clustering.{name}", value)
    parameters = Synthetic(mean_size=300, size_sigma=0.6, max_size=1000, modes=4, noise_weight=1.2)
    rows, _ = Population(4000, parameters, 5, 64).rows(0, 4000)
    kept = {}

    def remembered(*arguments):
        kept["reached"] = reach(*arguments)
        return kept["reached"]

    monkeypatch.setattr("starfc.clustering.pipeline.reach", remembered)
    model = StarFC(k=40, adapt="off").fit(rows.astype(np.float32))
    found, before = kept["reached"], model.labels_.copy()
    assert found.counts.apart == 5
    alone = np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32)
    model.partial_fit(alone, apply_merges=True)
    sizes = np.bincount(found.former)[found.former]
    moved = (found.former != found.members) & (np.bincount(found.members)[found.members] < sizes)
    assert moved.sum() > 50
    np.testing.assert_array_equal(model.labels_[:4000][moved], before[moved])


def test_an_identity_with_few_rows_in_the_sample_stays_one():
    n = 500
    near = (np.arange(n)[:, None] + np.arange(1, 21)) % n
    edges = edges_of(np.stack([np.repeat(np.arange(n), 20), near.ravel()], axis=1), n)
    rows = np.arange(0, n, 25)
    drawn = sample(np.zeros(n, np.int64), rows, np.repeat([0, 1, 2], [7, 7, 6]), edges_of([], len(rows)))
    members, count = taken_apart(np.zeros(n, np.int64), edges, 79, 0.5, drawn)
    assert count == 0
    assert (members == 0).all()


def test_mates_by_hand():
    assert mates(np.array([0, 0, 2, 2, 2, 5])) == pytest.approx((2 * 1 + 3 * 2 + 0) / 6)
    assert mates(np.arange(4)) == 0


def test_samples_with_few_mates_do_not_limit_the_expected_f(monkeypatch):
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(305), [12] * 5 + [2] * 300)
    rows = rng.normal(size=(305, 64))[labels] + 0.5 * rng.normal(size=(len(labels), 64))
    model = StarFC(k=10, adapt="off")
    assert model.fit(rows.astype(np.float32)).estimate_["agreement"] is None
    monkeypatch.setattr("starfc.clustering.reach.mates", lambda members: 3.0)  # then the samples count
    assert model.fit(rows.astype(np.float32)).estimate_["agreement"] is not None
