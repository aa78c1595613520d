"""Clustering metrics from one sparse contingency table, in linear time whatever the number of clusters.

c_rs counts the instances of true identity r in predicted cluster s; n_r and m_s are its row and column sums.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import numba as nb
import numpy as np
from numpy.typing import ArrayLike, NDArray

from starfc.data.files import UNLABELLED
from starfc.errors import InputError
from starfc.graph.neighbours import id_dtype
from starfc.runtime.defaults import METRICS

log = logging.getLogger("starfc")

_SPAN = 4  # labels are counted in a table while their range is at most this many times N; else they are sorted


@dataclass(frozen=True)
class Score:
    """Precision, recall and their harmonic mean, fractions between 0 and 1."""

    precision: float
    recall: float
    fscore: float


@dataclass(frozen=True)
class Contingency:
    """Non-zero cells of the table, grouped by row, with their row and column, and the sums of all rows and columns.

    All are int32 (int64 from N = 2^31 on).
    """

    cells: NDArray[np.integer]
    row_of_cell: NDArray[np.integer]
    col_of_cell: NDArray[np.integer]
    row_sums: NDArray[np.integer]
    col_sums: NDArray[np.integer]

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
    rows, row_sums = _factorise(truth)
    cols, col_sums = _factorise(predicted)
    cells_of_row, cells, col_of_cell = _count_cells(rows, row_sums, cols, len(col_sums))
    row_of_cell = np.repeat(np.arange(len(row_sums), dtype=rows.dtype), cells_of_row)
    return Contingency(cells, row_of_cell, col_of_cell, row_sums, col_sums)


def _factorise(labels: NDArray) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Labels as 0..C-1 in rising order, and how often each occurs: (N,) and (C,), int32 (int64 from N = 2^31 on)."""
    dtype = id_dtype(len(labels))
    if labels.dtype.kind in "iu":
        low, high = int(labels.min()), int(labels.max())
        if high - low < _SPAN * len(labels) and high < 2**63:
            counts = np.zeros(high - low + 1, dtype)
            codes = np.empty(len(labels), dtype)
            used = _count_labels(labels, low, counts, codes)
            return codes, counts[:used].copy()
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return codes.astype(dtype), counts.astype(dtype)


@nb.njit(cache=True)
def _count_labels(labels, low, counts, codes):
    for i in range(labels.size):
        counts[np.int64(labels[i]) - low] += 1
    used = 0
    place = np.empty_like(counts)
    for c in range(counts.size):
        if counts[c]:
            place[c] = used
            counts[used] = counts[c]
            used += 1
    for i in range(labels.size):
        codes[i] = place[np.int64(labels[i]) - low]
    return used


@nb.njit(cache=True)
def _count_cells(rows, row_sums, cols, num_cols):
    """Counting sort of the columns by row; then each row's columns are counted. Returns cells a row, cells, columns."""
    end = np.empty_like(row_sums)
    total = 0
    for r in range(row_sums.size):
        end[r] = total
        total += row_sums[r]
    grouped = np.empty_like(cols)
    for i in range(rows.size):
        r = rows[i]
        grouped[end[r]] = cols[i]
        end[r] += 1
    cells = np.empty_like(cols)
    cell_of_col = np.full(num_cols, -1, cols.dtype)  # a cell before this row's first is another row's
    used, at = 0, 0
    for r in range(row_sums.size):
        first = used
        while at < end[r]:
            c = grouped[at]
            at += 1
            if cell_of_col[c] < first:
                cell_of_col[c] = used
                grouped[used] = c  # read already: used < at
                cells[used] = 0
                used += 1
            cells[cell_of_col[c]] += 1
        end[r] = used - first  # cells of the row, from here on
    return end, cells[:used].copy(), grouped[:used].copy()


def _score(precision: float, recall: float) -> Score:
    total = precision + recall
    return Score(float(precision), float(recall), float(2 * precision * recall / total) if total else 0.0)


def pairwise(table: Contingency) -> Score:
    """Pairwise precision and recall: TP = Σ c² - N, P = TP / (Σ m² - N), R = TP / (Σ n² - N).

    With nothing but singletons predicted there are no positive pairs, and P is 0; likewise R where every identity has
    one instance. :func:`evaluate` warns of both.
    """
    return _of_pairs(_pairs(table))


def pairwise_around(table: Contingency, rest: Contingency) -> Score:
    """:func:`pairwise` of the pairs that do not lie wholly within a part of the instances, whose table is ``rest``."""
    return _of_pairs(_pairs(table) - _pairs(rest))


def fscore_error(truth: NDArray[np.integer], predicted: NDArray[np.integer], scored: NDArray[np.bool_]) -> float:
    """Standard error of pairwise F over draws of identities.

    F = 2 Σ a_i / Σ b_i is a ratio of sums over the scored identities i, with a_i its true pairs that are found and b_i
    its true and its predicted pairs; a pair of two scored identities counts half for each, one with an instance that is
    not scored counts whole. The error is sqrt(Σ (2 a_i - F b_i)^2) / Σ b_i (Taylor linearisation).

    Parameters
    ----------
    truth, predicted : (N,) integers
        Identities, and clusters.
    scored : (N,) bool
        Instances to judge by, whole identities.
    """
    clusters, sizes = _factorise(predicted)
    identities, counts = _factorise(truth[scored])
    sizes, around = sizes.astype(np.float64), clusters[scored].astype(np.int64)
    inside = np.bincount(around, minlength=len(sizes))
    pairs, cells = np.unique(identities.astype(np.int64) * len(sizes) + around, return_counts=True)
    row, col = pairs // len(sizes), pairs % len(sizes)
    found = np.bincount(row, cells * (cells - 1.0), len(counts))
    predicted_pairs = np.bincount(row, cells * (2 * sizes[col] - inside[col] - 1), len(counts))
    both = predicted_pairs + counts * (counts - 1.0)
    total = both.sum()
    if total == 0:
        return 0.0
    return float(np.linalg.norm(2 * found - 2 * found.sum() / total * both) / total)


def _pairs(table: Contingency) -> NDArray[np.float64]:
    """TP, predicted and actual pairs, each in both orders."""
    sums = (np.square(v, dtype=np.float64).sum() for v in (table.cells, table.col_sums, table.row_sums))
    return np.array([total - table.total for total in sums])


def _of_pairs(pairs: NDArray[np.float64]) -> Score:
    true_pairs, predicted_pairs, actual_pairs = pairs.tolist()
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


def labelled(truth: ArrayLike) -> NDArray[np.bool_]:
    """Which instances have a known identity: (N,) bool, False where the label is -1."""
    return np.asarray(truth) != UNLABELLED


def say_unlabelled(truth: NDArray[np.integer], where: str) -> None:
    """Log how many instances of label -1 are left out of something."""
    count = np.count_nonzero(~labelled(truth))
    if count:
        log.warning("%s: %d of %d instances have no label (-1) and are left out", where, count, len(truth))


def require_pairs(truth: NDArray[np.integer], name: str, use: str) -> None:
    """Refuse labels that nothing can be learnt or chosen from.

    Parameters
    ----------
    truth : (N,) integers
        Identities, -1 for unknown ones.
    name : str
        The file that they are of.
    use : str
        What they are for, such as 'training'.

    Raises
    ------
    InputError
        Fewer than two identities, or none with two instances.
    """
    sizes = _factorise(truth[labelled(truth)])[1] if labelled(truth).any() else np.empty(0, np.int64)
    if len(sizes) < 2 or sizes.max() < 2:
        raise InputError(
            f"{name}: {use} needs at least 2 identities, one of them with 2 instances; found {len(sizes):,}, the "
            f"largest with {sizes.max(initial=0):,} ({np.count_nonzero(~labelled(truth)):,} of {len(truth):,} "
            "instances have label -1, which is none)"
        )


def evaluate(truth: ArrayLike, predicted: ArrayLike, metrics: tuple[str, ...] = METRICS) -> dict[str, object]:
    """The named metrics, as nested dictionaries of fractions between 0 and 1 (the form `run.json` holds).

    Instances whose true label is -1 are of unknown identity: they are left out, and how many is logged.

    Parameters
    ----------
    truth, predicted : (N,) integers
        Identities, and clusters.
    metrics : tuple of str
        Of :data:`starfc.runtime.defaults.METRICS`.

    Raises
    ------
    InputError
        Arrays of different lengths, empty ones, or a truth without any label.
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    known = labelled(truth)
    if truth.shape == predicted.shape and not known.all():
        say_unlabelled(truth, "metrics")
        truth, predicted = truth[known], predicted[known]
    table = contingency(truth, predicted)
    if "pairwise" in metrics and len(table.col_sums) == table.total:
        warnings.warn("pairwise precision: no two instances share a cluster; reported as 0", stacklevel=2)
    if "pairwise" in metrics and len(table.row_sums) == table.total:
        warnings.warn("pairwise recall: no two instances share an identity; reported as 0", stacklevel=2)
    functions = {"pairwise": pairwise, "bcubed": bcubed, "nmi": nmi}
    results = {name: functions[name](table) for name in metrics}
    return {name: asdict(value) if isinstance(value, Score) else value for name, value in results.items()}


def metrics_table(metrics: dict[str, Any]) -> str:
    """Metrics in percent, as text."""
    lines = [f"{'metric':<12}{'precision':>10}{'recall':>10}{'F-score':>10}"]
    for name, value in metrics.items():
        if isinstance(value, dict):
            cells = [f"{100 * value[key]:.2f}" for key in ("precision", "recall", "fscore")]
        else:
            cells = ["", "", f"{100 * value:.2f}"]
        lines.append(f"{name:<12}" + "".join(f"{cell:>10}" for cell in cells))
    return "\n".join(lines)
