"""What :class:`starfc.estimator.StarFC` tells about its clusters: explanations, wrong labels, the page, exports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from starfc.answers.expected import expected
from starfc.answers.marks import Marks
from starfc.answers.questions import Asker, Question
from starfc.clustering.parsing import Decision, ParsedEdges
from starfc.data.dataset import Features
from starfc.data.identities import identities
from starfc.data.instance_files import read_files
from starfc.errors import InputError
from starfc.review.explain import Explanation, explain_pair
from starfc.review.images import TILE
from starfc.review.label_errors import LabelIssues, label_issues
from starfc.review.pairs import Pairs
from starfc.review.report import write_report
from starfc.runs.export import Exported, write_clusters


class Results:
    """The methods of a fitted StarFC that change nothing."""

    labels_: NDArray[np.int64]
    confidence_: NDArray[np.float32]
    edge_scores_: ParsedEdges
    marks_: Marks
    _features: Features
    _columns: int
    _estimate: dict[str, float | None] | None
    _estimated: tuple[NDArray[np.int64], Marks] | None  # what _estimate belongs to, if not to the present clusters

    @property
    def estimate_(self) -> dict[str, float | None] | None:
        """The expected scores of the present clusters; see the attributes of :class:`starfc.estimator.StarFC`."""
        self._renew_estimate()
        return self._estimate

    def _renew_estimate(self) -> None:
        if self._estimated is not None and self._estimate is not None:
            evidence = self._asking().evidence
            before, now = (vars(expected(evidence, *state)) for state in (self._estimated, (self.labels_, self.marks_)))
            renewed = {
                name: min(1.0, value * now[name] / max(before[name], 1e-9))
                for name, value in self._estimate.items()
                if value is not None and name != "agreement"  # that of the clusters before
            }
            self._estimate = renewed | {"agreement": None}
        self._estimated = None

    def _asking(self) -> Asker:
        """Return what finds questions; :class:`starfc.estimator.StarFC` does."""
        raise NotImplementedError

    def questions(self, count: int = 50) -> list[Question]:
        """Return questions; :class:`starfc.estimator.StarFC` does."""
        raise NotImplementedError

    def _rule(self) -> Decision:
        raise NotImplementedError

    def explain(self, a: int, b: int) -> Explanation:
        """Explain why rows a and b of X share a cluster, or do not, by the strongest path of edges between them.

        ``print(estimator.explain(3, 8).text())`` prints the explanation. :func:`starfc.review.explain.explain_pair`
        defines the strength of a path.
        """
        check_is_fitted(self)
        pairs = Pairs.of(self.edge_scores_)
        return explain_pair(pairs, self.labels_, self._rule(), a, b, self._features, self._columns)

    def label_issues(self, y: ArrayLike) -> LabelIssues:
        """Find the labels in y (N,) that the edges contradict most (:func:`starfc.review.label_errors.label_issues`).

        y holds texts, or integers, of which -1 means that the identity is unknown. The result's ``columns()`` are a
        dict of arrays (docs/reviewing.md has an example); of texts, ``y[row]`` and ``y[other_row]`` are the labels.
        """
        check_is_fitted(self)
        return label_issues(Pairs.of(self.edge_scores_), self._identities(y), self.labels_, self._features)

    def report(
        self,
        folder: str | Path,
        *,
        images: str | Path | NDArray | None = None,
        names: str | Path | Sequence[str] | None = None,
        thumbnails: int = TILE,
        y: ArrayLike | None = None,
        questions: int = 0,
    ) -> dict[str, Any]:
        """Write a static page for the review of the clusters (:func:`starfc.review.report.write_report`).

        With labels y (N,), the page lists those that :meth:`label_issues` finds. It first asks so many ``questions``
        (:meth:`questions`).
        """
        check_is_fitted(self)
        return write_report(
            folder,
            self.labels_,
            self.edge_scores_,
            self._rule(),
            features=self._features,
            images=images,
            names=names,
            thumbnails=thumbnails,
            identities=None if y is None else self._identities(y),
            questions=[question.record() for question in self.questions(questions)] if questions else (),
            doubts=self._asking().doubts(self.labels_, self.marks_) if questions else None,
        )

    def export(
        self,
        out: str | Path,
        to: str | None = None,
        *,
        files: str | Path | None = None,
        names: Mapping[int, str] | None = None,
        copy: bool = False,
        overwrite: bool = False,
    ) -> dict[str, Any]:
        """Write row, file, cluster, name and confidence of every instance (:func:`starfc.runs.export.write_clusters`).

        Parameters
        ----------
        out, to, copy, overwrite
            As for :func:`~starfc.runs.export.write_clusters`.
        files : path, optional
            Files of the instances (:mod:`starfc.data.instance_files`).
        names : mapping of int to str, optional
            Names of clusters.
        """
        check_is_fitted(self)
        n = len(self.labels_)
        found = None if files is None else read_files(files, n)
        clusters = Exported(np.arange(n), self.labels_, self.confidence_, names or {}, found)
        return write_clusters(clusters, to, out, copy=copy, overwrite=overwrite)

    def _identities(self, y: ArrayLike) -> NDArray[np.int64]:
        labels = np.asarray(y)
        texts = labels.dtype.kind == "U" or (
            labels.dtype.kind == "O" and all(isinstance(one, str) for one in labels.flat)
        )
        if labels.shape != self.labels_.shape or not (texts or labels.dtype.kind in "iu"):
            raise InputError(
                f"y: needs an integer or a text for each of {len(self.labels_):,} instances; found {labels.dtype} "
                f"{labels.shape}"
            )
        return identities(pa.array(labels.tolist()), "y") if texts else labels.astype(np.int64)
