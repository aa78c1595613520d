"""The scikit-learn estimator: ``StarFC().fit_predict(X)``."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils import Tags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from starfc.answers.constraints import Changes, Clusters, apart, enforce, kept_edges
from starfc.answers.evidence import evidence_of
from starfc.answers.marks import Marks, require_consistent, require_marks
from starfc.answers.questions import Asker, Question
from starfc.clustering.arrays import cluster_features
from starfc.clustering.components import largest_first
from starfc.clustering.parsing import Decision
from starfc.clustering.pipeline import REFINEMENTS
from starfc.config.config import Config
from starfc.config.recipes import model_config
from starfc.config.thresholds import resolve
from starfc.data.dataset import Features
from starfc.errors import InputError
from starfc.evaluation.metrics import contingency, pairwise
from starfc.graph.edges import edge_confidence
from starfc.incremental.state import State, make_rule
from starfc.models.checkpoint import PRETRAINED, Model, load_model
from starfc.results import Results
from starfc.runs.cluster import settings_of
from starfc.runs.marked import hold
from starfc.runtime.defaults import RECALL
from starfc.runtime.device import device_limit
from starfc.runtime.machine import choose_device
from starfc.runtime.stages import Stages


class StarFC(Results, ClusterMixin, BaseEstimator):
    """Cluster embeddings with a trained model.

    Parameters
    ----------
    model : path, StarFCModel, HierarchicalModel, StructuralModel or None
        Folder of the weights, or a loaded model. None: the structural model of the package. It accepts embeddings of
        any kind and dimension, because it uses only the neighbour relations between them.
    refinement : {'fixed', 'dynamic'}
        'fixed' compares node intimacy with τ2. 'dynamic' uses undirected edges and a threshold that rises with the
        degrees up to about τ2 (STAR-FC, TPAMI 2023). Both work with every type of model.
    k : int or None
        Neighbours per instance, the instance itself included. None: the k of the model's training, or 80. A
        hierarchical model works only with its largest scale. The packaged model and other structural models accept at
        most 254. If there are fewer instances, the lists are shorter; a structural model is then less certain, and a
        warning says so.
    tau1, tau2 : float or None
        Keep edges with p > τ1 and node intimacy > τ2. Each may be None. Then the packaged model chooses τ1 of
        communities from the data. Otherwise the first of these is used: the value stored with the weights, which was
        chosen for components; the value in the config of their training; the published value (fixed: 0.7, 0.72;
        dynamic: 0.85, 0.78).
    partition : {'components', 'infomap', 'leiden'}, optional
        Method that turns the parsed edges into clusters (:func:`starfc.clustering.pipeline.cluster`). Only with
        refinement='fixed'. Default: the partition of the model, or 'components' with refinement='dynamic'.
    knn_method : {'exact', 'torch', 'faiss_gpu', 'ivf'}
        Exact search (on a GPU in torch), the same in torch on any device, exact search on GPUs with faiss, or
        approximate search. Below 150,000 rows the approximate search is exact.
    knn_recall : float
        Share of the edges that matter (p > 0.5) that the approximate search must find.
    th_sim : float
        kNN entries with a similarity below this do not enter the affinity graph.
    invalid_rows : {'error', 'singleton'}
        Rows with NaN, infinity or only zeros: raise an error, or give each its own cluster.
    copies : {'collapse', 'keep'}
        Rows with the same direction, for a structural model. 'collapse' clusters one of them and gives its label to the
        others. 'keep' clusters all of them; copies then fill each other's neighbour lists.
    adapt : {'auto', 'off'}
        With the packaged model and 'infomap': whether to train the scorer further on the clusters of X. 'auto' stops
        when the expected F-score no longer rises.
    reach : {'auto', 'off'}
        With the packaged model and communities: whether to join and divide clusters as samples of the rows do. In a
        sample, neighbour lists reach farther (:mod:`starfc.clustering.reach`).
    device : str
        'auto', 'cpu', 'cuda' or 'cuda:N'.
    memory_limit : str or None
        Memory that this process may hold during :meth:`fit`, such as '16GB'. A step that is predicted to need more
        raises InputError instead of starting. None: no limit.
    device_memory : str or None
        Memory that :meth:`fit` may take on the device, such as '8GB'; blocks are sized by it. None: what is free there.
    random_state : int
        Seed of all random numbers, such as those of 'infomap' and 'leiden'.

    Attributes
    ----------
    labels_ : (N,) int64
        Cluster of every instance, 0..C-1; 0 is the largest cluster.
    confidence_ : (N,) float32
        Mean p of the edges of every instance; 0 for a singleton.
    model_ : StarFCModel, HierarchicalModel or StructuralModel
        The loaded model.
    tau1_, tau2_ : float
        The thresholds that were used.
    partition_ : str
        The partition that was used. With the packaged weights this is 'infomap' unless another was given.
    choice_ : Choice or None
        τ1 and the reason for it, with the packaged model and refinement='fixed'.
    estimate_ : dict or None
        Expected pairwise ``precision``, ``recall`` and ``fscore`` and expected ``bcubed`` F-score, as fractions. They
        are estimated without labels (:mod:`starfc.clustering.choice`). After :meth:`apply` it is that of the new
        clusters: each score changes in proportion to the one that :mod:`starfc.answers.expected` gives.
    doubts_ : list of str
        Reasons to doubt the clustering, as in ``doubts`` of a run's run.json; those of :meth:`partial_fit` follow. Each
        was also logged as a warning.
    edge_scores_ : ParsedEdges
        The edges with p > τ1, their node intimacies, and which of them were kept.
    marks_ : Marks
        The marks of :meth:`fit` and :meth:`apply`.
    assigned_ : Assigned
        Result of the last call of :meth:`partial_fit`: clusters joined and created, merges and splits proposed.
    n_features_in_ : int
        Dimension d of the embeddings.
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
        knn_recall: float = RECALL,
        th_sim: float = 0.0,
        invalid_rows: str = "error",
        copies: str = "collapse",
        adapt: str = "auto",
        reach: str = "auto",
        device: str = "auto",
        memory_limit: str | None = None,
        device_memory: str | None = None,
        random_state: int = 0,
    ) -> None:
        self.model = model
        self.refinement = refinement
        self.k = k
        self.tau1 = tau1
        self.tau2 = tau2
        self.partition = partition
        self.knn_method = knn_method
        self.knn_recall = knn_recall
        self.th_sim = th_sim
        self.invalid_rows = invalid_rows
        self.copies = copies
        self.adapt = adapt
        self.reach = reach
        self.device = device
        self.memory_limit = memory_limit
        self.device_memory = device_memory
        self.random_state = random_state

    @classmethod
    def from_pretrained(cls, folder: str | Path, **parameters: Any) -> StarFC:
        """Create an estimator with the weights and thresholds of ``folder``. Raise at once if the folder is damaged."""
        load_model(folder)
        return cls(folder, **parameters)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.invalid_rows == "singleton"
        return tags

    def fit(
        self,
        X: ArrayLike,
        y: object = None,
        *,
        must_link: ArrayLike | None = None,
        cannot_link: ArrayLike | None = None,
    ) -> StarFC:
        """Cluster embeddings.

        Parameters
        ----------
        X : (N, d) array
            Embeddings of any float type. They are normalised here.
        y : ignored
        must_link, cannot_link : (m, 2) integers, optional
            Pairs of rows of one identity, and of two identities. They hold in the result, and after
            :meth:`partial_fit` and :meth:`apply` (:mod:`starfc.answers.constraints`).

        Raises
        ------
        InputError
            A row is not finite or has zero norm, the dimension is not that of the model, or a parameter breaks a rule.
            The message lists all parameters that do.
        """
        if self.refinement not in REFINEMENTS:
            raise InputError(
                f"refinement: must be one of {', '.join(map(repr, REFINEMENTS))}; found {self.refinement!r}"
            )
        rows = self._rows(X, reset=True)
        marks = Marks.of(len(rows), must_link, cannot_link)
        require_consistent(marks, len(rows))
        features = Features(rows, "X")
        self.model_ = self._open_model(features.dim)
        config = self._config(features.dim)
        decided = resolve((self.tau1, self.tau2), config, self.model_, self.refinement)
        settings = settings_of(config, decided, self.refinement)
        with device_limit(config.device_memory_bytes()):
            done = cluster_features(
                features,
                self.model_,
                settings,
                keep_edges=True,
                device=choose_device(self.device),
                stages=Stages(config.memory_limit_bytes()),
            )
        result, prepared = done.result, done.prepared
        self.partition_, self.tau1_, self.tau2_, self.doubts_ = config.partition.type, done.tau1, done.tau2, done.doubts
        assert result.parsed is not None  # edges are kept
        self.labels_, self.confidence_, self.edge_scores_ = result.labels, result.confidence, result.parsed
        self.choice_ = result.choice
        if result.choice is not None:
            self.choice_ = replace(result.choice, reason=decided.reason or result.choice.reason)
        self._estimate, self._estimated = None if result.estimate is None else vars(result.estimate), None
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
        self._asker: Asker | None = None
        self.marks_ = Marks()
        if len(marks):
            self.apply(marks)
            present = np.unique(self.labels_, return_index=True, return_inverse=True)
            self.labels_ = largest_first(present[1][present[2]])
            self._clustered["next_label"] = 0
        return self

    def apply(self, marks: Marks) -> Changes:
        """Add marks, and make the clusters again around them; cluster ids stay as with :meth:`partial_fit`.

        Parameters
        ----------
        marks : Marks
            Pairs of rows, or answers to :meth:`questions`, such as ``Marks.of(N, must_link=[[3, 8]])`` or
            ``Marks(answers=(question.answer(True),))``.

        Returns
        -------
        Changes
            The rows whose cluster changed, and which clusters were joined and divided. No rows: the marks held already,
            or those that do not hold are in ``doubtful``.

        Raises
        ------
        InputError
            The marks break a rule of :meth:`Marks.of`, or contradict each other or the earlier ones. Nothing is
            changed then.
        """
        check_is_fitted(self)
        every = self.marks_.added(require_marks(marks, len(self.labels_)))
        require_consistent(every, len(self.labels_))
        before = self.labels_.copy()
        self._estimated, self.marks_ = self._estimated or (before, self.marks_), every
        if self._state is not None:
            changes = hold(self._state, every, before)
            self._take(self._state)
            return changes
        assert self._clustered is not None  # until the first step
        lowest = max(self._clustered.get("next_label", 0), int(before.max(initial=-1)) + 1)
        clusters = Clusters(before.copy(), lowest, self.edge_scores_.edges)
        changes = enforce(clusters, every)
        flips = kept_edges(self.edge_scores_, changes.rows, before, clusters.labels)
        kept = self.edge_scores_.kept.copy()
        kept[flips] = ~kept[flips]
        self.edge_scores_ = replace(self.edge_scores_, kept=kept)
        self.labels_, self._clustered["next_label"] = clusters.labels, clusters.next_label
        self.confidence_ = edge_confidence(self.edge_scores_.edges, kept)
        return changes

    @available_if(lambda self: self.refinement == "fixed")
    def questions(self, count: int = 50) -> list[Question]:
        """Return the questions whose answers are expected to change the most pairs, highest first.

        The first call after :meth:`fit` or :meth:`partial_fit` scores the candidate edges again. ``question.shown`` are
        the rows to look at; :meth:`apply` takes the answers.
        """
        check_is_fitted(self)
        return self._asking().questions(self.labels_, self.marks_, count)

    def _asking(self) -> Asker:
        """Return what finds questions. The first call after the rows changed scores the candidate edges again."""
        if self._asker is None:
            self._asker = Asker(evidence_of(self._present()))
        return self._asker

    @available_if(lambda self: self.refinement == "fixed")
    def partial_fit(self, X: ArrayLike, y: object = None, *, apply_merges: bool = False) -> StarFC:
        """Add instances to the clustering. The first call does the same as :meth:`fit`.

        Cluster ids do not change. ``labels_``, ``confidence_`` and ``edge_scores_`` get the new rows at their end, and
        labels are no longer ordered by cluster size. ``assigned_`` lists merges and splits of clusters that the edges
        propose (docs/adding.md). Only available with refinement='fixed'.

        Parameters
        ----------
        X : (m, d) array
            New embeddings.
        y : ignored
        apply_merges : bool
            Make the proposed merges and splits.

        Raises
        ------
        InputError
            A row is not finite or has zero norm, or the model is hierarchical.
        """
        if not hasattr(self, "labels_"):
            return self.fit(X)
        rows = self._rows(X, reset=False)
        invalid = Features(rows, "X").valid(self.invalid_rows)[1] + len(self.labels_)
        self._renew_estimate()  # while the rows are those that it belongs to
        state, before = self._present(), self.labels_
        every = Features(np.concatenate([state.features.array, rows]), "X")
        self.assigned_ = state.step(
            every, invalid=invalid, apply_merges=apply_merges, apart=partial(apart, marks=self.marks_)
        )
        if len(self.marks_):
            hold(state, self.marks_, before)
            self.assigned_.labels = state.labels[self.assigned_.first_row :]
        self._features, self._state, self._clustered, self._asker = every, state, None, None
        self._take(state)
        self.doubts_ = [*self.doubts_, *self.assigned_.doubts]
        self._columns = state.lists.ids.shape[1] - 1
        return self

    def _present(self) -> State:
        """Return the state of the clustering."""
        if self._state is not None:
            return self._state
        assert self._clustered is not None  # until the first step
        given = (self.model_, self.tau1_, self.tau2_, self.th_sim, self.refinement, self.partition_)
        rule = make_rule(*given, seed=self.random_state)
        return State.of(rule, parsed=self.edge_scores_, labels=self.labels_, **self._clustered)

    def _take(self, state: State) -> None:
        """Take over the clusters of a state."""
        self.labels_, self.confidence_, self.edge_scores_ = state.labels, state.confidence, state.clustered

    def fit_predict(self, X: ArrayLike, y: object = None) -> NDArray[np.int64]:
        """Cluster X and return ``labels_``."""
        return self.fit(X).labels_

    @available_if(lambda self: self.refinement == "fixed")
    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """Return the clusters (m,) int64 that :meth:`partial_fit` would give new instances X (m, d). Do not add them.

        Instances that join no existing cluster form new clusters with ids above the largest of ``labels_``. Only
        available with refinement='fixed'. The method works on a copy of the graph.
        """
        check_is_fitted(self)
        return deepcopy(self).partial_fit(X).labels_[len(self.labels_) :]

    @available_if(lambda self: self.refinement == "fixed")
    def score(self, X: ArrayLike, y: ArrayLike) -> float:
        """Return the pairwise F-score of the clusters that :meth:`predict` gives X (m, d), for identities y (m,)."""
        _, identities = np.unique(y, return_inverse=True)
        return pairwise(contingency(identities, self.predict(X))).fscore

    def _rows(self, X: ArrayLike, reset: bool) -> NDArray[np.floating]:
        """Return X as an array (N, d) of floats. ``reset`` takes d from it; otherwise d must be that of the fit."""
        try:
            return validate_data(
                self, X, reset=reset, dtype=[np.float32, np.float64, np.float16], ensure_all_finite=False
            )
        except ValueError:
            if np.ndim(X) >= 2:
                raise
        raise InputError(  # scikit-learn's message would print the numbers
            f"X: expected a 2D array (instances, dimension); found the shape {np.shape(X)}. Reshape your data: "
            "X.reshape(1, -1) is one instance"
        )

    def _rule(self) -> Decision:
        return Decision(self.tau1_, self.tau2_, self.refinement, self.partition_)

    def _config(self, feature_dim: int) -> Config:
        """Return the model's config, as on the command line. Parameters of the estimator override its values."""
        if self.refinement == "dynamic" and self.partition not in (None, "components"):
            raise InputError(
                f"partition: must be None or 'components' with refinement='dynamic'; found {self.partition!r}"
            )
        partition = "components" if self.refinement == "dynamic" else self.partition
        pair = _given(tau1=self.tau1, tau2=self.tau2)
        given = {
            "model": {"kwargs": {"feature_dim": feature_dim}},
            **_given(knn=self.k, partition=None if partition is None else {"type": partition}),
            "knn_method": self.knn_method,
            "knn_recall": self.knn_recall,
            "th_sim": self.th_sim,
            "invalid_rows": self.invalid_rows,
            "copies": self.copies,
            "adapt": self.adapt,
            "reach": self.reach,
            "device": self.device,
            "memory_limit": self.memory_limit,
            "device_memory": self.device_memory,
            "seed": self.random_state,
            **({"dynamic": pair} if self.refinement == "dynamic" else pair),
        }
        plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in given.items()}
        return model_config(self.model_, plain)

    def _open_model(self, feature_dim: int) -> Model:
        if isinstance(self.model, Model):
            return self.model
        if not isinstance(self.model, str | Path | None):
            raise InputError(f"model: must be a folder, a loaded model or None; found {self.model!r}")
        return load_model(PRETRAINED if self.model is None else self.model, feature_dim)


def _given(**parameters: Any) -> dict[str, Any]:
    """Return the parameters that are not None, with NumPy numbers as Python numbers. The model decides the others."""
    given = {name: value for name, value in parameters.items() if value is not None}
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in given.items()}
