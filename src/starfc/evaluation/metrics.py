"""Clustering metrics from one sparse contingency table, in time N log N whatever the number of clusters.

c_rs counts the instances of true identity r in predicted cluster s; n_r and m_s are its row and column sums.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from starfc.errors import InputError


@dataclass(frozen=True)
class Score:
    """Precision, recall and their harmonic mean, fractions between 0 and 1."""

    precision: float
    recall: float
    fscore: float


@dataclass(frozen=True)
class Contingency:
    """Non-zero cells of the table with the sums of their row and column, and the sums themselves (int64)."""

    cells: NDArray[np.int64]
    row_of_cell: NDArray[np.int64]
    col_of_cell: NDArray[np.int64]
    row_sums: NDArray[np.int64]
    col_sums: NDArray[np.int64]

    @property
    def total(self) -> int:
        return int(self.row_sums.sum())


def contingency(truth: ArrayLike, predicted: ArrayLike) -> Contingency:
    """Sparse contingency table of two labelings of the same N >= 1 instances (any integers)."""
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.ndim != 1 or truth.shape != predicted.shape or truth.size == 0:
        raise InputError(
            f"labels: two one-dimensional arrays of the same length, at least 1; found {truth.shape} and "
            f"{predicted.shape}; check that both belong to the same split"
        )
    _, rows, row_sums = np.unique(truth, return_inverse=True, return_counts=True)
    _, cols, col_sums = np.unique(predicted, return_inverse=True, return_counts=True)
    keys, cells = np.unique(rows.astype(np.int64) * len(col_sums) + cols, return_counts=True)
    return Contingency(cells, keys // len(col_sums), keys % len(col_sums), row_sums, col_sums)


def _score(precision: float, recall: float) -> Score:
    total = precision + recall
    return Score(float(precision), float(recall), float(2 * precision * recall / total) if total else 0.0)


def pairwise(table: Contingency) -> Score:
    """Pairwise precision and recall: TP = Σ c² - N, P = TP / (Σ m² - N), R = TP / (Σ n² - N).

    With nothing but singletons predicted there are no positive pairs, and P is 0; likewise R where every identity has
    one instance. :func:`evaluate` warns of both.
    """
    true_pairs, predicted_pairs, actual_pairs = (
        float(np.square(v, dtype=np.float64).sum()) - table.total for v in (table.cells, table.col_sums, table.row_sums)
    )
    return _score(
        true_pairs / predicted_pairs if predicted_pairs else 0.0, true_pairs / actual_pairs if actual_pairs else 0.0
    )


def bcubed(table: Contingency) -> Score:
    """BCubed: P = 1/N Σ c²/m, R = 1/N Σ c²/n."""
    squares = np.square(table.cells, dtype=np.float64)
    precision = (squares / table.col_sums[table.col_of_cell]).sum() / table.total
    recall = (squares / table.row_sums[table.row_of_cell]).sum() / table.total
    return _score(precision, recall)


def nmi(table: Contingency) -> float:
    """Normalised mutual information, arithmetic mean of the entropies (scikit-learn's default); 1 if both are 0."""
    n = table.total
    entropy_rows, entropy_cols = (-(v / n * np.log(v / n)).sum() for v in (table.row_sums, table.col_sums))
    if entropy_rows + entropy_cols == 0:
        return 1.0
    expected = table.row_sums[table.row_of_cell] * (table.col_sums[table.col_of_cell] / n)
    information = (table.cells / n * np.log(table.cells / expected)).sum()
    return float(np.clip(2 * information / (entropy_rows + entropy_cols), 0.0, 1.0))


METRICS = ("pairwise", "bcubed", "nmi")


def evaluate(truth: ArrayLike, predicted: ArrayLike, metrics: tuple[str, ...] = METRICS) -> dict[str, object]:
    """The named metrics, as nested dictionaries of fractions between 0 and 1 (the form `run.json` holds)."""
    table = contingency(truth, predicted)
    if "pairwise" in metrics and len(table.col_sums) == table.total:
        warnings.warn("pairwise precision: no two instances share a cluster; reported as 0", stacklevel=2)
    if "pairwise" in metrics and len(table.row_sums) == table.total:
        warnings.warn("pairwise recall: no two instances share an identity; reported as 0", stacklevel=2)
    functions = {"pairwise": pairwise, "bcubed": bcubed, "nmi": nmi}
    results = {name: functions[name](table) for name in metrics}
    return {name: asdict(value) if isinstance(value, Score) else value for name, value in results.items()}
