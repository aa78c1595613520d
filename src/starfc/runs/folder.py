"""Open the folder of a finished run: the first step of `starfc assign`, `explain` and `report`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starfc.clustering.parsing import Decision, ParsedEdges
from starfc.data.dataset import Features
from starfc.data.files import read_features
from starfc.data.fingerprint import fingerprint
from starfc.errors import InputError, MissingFileError
from starfc.graph.checks import require_ids
from starfc.runs.outputs import read_edges
from starfc.runtime.words import advice, anew
from starfc.storage.opened import OpenedFolder, opened
from starfc.storage.records import RunRecord, StateManifest
from starfc.storage.safe import read_raw

log = logging.getLogger("starfc")

STATE = "state"  # subfolder with the state that `starfc assign` continues from (:mod:`starfc.runs.assign`)


@dataclass(frozen=True)
class Run:
    """A finished run with stored edges.

    Attributes
    ----------
    folder : path
        The run's folder.
    record : dict
        The content of run.json.
    labels : (N,) int64
        Cluster of every row; -1 for rows in none.
    parsed : ParsedEdges
        The scored edges, their node intimacies, and which edges were kept.
    """

    folder: Path
    record: dict[str, Any]
    labels: NDArray[np.int64]
    parsed: ParsedEdges

    @classmethod
    def open(cls, folder: str | Path | OpenedFolder) -> Run:
        """Open a run's folder.

        Raises
        ------
        MissingFileError, InputError
            The folder holds no finished run, the run stored no edges, or the files are of different runs.
        """
        at = opened(folder)
        folder = at.folder
        if not at.has("run.json"):
            raise MissingFileError(
                f"{folder}: no finished run there (no run.json); "
                f"{advice('name the -o folder of {}', 'starfc cluster') or 'name the folder of one'}"
            )
        record = at.json("run.json", RunRecord)
        labels, parsed = at.npy("labels.npy", 1, np.int64), read_edges(at)
        n = len(labels)
        if n != parsed.edges.num_nodes:
            raise InputError(
                f"{folder}: holds {n:,} labels but edges of {parsed.edges.num_nodes:,} instances; the files are of "
                f"different runs, {anew('cluster')}"
            )
        most = most_labels(n, len(record.steps) + record.applied)
        removed = np.array([row for step in record.steps for row in step.removed], np.int64)
        numbered = np.array([step.next_label for step in record.steps], np.int64)
        for name, what, values, low, high in (
            ("labels.npy", "clusters", labels, -1, most),
            ("run.json", "steps, removed", removed, 0, n),
            ("run.json", "steps, next_label", numbered, 0, most + 1),
        ):
            try:
                require_ids(what, values, low, high)
            except ValueError as error:
                raise InputError(f"{folder / name}: {error}; it is damaged, {anew('cluster')}") from None
        return cls(folder, record.as_dict(), labels, parsed)

    @property
    def tau1(self) -> float:
        return self.record["thresholds"]["tau1"]

    @property
    def tau2(self) -> float:
        return self.record["thresholds"]["tau2"]

    @property
    def rule(self) -> Decision:
        """Return the rule that decided which edges were kept."""
        return Decision(self.tau1, self.tau2, self.record["refinement"], self.record["partition"])

    @property
    def list_length(self) -> int:
        """Return the number of neighbours in a list of the kNN graph, without the instance itself."""
        if "steps" in self.record:  # the lists of `starfc assign` are as long as the config says
            rows = len(self.labels) - len(set(self.removed))
            return max(min(self.record["config"]["knn"], rows) - 1, 0)
        return max(self.record["knn_graph"]["k"] - 1, 0)

    @property
    def most_labels(self) -> int:
        """Return a bound on the cluster ids."""
        return most_labels(len(self.labels), len(self.record.get("steps", [])) + self.record.get("applied", 0))

    @property
    def removed(self) -> list[int]:
        """Return the rows that were removed since the run was clustered. Their label is -1."""
        return [row for step in self.record.get("steps", []) for row in step["removed"]]

    def features(self) -> Features:
        """Open the features of all rows: the file that the run read, or ``state/`` if rows were added or removed."""
        if "steps" in self.record:
            return stored_features(self.folder)
        path, kept = Path(self.record["features"]), self.folder / "features.npy"
        if not path.is_file() and path.name == kept.name and kept.is_file():
            path = kept  # the folder was moved, or downloaded from where it was uploaded
        if not path.is_file():
            raise MissingFileError(f"{path}: the features of {self.folder} are no longer there; restore this file")
        dim = self.record["feature_dim"]
        features = Features(read_features(path, dim, self.record.get("key")), str(path), self.record["normalise"])
        if len(features) != len(self.labels):
            raise InputError(
                f"{path}: has {len(features):,} rows, but the run {self.folder} clustered {len(self.labels):,}; "
                f"restore the earlier file, or {anew('cluster')}"
            )
        was = self.record.get("features_fingerprint")
        if was is not None and fingerprint(features.array) != was:
            raise InputError(
                f"{path}: changed since the run {self.folder} clustered these features; restore the earlier file, or "
                f"{anew('cluster')}"
            )
        return features


def most_labels(rows: int, steps: int) -> int:
    """Return a bound on the cluster ids after some steps.

    Ids are not used again, so they can exceed the number of rows; a step creates only a few new ones per row.
    """
    return 4 * rows * (steps + 1)


def stored_features(folder: str | Path | OpenedFolder) -> Features:
    """Open the features that `starfc assign` stores in a run's folder.

    Raises
    ------
    InputError
        They are missing or incomplete.
    """
    at = opened(folder)
    manifest = at.json(f"{STATE}/manifest.json", StateManifest)
    path, shape = at.verified(f"{STATE}/features.bin"), (manifest.num_rows, manifest.feature_dim)
    array = read_raw(path, np.dtype(manifest.dtype), shape, follow=False)
    if manifest.fingerprint is not None and fingerprint(array) != manifest.fingerprint:
        raise InputError(f"{path}: is damaged or belongs to another run; cluster everything again")
    try:
        scale = at.npy(f"{STATE}/scale.npy", 1, np.float32)
        whole = len(scale) == len(array) and bool(np.isfinite(scale).all())
    except InputError as error:
        log.info("%s", error)
        whole = False
    return Features(array, str(path), manifest.normalise, scale if whole else None)  # None: Features computes the scale
