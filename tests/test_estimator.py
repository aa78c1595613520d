"""The scikit-learn estimator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import blobs
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from starfc import InputError, StarFC
from starfc.evaluation.metrics import evaluate
from starfc.models.checkpoint import save_model, save_thresholds
from starfc.models.gcn import StarFCModel

NOT_APPLICABLE = {
    "check_clustering": "its blobs differ in length, not in direction; embeddings are compared by direction",
}


@parametrize_with_checks(
    [StarFC(k=4, invalid_rows="singleton")],
    expected_failed_checks=lambda _: NOT_APPLICABLE,
)
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


def test_from_pretrained_uses_weights_and_thresholds(tmp_path):
    save_model(StarFCModel(16, 32, init="metric", generator=torch.Generator().manual_seed(0)), tmp_path)
    save_thresholds(tmp_path, 0.3, 0.4, {})
    features, labels = blobs()
    estimator = StarFC.from_pretrained(str(tmp_path), k=10)
    predicted = estimator.fit_predict(features)
    assert (estimator.tau1_, estimator.tau2_) == (0.3, 0.4)
    np.testing.assert_array_equal(predicted, estimator.labels_)
    np.testing.assert_array_equal(clone(estimator).fit(features.astype(np.float64)).labels_, predicted)
    assert evaluate(labels, predicted)["nmi"] > 0.5
    assert estimator.set_params(tau1=0.9, tau2=0.9).fit(features).labels_.max() >= predicted.max()


def test_what_cannot_be_clustered(tmp_path):
    features, _ = blobs()
    with pytest.raises(InputError, match="no such checkpoint"):
        StarFC.from_pretrained(tmp_path)
    save_model(StarFCModel(8, 32), tmp_path)
    with pytest.raises(InputError, match="feature_dim = 16"):
        StarFC(tmp_path, k=10).fit(features)
    with pytest.raises(InputError, match="knn"):
        StarFC(k=180).fit(features)
    with pytest.raises(InputError, match="both"):
        StarFC(k=10, tau1=0.5).fit(features)
