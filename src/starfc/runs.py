"""The folder of a finished run, opened again: what adding, explaining and reviewing start from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starfc.clustering.outputs import read_edges
from starfc.clustering.pipeline import ParsedEdges
from starfc.data.dataset import Features
from starfc.data.formats import read_features, read_labels
from starfc.errors import InputError, MissingFileError
from starfc.review.pairs import Rule

STATE = "state"  # what instances are added to (:mod:`starfc.incremental.folder`)


@dataclass(frozen=True)
class Run:
    """A run that kept its edges.

    ``labels`` (N,) int64 are the clusters, ``parsed`` the scored edges with their intimacies and which of them stayed,
    ``record`` is run.json.
    """

    folder: Path
    record: dict[str, Any]
    labels: NDArray[np.int64]
    parsed: ParsedEdges

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """Open a run's folder.

        Raises
        ------
        MissingFileError, InputError
            No finished run there, one without edges, or files that do not belong together.
        """
        folder = Path(folder)
        path = folder / "run.json"
        if not path.is_file():
            raise MissingFileError(
                f"{folder}: no finished run there (no run.json); name the -o folder of starfc cluster"
            )
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path}: not a run's record ({error})") from None
        labels, parsed = read_labels(folder / "labels.npy"), read_edges(folder)
        if len(labels) != parsed.edges.num_nodes:
            raise InputError(
                f"{folder}: {len(labels):,} labels and edges of {parsed.edges.num_nodes:,} instances; the files are of "
                "different runs, run starfc cluster again"
            )
        return cls(folder, record, labels, parsed)

    @property
    def tau1(self) -> float:
        return self.record["thresholds"]["tau1"]

    @property
    def tau2(self) -> float:
        return self.record["thresholds"]["tau2"]

    @property
    def rule(self) -> Rule:
        """What decided about the edges."""
        return Rule(self.tau1, self.tau2, self.record["refinement"], self.record["partition"])

    @property
    def removed(self) -> list[int]:
        """Rows that were taken out since, label -1."""
        return [row for step in self.record.get("steps", []) for row in step["removed"]]

    def features(self) -> Features:
        """The features of all rows: from where the run found them, or as kept since rows were added."""
        if "steps" in self.record:
            return stored_features(self.folder)
        path = Path(self.record["features"])
        if not path.is_file():
            raise MissingFileError(f"{path}: the features of {self.folder} are no longer there; put them back")
        dim = self.record["feature_dim"]
        features = Features(read_features(path, dim), str(path), self.record["normalise"])
        if len(features) != len(self.labels):
            raise InputError(f"{path}: {len(features):,} rows where the run clustered {len(self.labels):,}")
        return features


def stored_features(folder: Path) -> Features:
    """The features that a run's folder keeps once rows were added to it.

    Raises
    ------
    InputError
        They are not there, or not whole.
    """
    place = folder / STATE
    try:
        manifest = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
        shape, dtype = (manifest["num_rows"], manifest["feature_dim"]), np.dtype(manifest["dtype"])
        array = np.memmap(place / "features.bin", dtype, "r", shape=shape)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{place}: the features that the run keeps there are not whole ({error}); cluster everything again"
        ) from None
    try:
        scale = np.load(place / "scale.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        scale = np.empty(0, np.float32)
    whole = scale.shape == (len(array),)  # it is computed otherwise
    return Features(array, str(place / "features.bin"), manifest["normalise"], scale if whole else None)
