"""The scikit-learn estimator: ``StarFC().fit_predict(X)``."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils import Tags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from starfc.clustering.arrays import cluster_features
from starfc.clustering.parsing import Decision
from starfc.clustering.pipeline import REFINEMENTS
from starfc.config.config import Config
from starfc.config.recipes import model_config
from starfc.config.thresholds import resolve
from starfc.data.dataset import Features
from starfc.errors import InputError
from starfc.evaluation.metrics import contingency, pairwise
from starfc.incremental.state import State, make_rule
from starfc.models.checkpoint import PRETRAINED, Model, load_model
from starfc.review.explain import Explanation, explain_pair
from starfc.review.pairs import Pairs
from starfc.review.report import write_report
from starfc.runs.cluster import settings_of
from starfc.runtime.machine import choose_device


class StarFC(ClusterMixin, BaseEstimator):
    """Cluster embeddings with a trained model.

    Parameters
    ----------
    model : path, StarFCModel, HierarchicalModel, StructuralModel or None
        Folder of the weights, or the loaded model. None: the structural model that comes with the package, which takes
        embeddings of any kind and dimension, because it sees only how they are neighbours.
    refinement : {'fixed', 'dynamic'}
        Node intimacy against τ2, or its undirected form against a threshold that rises with the degrees up to about
        τ2 (STAR-FC, TPAMI 2023). Either takes either type of model.
    k : int or None
        Neighbours per instance, itself counted. None: those of the model's training, or 80; the largest scale of a
        hierarchical model, which takes no other; at most 254 with the packaged model and other structural ones. Lists
        are shorter where there are fewer instances; a structural model is less certain with shorter ones than it was
        trained on, and a warning says so.
    tau1, tau2 : float or None
        Edges with p > τ1, and of those with node intimacy > τ2, stay. None, of either alone too: what is stored beside
        the weights, which was chosen for components, or what the config of their training says, or the published value
        (fixed: 0.7, 0.72; dynamic: 0.85, 0.78); with the packaged model τ1 of communities is chosen from the data.
    partition : {'components', 'infomap', 'leiden'}, optional
        How clusters come of the parsed edges (:func:`starfc.clustering.pipeline.cluster`); with the fixed refinement.
    knn_method : {'exact', 'faiss_gpu', 'ivf'}
        Exact search, the same on a GPU, or approximate search with recall 0.99.
    th_sim : float
        kNN entries below this similarity do not enter the affinity graph.
    invalid_rows : {'error', 'singleton'}
        Rows of NaN, infinity or zeros: refuse them, or make each its own cluster.
    copies : {'collapse', 'keep'}
        Rows of the same direction, with a structural model: cluster one of each, whose cluster its copies go to, or
        search for all of them, which then fill one another's lists of neighbours.
    adapt : {'auto', 'off'}
        With the packaged model and 'infomap': train its scorer further on the clusters of X, as long as that raises the
        F-score to be expected, or not at all.
    reach : {'auto', 'off'}
        With the packaged model and communities: join clusters that are one in samples of a third of the rows, where
        lists reach three times as far (:mod:`starfc.clustering.reach`), or do not.
    device : str
        'auto', 'cpu', 'cuda' or 'cuda:N'.
    random_state : int
        Of 'infomap' and 'leiden'.

    Attributes
    ----------
    labels_ : (N,) int64
        Cluster of every instance, 0..C-1, largest cluster first.
    confidence_ : (N,) float32
        Mean edge probability at every instance, 0 for a singleton.
    model_ : StarFCModel, HierarchicalModel or StructuralModel
    tau1_, tau2_ : float
        Thresholds that were used.
    partition_ : str
        Partition that was used: with the packaged weights 'infomap' unless another was asked for.
    choice_ : Choice or None
        τ1 and why, with the packaged model and the fixed refinement.
    estimate_ : dict or None
        Pairwise ``precision``, ``recall`` and ``fscore`` and the ``bcubed`` F-score that are to be expected, fractions,
        estimated without labels (:mod:`starfc.clustering.choice`).
    doubts_ : list of str
        What is doubtful about the clustering; each was also logged as a warning.
    edge_scores_ : ParsedEdges
        The edges with p > τ1, their intimacies, and which of them stayed.
    assigned_ : Assigned
        After :meth:`partial_fit`, what its last call did: clusters joined and created, merges and splits asked for.
    n_features_in_ : int
    """

    def __init__(
        self,
        model: str | Path | Model | None = None,
        *,
        refinement: str = "fixed",
        k: int | None = None,
        tau1: float | None = None,
        tau2: float | None = None,
        partition: str | None = None,
        knn_method: str = "exact",
        th_sim: float = 0.0,
        invalid_rows: str = "error",
        copies: str = "collapse",
        adapt: str = "auto",
        reach: str = "auto",
        device: str = "auto",
        random_state: int = 0,
    ) -> None:
        self.model = model
        self.refinement = refinement
        self.k = k
        self.tau1 = tau1
        self.tau2 = tau2
        self.partition = partition
        self.knn_method = knn_method
        self.th_sim = th_sim
        self.invalid_rows = invalid_rows
        self.copies = copies
        self.adapt = adapt
        self.reach = reach
        self.device = device
        self.random_state = random_state

    @classmethod
    def from_pretrained(cls, folder: str | Path, **parameters: Any) -> StarFC:
        """An estimator on the weights and thresholds of ``folder``; a missing or broken folder is an error at once."""
        load_model(folder)
        return cls(folder, **parameters)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.invalid_rows == "singleton"
        return tags

    def fit(self, X: ArrayLike, y: object = None) -> StarFC:
        """Cluster X: (N, d) embeddings of any float type, normalised here; ``y`` is ignored.

        Raises
        ------
        InputError
            Rows that are not finite or of zero norm, features of another dimension than the model's, or parameters
            that break a rule, all of them at once.
        """
        if self.refinement not in REFINEMENTS:
            raise InputError(
                f"refinement: one of {', '.join(map(repr, REFINEMENTS))} needed; found {self.refinement!r}"
            )
        rows: NDArray[np.floating] = validate_data(
            self,
            X,
            dtype=[np.float32, np.float64, np.float16],
            ensure_all_finite=False,
        )
        features = Features(rows, "X")
        self.model_ = self._open_model(features.dim)
        config = self._config(features.dim)
        decided = resolve((self.tau1, self.tau2), config, self.model_, self.refinement)
        done = cluster_features(
            features,
            self.model_,
            settings_of(config, decided, self.refinement),
            keep_edges=True,
            device=choose_device(self.device),
        )
        result, prepared = done.result, done.prepared
        self.partition_, self.tau1_, self.tau2_, self.doubts_ = config.partition.type, done.tau1, done.tau2, done.doubts
        assert result.parsed is not None  # edges are kept
        self.labels_, self.confidence_, self.edge_scores_ = result.labels, result.confidence, result.parsed
        self.choice_ = result.choice
        if result.choice is not None:
            self.choice_ = replace(result.choice, reason=decided.reason or result.choice.reason)
        self.estimate_ = None if result.estimate is None else vars(result.estimate)
        self._features, self._columns = features, max(prepared.graph.k - 1, 0)
        self._clustered: dict[str, Any] | None = {
            "features": features,
            "graph": prepared.graph,
            "rows": prepared.rows,
            "k": config.knn,
            "representative": prepared.representative,
            "collapse": self.model_.kind.structural and self.copies == "collapse",
        }
        self._state: State | None = None
        return self

    @available_if(lambda self: self.refinement == "fixed")
    def partial_fit(self, X: ArrayLike, y: object = None, *, apply_merges: bool = False) -> StarFC:
        """Add instances to the clustering, whose ids stay what they are; the first call is :meth:`fit`.

        Only with fixed refinement. ``labels_``, ``confidence_`` and ``edge_scores_`` grow by the new rows; labels are
        no longer in the order of the clusters' sizes. What the edges would merge or split is in ``assigned_``
        (docs/adding.md).

        Parameters
        ----------
        X : (m, d) array
        y : ignored
        apply_merges : bool
            Do these merges and splits.

        Raises
        ------
        InputError
            Rows that are not finite or of zero norm, or a hierarchical model.
        """
        if not hasattr(self, "labels_"):
            return self.fit(X)
        rows: NDArray[np.floating] = validate_data(
            self,
            X,
            reset=False,
            dtype=[np.float32, np.float64, np.float16],
            ensure_all_finite=False,
        )
        invalid = Features(rows, "X").valid(self.invalid_rows)[1] + len(self.labels_)
        state = self._state
        if state is None:
            assert self._clustered is not None  # until the first step
            given = (self.model_, self.tau1_, self.tau2_, self.th_sim, self.refinement, self.partition_)
            rule = make_rule(*given, seed=self.random_state)
            state = State.of(rule, parsed=self.edge_scores_, labels=self.labels_, **self._clustered)
        every = Features(np.concatenate([state.features.array, rows]), "X")
        self.assigned_ = state.step(every, invalid=invalid, apply_merges=apply_merges)
        self.labels_, self.confidence_ = state.labels, state.confidence
        self.edge_scores_, self._features, self._state = state.clustered, every, state
        self._clustered = None
        self._columns = state.lists.ids.shape[1] - 1
        return self

    def fit_predict(self, X: ArrayLike, y: object = None) -> NDArray[np.int64]:
        """Cluster X and return ``labels_``."""
        return self.fit(X).labels_

    @available_if(lambda self: self.refinement == "fixed")
    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """Clusters (m,) that new instances X (m, d) would be put into by :meth:`partial_fit`, without adding them.

        Those that join no cluster have ids above the largest of ``labels_``, the same where they belong together. Only
        with fixed refinement; works on a copy of the graph.
        """
        check_is_fitted(self)
        return deepcopy(self).partial_fit(X).labels_[len(self.labels_) :]

    @available_if(lambda self: self.refinement == "fixed")
    def score(self, X: ArrayLike, y: ArrayLike) -> float:
        """Pairwise F-score of the clusters that :meth:`predict` gives X (m, d), against the identities y (m,)."""
        _, identities = np.unique(y, return_inverse=True)
        return pairwise(contingency(identities, self.predict(X))).fscore

    def explain(self, a: int, b: int) -> Explanation:
        """Why rows a and b of X are in one cluster, or are not: the strongest path of edges between them.

        ``print(estimator.explain(3, 8).text())`` shows it; :func:`starfc.review.explain.explain_pair` says what a
        path's strength is.
        """
        check_is_fitted(self)
        pairs = Pairs.of(self.edge_scores_)
        return explain_pair(pairs, self.labels_, self._rule(), a, b, self._features, self._columns)

    def report(
        self,
        folder: str | Path,
        *,
        images: str | Path | NDArray | None = None,
        names: str | Path | Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """Write a static page to review the clusters with (:func:`starfc.review.report.write_report`)."""
        check_is_fitted(self)
        return write_report(
            folder, self.labels_, self.edge_scores_, self._rule(), features=self._features, images=images, names=names
        )

    def _rule(self) -> Decision:
        return Decision(self.tau1_, self.tau2_, self.refinement, self.partition_)

    def _config(self, feature_dim: int) -> Config:
        """The model's config, as the command line makes it, with the parameters before what it says."""
        if self.refinement == "dynamic" and self.partition not in (None, "components"):
            raise InputError(
                f"partition: None or 'components' needed with refinement='dynamic'; found {self.partition!r}"
            )
        partition = "components" if self.refinement == "dynamic" else self.partition
        pair = _given(tau1=self.tau1, tau2=self.tau2)
        given = {
            "model": {"kwargs": {"feature_dim": feature_dim}},
            **_given(knn=self.k, partition=None if partition is None else {"type": partition}),
            "knn_method": self.knn_method,
            "th_sim": self.th_sim,
            "invalid_rows": self.invalid_rows,
            "copies": self.copies,
            "adapt": self.adapt,
            "reach": self.reach,
            "device": self.device,
            "seed": self.random_state,
            **({"dynamic": pair} if self.refinement == "dynamic" else pair),
        }
        plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in given.items()}
        return model_config(self.model_, plain)

    def _open_model(self, feature_dim: int) -> Model:
        if isinstance(self.model, Model):
            return self.model
        if not isinstance(self.model, str | Path | None):
            raise InputError(f"model: a folder, a loaded model or None needed; found {self.model!r}")
        return load_model(PRETRAINED if self.model is None else self.model, feature_dim)


def _given(**parameters: Any) -> dict[str, Any]:
    """Those that are not None, which is left to the model; numbers of numpy as Python's."""
    given = {name: value for name, value in parameters.items() if value is not None}
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in given.items()}
