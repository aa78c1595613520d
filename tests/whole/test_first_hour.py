"""Test what a user meets in the first hour: few rows, odd inputs, published configs, words of the interface."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from typer.testing import CliRunner

from helpers.paths import ROOT
from helpers.samples import blobs
from starfc import InputError, StarFC
from starfc.commands import app
from starfc.config.config import load_config
from starfc.data.files import read_labels
from starfc.evaluation.metrics import evaluate
from starfc.models.checkpoint import save_model
from starfc.models.gcn import StarFCModel
from starfc.models.hierarchical import HierarchicalModel


def _orthogonal(n: int = 300) -> np.ndarray:
    return np.eye(n, dtype=np.float32)[np.random.default_rng(0).permutation(n)]


def _simplex(n: int = 200) -> np.ndarray:
    """Rows that are all equally similar, at about 0.5."""
    return np.eye(n, dtype=np.float32) * np.float32(np.sqrt(n)) + 1


@pytest.mark.long
@pytest.mark.parametrize("rows", [_orthogonal(), _simplex()], ids=["orthogonal", "simplex"])
def test_similarities_that_are_all_tied_join_nothing(rows):
    model = StarFC().fit(rows)
    assert model.labels_.tolist() == list(range(len(rows)))
    assert any("clusters of one" in doubt for doubt in model.doubts_)


def test_what_stands_out_of_tied_similarities_is_joined():
    rng, identities = np.random.default_rng(0), np.repeat(np.arange(40), 8)
    rows = np.zeros((320, 240), np.float32)
    rows[np.arange(320), identities] = 1
    rows[np.arange(320), rng.integers(40, 240, 320)] = 0.5
    labels = StarFC().fit_predict(rows)
    assert len({*zip(labels.tolist(), identities.tolist(), strict=True)}) == 40 == labels.max() + 1


@pytest.mark.long
def test_rows_added_to_tied_ones_stay_alone():
    rows = _orthogonal()
    model = StarFC().fit(rows[:280])
    model.partial_fit(rows[280:])
    assert np.unique(model.labels_).size == 300


PUBLISHED = """
import os.path as osp

prefix = {prefix!r}
train_name = 'part0_train'
test_name = 'part1_test'
knn = 80
knn_method = 'faiss'
th_sim = 0.
INPUT_SIZE = [112, 112]
cluster_num = 200
mid_feat_path = osp.join(prefix, 'mid_features', 'x.bin')
train_data = dict(feat_path=osp.join(prefix, 'features', 'part0_train.bin'),
                  label_path=osp.join(prefix, 'labels', 'part0_train.meta'),
                  knn_graph_path=osp.join(prefix, 'knns', train_name, 'faiss_k_80.npz'),
                  list_path='x.list', k=knn, is_norm_feat=True, th_sim=th_sim, conf_metric='s_nbr', eval_interim=False)
test_data = dict(feat_path=osp.join(prefix, 'features', 'part1_test.bin'),
                 label_path=osp.join(prefix, 'labels', 'part1_test.meta'),
                 knn_graph_path=osp.join(prefix, 'mine', 'faiss_k_80.npz'),
                 list_path='x.list', k=knn, is_norm_feat=True, th_sim=th_sim, conf_metric='s_nbr', eval_interim=False)
model = dict(type='gcn', kwargs=dict(feature_dim=16, nhid=32, nclass=1, dropout=0.))
optimizer = dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-5)
optimizer_config = {{}}
total_epochs = 50
STAGES = [int(total_epochs * 0.5), int(total_epochs * 0.8), int(total_epochs * 0.9)]
lr_config = dict(policy='step', step=[int(r * total_epochs) for r in [0.5, 0.8, 0.9]])
batch_size_per_gpu = 1
use_gcn_feat = True
eval_interim = False
metrics = ['pairwise', 'bcubed', 'nmi']
workers_per_gpu = 1
checkpoint_config = dict(interval=5000)
log_level = 'INFO'
log_config = dict(interval=1, hooks=[dict(type='TextLoggerHook')])
"""
HIERARCHICAL = """
sample_num = 5
k_num2 = 100
k_num3 = 100
"""


@pytest.fixture
def published(tmp_path):
    """A config of the published code, with the prefix, the number of identities and the kNN graph's path edited."""

    def write(more: str = "") -> Path:
        path = tmp_path / "cfg.py"
        path.write_text(PUBLISHED.format(prefix=str(tmp_path / "data")) + more)
        return path

    return write


@pytest.mark.parametrize("more", ["", HIERARCHICAL], ids=["gcn", "hierarchical"])
def test_a_published_config_is_read_with_one_warning(published, caplog, more):
    path = published(more)
    with caplog.at_level("WARNING", "starfc"):
        config = load_config(path)
    (said,) = caplog.messages
    assert said.startswith(f"{path}: keys of the published configs that have no effect here: INPUT_SIZE, STAGES, ")
    for key in ("train_data.knn_graph_path", "test_data.k", "model.kwargs.nclass", *(("k_num2",) if more else ())):
        assert f", {key}" in said
    assert (config.knn, config.cluster_num, config.optimizer.lr) == (80, 200, 0.1)
    assert config.test_data.knn_graph_path.endswith("/data/mine/faiss_k_80.npz")
    assert config.milestones == [25, 40, 45]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("train_data['k'] = 60", "train_data.k: the value of knn is used instead"),
        ("test_data.update(th_sim=0.5)", "test_data.th_sim: the value of th_sim is used instead"),
        ("k_num2 = 60", "k_num2: the value of hierarchical.k_mid is used instead"),
        ("clusternum = 3", "clusternum: unknown key; did you mean cluster_num?"),
    ],
)
def test_contradictions_of_a_published_config_are_errors(published, more, message):
    with pytest.raises(InputError, match=re.escape(message)):
        load_config(published(more))


def test_an_override_of_knn_is_no_contradiction_to_the_file(published):
    config = load_config(published(), {"knn": 60, "hierarchical.k_mid": 80})
    assert (config.knn, config.hierarchical.k_mid) == (60, 80)


@pytest.mark.parametrize(("epochs", "milestones"), [(20, [10, 16, 18]), (100, [50, 80, 90]), (1, []), (3, [1, 2, 2])])
def test_total_epochs_alone_moves_the_schedule(published, epochs, milestones, tmp_path):
    assert load_config(published(), {"total_epochs": epochs}).milestones == milestones
    shipped = ROOT / "configs" / "cfg_gcn_ms1m.py"
    assert load_config(shipped, {"total_epochs": epochs}).milestones == milestones
    own = tmp_path / "own.py"
    own.write_text(f"_base_ = {str(shipped)!r}\ntotal_epochs = {epochs}\n")
    assert load_config(own).milestones == milestones


def test_epochs_that_are_never_reached_are_said(tmp_path, caplog):
    own = tmp_path / "own.py"
    own.write_text("total_epochs = 20\nlr_config = dict(policy='step', step=[10, 25])\n")
    assert load_config(own).milestones == [10]
    assert caplog.messages == [f"{own}: lr_config.step: 25 is never reached in 20 epochs"]


@pytest.fixture(scope="module")
def sample():
    """The first rows of the bundled embeddings, and their identities."""
    features = np.load(ROOT / "data" / "glyph" / "features" / "sample.npy")[:300]
    return features, read_labels(ROOT / "data" / "glyph" / "labels" / "sample.meta")[:300]


def _published_models(dim):
    generator = torch.Generator().manual_seed(0)
    yield StarFCModel(dim, 32, init="metric", generator=generator).eval()
    yield HierarchicalModel(dim, 32, init="metric", scales=(6, 8, 10), generator=generator).eval()


@pytest.mark.long
@pytest.mark.parametrize("refinement", ["fixed", "dynamic"])
@pytest.mark.parametrize("rows", [1, 2, 3, 10])
def test_any_number_of_rows(sample, rows, refinement):
    few = sample[0][:rows]
    for model in (None, *_published_models(few.shape[1])):
        labels = StarFC(model, refinement=refinement).fit_predict(few)
        assert len(labels) == rows
        assert sorted(set(labels.tolist())) == list(range(labels.max() + 1))


def test_short_lists_are_said_in_words_of_the_estimator(sample, caplog):
    few = StarFC().fit(sample[0][:40])
    said = "X: lists of at most 39 neighbours instead of 79; clusters may be less certain"
    assert said in few.doubts_
    assert caplog.text.count(said) == 1
    StarFC(k=20).fit(sample[0][:40])
    assert "k 20: lists of at most 19 neighbours instead of 79; clusters may be less cert" in caplog.text


SCORINGS = [None, "adjusted_rand_score", lambda e, X, y: adjusted_rand_score(y, e.fit_predict(X))]


@pytest.mark.long
@pytest.mark.parametrize("scoring", SCORINGS)
def test_a_grid_search_over_a_threshold(sample, scoring):
    search = GridSearchCV(StarFC(adapt="off"), {"tau1": [0.5, 1.0]}, scoring=scoring, cv=2, error_score="raise").fit(
        *sample
    )
    assert search.best_params_ == {"tau1": 0.5}
    assert search.best_estimator_.tau1_ == 0.5


@pytest.mark.long
def test_predict_says_where_new_rows_would_go(sample):
    features, identities = sample
    model = StarFC().fit(features[:250])
    before = model.labels_.copy()
    np.testing.assert_array_equal(model.predict(features[:250]), before)
    new = model.predict(features[250:])
    np.testing.assert_array_equal(model.labels_, before)
    np.testing.assert_array_equal(model.partial_fit(features[250:]).labels_[250:], new)
    assert 0 < StarFC().fit(features[:250]).score(features[250:], identities[250:].astype(str)) <= 1


@pytest.mark.long
def test_one_threshold_leaves_the_other_to_the_model(sample, caplog):
    features = sample[0]
    assert StarFC(tau1=0.4).fit(features).tau1_ == 0.4
    assert StarFC(tau2=0.4).fit(features).tau2_ == 0  # of communities, which do not use it
    assert "tau2: infomap communities do not use it; set partition to components" in caplog.text
    components = StarFC(partition="components", tau1=0.4).fit(features)
    assert (components.tau1_, components.tau2_) == (0.4, 0.7)
    gcn, _ = _published_models(features.shape[1])
    assert (StarFC(gcn, tau2=0.1).fit(features).tau1_, StarFC(gcn, tau1=0.1).fit(features).tau2_) == (0.7, 0.72)


@pytest.mark.long
def test_every_kind_of_array_is_the_same(sample):
    features = sample[0][:100].astype(np.float32)
    labels = StarFC(adapt="off").fit_predict(features)
    whole = np.rint(1000 * features)
    for given, of in [
        (features.tolist(), labels),
        (features.astype(np.float64), labels),
        (np.asfortranarray(features), labels),
        (np.repeat(features, 2, axis=0)[::2], labels),
        (torch.from_numpy(features), labels),
        (whole.astype(np.int64), StarFC(adapt="off").fit_predict(whole)),
    ]:
        np.testing.assert_array_equal(StarFC(adapt="off").fit_predict(given), of)
    piped = make_pipeline(FunctionTransformer(), StarFC()).set_params(starfc__tau1=0.5)
    assert clone(piped).fit(features)[-1].n_features_in_ == features.shape[1]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"tau1": 3}, "tau1: must be between 0 and 1; found 3"),
        ({"tau2": "high"}, "tau2: must be a number or None; found 'high' (str)"),
        ({"k": 2.5}, "k: must be a whole number; found 2.5 (float)"),
        ({"k": 300}, "k: must be at most 254 for the packaged model and other structural models; found 300"),
        ({"knn_method": "hnsw"}, "knn_method: must be one of 'exact', 'torch', 'faiss_gpu', 'ivf'; found 'hnsw'"),
        ({"invalid_rows": "drop"}, "invalid_rows: must be one of 'error', 'singleton'; found 'drop'"),
        ({"device": "gpu"}, "device: must be auto, cpu, cuda or cuda:N; found 'gpu'"),
        ({"th_sim": 0.2}, "th_sim: must be 0 for structural models, which compare whole lists; found 0.2"),
        ({"random_state": None}, "random_state: must be a whole number; found None"),
        ({"partition": "leiden", "refinement": "dynamic"}, "partition: must be None or 'components' with refinement="),
    ],
)
def test_parameters_are_checked_in_words_of_the_estimator(sample, parameters, message):
    with pytest.raises(InputError, match=re.escape(message)):
        StarFC(**parameters).fit(sample[0][:20])


def test_a_row_of_nan_names_the_parameter_that_takes_it(sample):
    features = sample[0][:20].copy()
    features[3] = np.nan
    with pytest.raises(
        InputError, match=r"X: 1 of 20 rows have NaN .* first rows \[3\]; correct them, or set invalid_"
    ):
        StarFC().fit(features)


def _identities(count: int, size: int, dim: int = 64, noise: float = 1.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = np.repeat(rng.standard_normal((count, dim)), size, axis=0)
    return (rows + noise * rng.standard_normal(rows.shape)).astype(np.float32)


@pytest.mark.long
def test_six_large_identities_come_out_whole_and_unwarned():
    model = StarFC().fit(_identities(6, 400, 128))
    assert np.bincount(model.labels_).tolist() == [400] * 6
    assert model.doubts_ == []


@pytest.mark.long
def test_an_identity_that_came_apart_is_warned_of():
    rows = np.concatenate([_identities(1, 1000), _identities(400, 2, noise=0.7, seed=1)])
    model = StarFC().fit(rows)
    assert model.labels_[:1000].max() > 10
    assert any("many pairs are uncertain" in doubt for doubt in model.doubts_)


def test_identities_of_copies_alone_are_no_doubt():
    model = StarFC().fit(_orthogonal(30)[np.arange(90) % 30])
    assert np.bincount(model.labels_).tolist() == [3] * 30
    assert model.doubts_ == ["X: lists of at most 29 neighbours instead of 79; clusters may be less certain"]


@pytest.mark.long
def test_no_giant_is_warned_of_that_could_not_surprise(starfc, sample, tmp_path):
    np.save(tmp_path / "six.npy", _identities(6, 400, 128))
    np.save(tmp_path / "few.npy", sample[0][:12])
    for name in ("six", "few"):
        code, _, err = starfc("cluster", tmp_path / f"{name}.npy", "-o", tmp_path / name)
        assert code == 0
        assert "of all instances" not in err


@pytest.fixture
def starfc():
    """Run the command in this process; returns exit code, stdout and stderr."""

    def run(*arguments):
        done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
        return done.exit_code, done.stdout, done.stderr

    return run


@pytest.fixture
def files(sample, tmp_path):
    """``files(10)`` writes the first 10 rows and their identities; returns both paths."""

    def write(rows: int) -> tuple[Path, Path]:
        paths = tmp_path / f"x{rows}.npy", tmp_path / f"y{rows}.npy"
        for path, array in zip(paths, sample, strict=True):
            np.save(path, array[:rows])
        return paths

    return write


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:pairwise")
@pytest.mark.parametrize("rows", [1, 2, 40])
def test_every_command_takes_few_rows(starfc, files, tmp_path, rows):
    features, labels = files(rows)
    out = tmp_path / "out"
    for arguments in (
        ("knn", features, "-o", tmp_path / "graph"),
        ("cluster", features, "-o", out, "--labels", labels, "--k", 20),
        ("cluster", features, "-o", tmp_path / "on", "--knn-graph", tmp_path / "graph", "--copies", "keep"),
        ("evaluate", labels, out),
        ("report", out, "-o", tmp_path / "report"),
        ("info", out),
        *((("explain", out, 0, 1),) if rows > 1 else ()),
        ("assign", out, features),
        ("info", out),
        ("report", out, "-o", tmp_path / "report"),
    ):
        code, _, err = starfc(*arguments)
        assert (code, "Traceback" in err) == (0, False), err
    labels = np.load(out / "labels.npy")
    assert labels[:rows].tolist() == labels[rows:].tolist()  # the same rows again, copies of the first


@pytest.mark.long
def test_short_lists_are_said_in_words_of_the_command(starfc, files, tmp_path):
    features, _ = files(40)
    assert "lists of at most 39 neighbours instead of 79" in starfc("cluster", features, "-o", tmp_path / "o")[2]
    err = starfc("cluster", features, "-o", tmp_path / "o", "--k", 20)[2]
    assert "--k 20: lists of at most 19 neighbours instead of 79; clusters may be less certain" in err


@pytest.mark.long
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--k", "300"], "--k: must be at most 254 for the packaged model and other structural models; found 300"),
        (["--tau1", "3"], "--tau1: must be between 0 and 1; found 3"),
        (["--refinement", "dynamic", "--tau2", "3"], "--tau2: must be between 0 and 1; found 3"),
        (["--memory", "lots"], "--memory: must be a number with MB, GB or TB, such as '16GB'; found 'lots'"),
        (["--memory", "1MB"], "set a limit above the sum of this and the memory for the data"),
        (["--device", "gpu"], "--device: must be auto, cpu, cuda or cuda:N; found 'gpu'"),
        (["--feature-dim", "7"], "has 256-d features, but 7-d features are needed; set --feature-dim to 256"),
    ],
)
def test_messages_name_the_options_of_the_command(starfc, files, tmp_path, more, message):
    code, out, err = starfc("cluster", files(40)[0], "-o", tmp_path / "o", *more)
    assert (code, out) == (2, "")
    assert message in err
    assert "knn" not in err.replace("/", " ").split("error: ")[1]


def test_the_words_of_a_config_run_are_its_keys(command, workspace):
    code, _, err = command("test_final.py", "--config", workspace / "config.py", "--cfg-options", "memory_limit=1MB")
    assert code == 2
    assert "error: memory_limit: the process itself uses" in err
    assert "raise the limit" not in err


@pytest.mark.long
def test_what_was_added_to_a_run_is_said(starfc, sample, tmp_path):
    features, identities = sample
    out, more, labels = tmp_path / "out", tmp_path / "more.npy", tmp_path / "y.npy"
    np.save(tmp_path / "x.npy", features[:250])
    np.save(more, features[250:])
    np.save(labels, identities)
    assert starfc("cluster", tmp_path / "x.npy", "-o", out)[0] == 0
    before = json.loads(starfc("info", out, "--json")[1])
    assert "today" not in before
    assert before["holds"] == ["labels.npy", "labels.meta", "clusters.parquet", "run.json", "edges", "knn"]
    assert starfc("assign", out, more, "--remove", "3,5", "--labels", labels)[0] == 0
    told = json.loads(starfc("info", out, "--json")[1])
    now = np.load(out / "labels.npy")
    assert told["holds"][-2:] == ["assign.json", "state"]
    assert told["today"] | {"sizes": None, "metrics": None} == {
        "num_rows": 300, "num_removed": 2, "num_instances": 298, "num_clusters": len(set(now[now >= 0].tolist())),
        "num_singletons": int((np.bincount(now[now >= 0]) == 1).sum()), "sizes": None, "metrics": None,
    }  # fmt: skip
    assert sum(row["instances"] for row in told["today"]["sizes"]) == 298
    assert told["today"]["metrics"] == evaluate(identities[now >= 0], now[now >= 0])
    text = starfc("info", out)[1]
    assert "changed since       once, last on " in text
    assert f"50 added of {more}, 2 removed" in text
    assert "298 instances (300 rows, 2 removed)" in text
    assert f"first clustered with tau1 {before['thresholds']['tau1']:g}, tau2 0" in text
    assert starfc("report", out, "-o", tmp_path / "report")[0] == 0
    index = (tmp_path / "report" / "data" / "index.js").read_text()
    page = json.loads(index[index.index("{") : index.rindex("}") + 1])
    assert (page["instances"], page["stages"]) == (298, None)
    assert page["run"]["changed"].endswith(": 50 instances added, 2 removed")
    assert page["metrics"] == told["today"]["metrics"]


def test_a_published_config_runs_as_it_is(published, command, tmp_path):
    features, identities = blobs()
    for kind in ("features", "labels"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    features.astype("<f4").tofile(tmp_path / "data" / "features" / "part1_test.bin")
    (tmp_path / "data" / "labels" / "part1_test.meta").write_text("\n".join(map(str, identities)))
    save_model(StarFCModel(16, 32, init="metric", generator=torch.Generator().manual_seed(0)), tmp_path / "weights")
    arguments = ("--config", published(), "--model", tmp_path / "weights", "--out", tmp_path / "out")
    for _ in range(2):  # builds the kNN graph where the config says, then reads it
        code, _, err = command("test_final.py", *arguments)
        assert code == 0, err
        assert err.count("have no effect here") == 1
        assert (tmp_path / "data" / "mine" / "faiss_k_80.npz").is_file()
    assert json.loads((tmp_path / "out" / "run.json").read_text())["num_instances"] == 180


def test_nothing_to_assign_is_said(starfc, files, tmp_path):
    assert starfc("cluster", files(10)[0], "-o", tmp_path / "out")[0] == 0
    code, _, err = starfc("assign", tmp_path / "out")
    assert (code, "error: FEATURES: nothing to do; give new instances, rows to remove (--remove)" in err) == (2, True)
    assert "--remove: rows from 0 to 9 needed; found [10]" in starfc("assign", tmp_path / "out", "--remove", 10)[2]
    assert "error: nowhere: no such file or folder" in starfc("info", "nowhere")[2]
