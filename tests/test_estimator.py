"""Test the scikit-learn estimator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from helpers.samples import blobs, unit
from starfc import InputError, StarFC
from starfc.clustering.pipeline import cluster_dynamic
from starfc.config.thresholds import save_thresholds
from starfc.evaluation.metrics import evaluate
from starfc.graph.knn import build_knn
from starfc.models.checkpoint import load_model, save_model
from starfc.models.gcn import StarFCModel
from starfc.models.hierarchical import HierarchicalModel

NOT_APPLICABLE = {
    "check_clustering": "its blobs differ in length, not in direction; embeddings are compared by direction",
}


@pytest.mark.long
@parametrize_with_checks(
    [StarFC(k=4, invalid_rows="singleton"), StarFC(k=4, refinement="dynamic", invalid_rows="singleton")],
    expected_failed_checks=lambda _: NOT_APPLICABLE,
)
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


def test_from_pretrained_uses_weights_and_thresholds(tmp_path):
    save_model(StarFCModel(16, 32, init="metric", generator=torch.Generator().manual_seed(0)), tmp_path)
    save_thresholds(tmp_path, {"fixed": {"tau1": 0.3, "tau2": 0.4}, "dynamic": {"tau1": 0.35, "tau2": 0.95}}, "nothing")
    features, labels = blobs()
    estimator = StarFC.from_pretrained(str(tmp_path), k=10)
    predicted = estimator.fit_predict(features)
    assert (estimator.tau1_, estimator.tau2_) == (0.3, 0.4)
    np.testing.assert_array_equal(predicted, estimator.labels_)
    np.testing.assert_array_equal(clone(estimator).fit(features.astype(np.float64)).labels_, predicted)
    assert evaluate(labels, predicted)["nmi"] > 0.5
    assert estimator.set_params(tau1=0.9, tau2=0.9).fit(features).labels_.max() >= predicted.max()

    dynamic = StarFC.from_pretrained(tmp_path, k=10, refinement="dynamic").fit(features)
    assert (dynamic.tau1_, dynamic.tau2_) == (0.35, 0.95)
    model, graph = load_model(tmp_path), build_knn(unit(features), 10)
    twin = cluster_dynamic(unit(features), graph, model, tau1=0.35, tau2=0.95)
    np.testing.assert_array_equal(dynamic.labels_, twin.labels)
    assert not np.array_equal(dynamic.labels_, predicted)


def test_exact_search_under_its_earlier_name():
    features = blobs()[0]
    np.testing.assert_array_equal(StarFC(knn_method="faiss").fit(features).labels_, StarFC().fit(features).labels_)
    with pytest.raises(
        InputError, match="knn_method: must be one of 'exact', 'torch', 'faiss_gpu', 'ivf'; found 'annoy'"
    ):
        StarFC(knn_method="annoy").fit(features)


@pytest.mark.parametrize("refinement", ["fixed", "dynamic"])
def test_a_hierarchical_model_asks_for_its_largest_scale(tmp_path, refinement, caplog):
    features, labels = blobs()
    model = HierarchicalModel(16, 32, init="metric", scales=(6, 8, 10), generator=torch.Generator().manual_seed(0))
    pair = {"tau1": 0.3, "tau2": 0.4}
    estimator = StarFC(model.eval(), refinement=refinement, **pair).fit(features)
    assert estimator.model_ is model
    np.testing.assert_array_equal(
        estimator.labels_, StarFC(model, refinement=refinement, k=10, **pair).fit_predict(features)
    )
    assert evaluate(labels, estimator.labels_)["nmi"] > 0.5
    save_model(model, tmp_path)  # a folder does not say the scales: the published ones, of which 120 is the largest
    few = StarFC(tmp_path, refinement=refinement, **pair).fit(features[:100])
    assert "X: lists of at most 99 neighbours instead of 119" in caplog.text
    assert evaluate(labels[:100], few.labels_)["nmi"] > 0.3


def test_published_thresholds_of_a_model_that_is_no_folder():
    features, _ = blobs()
    model = StarFCModel(16, 32, init="metric", generator=torch.Generator().manual_seed(0))
    fixed, dynamic = (StarFC(model, refinement=r, k=10).fit(features) for r in ("fixed", "dynamic"))
    assert (fixed.tau1_, fixed.tau2_, dynamic.tau1_, dynamic.tau2_) == (0.7, 0.72, 0.85, 0.78)


def test_what_cannot_be_clustered(tmp_path):
    features, _ = blobs()
    with pytest.raises(InputError, match="no such checkpoint"):
        StarFC.from_pretrained(tmp_path)
    save_model(StarFCModel(8, 32), tmp_path)
    with pytest.raises(InputError, match="feature_dim = 16"):
        StarFC(tmp_path, k=10).fit(features)
    published = StarFCModel(16, 32)
    with pytest.raises(InputError, match="k: must be at least 2; found 1"):
        StarFC(published, k=1).fit(features)
    with pytest.raises(InputError, match="copies: must be one of 'collapse', 'keep'; found 'drop'"):
        StarFC(k=10, copies="drop").fit(features)
    with pytest.raises(InputError, match="refinement: must be one of 'fixed', 'dynamic'; found 'static'"):
        StarFC(k=10, refinement="static").fit(features)
    with pytest.raises(InputError, match=r"memory_limit: must be .*; found 'much'"):
        StarFC(k=10, memory_limit="much").fit(features)
    with pytest.raises(InputError, match=r"memory_limit: the process itself uses .* above the limit of 1 MB"):
        StarFC(k=10, memory_limit="1MB").fit(features)


def test_rows_of_another_shape_are_refused_without_their_numbers():
    rows = np.random.default_rng(0).normal(size=(40, 512))
    for call in (StarFC().fit, StarFC().partial_fit, StarFC().fit_predict):
        for wrong, shape in ((rows[0], r"\(512,\)"), (3.0, r"\(\)"), (rows[:0], r"\(0, 512\)"), (rows[None], "dim 3")):
            with pytest.raises(ValueError, match=shape) as error:
                call(wrong)
            assert len(str(error.value)) < 200
            assert "\n" not in str(error.value)
