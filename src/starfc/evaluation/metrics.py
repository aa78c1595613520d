"""Clustering metrics, computed from one sparse contingency table in linear time for any number of clusters.

c_rs is the number of instances of the true identity r in the predicted cluster s; n_r and m_s are its row and column
sums.
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

_SPAN = 4  # labels are counted in a table if their range is at most this many times N; otherwise they are sorted


@dataclass(frozen=True)
class Score:
    """Precision, recall and their harmonic mean, fractions between 0 and 1."""

    precision: float
    recall: float
    fscore: float


@dataclass(frozen=True)
class Contingency:
    """A sparse contingency table. All arrays are int32 (int64 from N = 2^31 on).

    Attributes
    ----------
    cells : (m,)
        The non-zero cells c_rs, grouped by row.
    row_of_cell, col_of_cell : (m,)
        Row r and column s of each cell.
    row_sums, col_sums : (R,), (S,)
        The sums n_r and m_s.
    """

    cells: NDArray[np.integer]
    row_of_cell: NDArray[np.integer]
    col_of_cell: NDArray[np.integer]
    row_sums: NDArray[np.integer]
    col_sums: NDArray[np.integer]

    @property
    def total(self) -> int:
        """Number of instances N."""
        return int(self.row_sums.sum())


def contingency(truth: ArrayLike, predicted: ArrayLike) -> Contingency:
    """Return the contingency table of two labelings (N,) of the same N >= 1 instances; labels are any integers.

    Raises
    ------
    InputError
        If the arrays are empty, not one-dimensional, or of different lengths.
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.ndim != 1 or truth.shape != predicted.shape or truth.size == 0:
        raise InputError(
            f"labels: two one-dimensional arrays of the same length >= 1 needed; found {truth.shape} and "
            f"{predicted.shape}; check that both belong to the same split"
        )
    rows, row_sums = _factorise(truth)
    cols, col_sums = _factorise(predicted)
    cells_of_row, cells, col_of_cell = _count_cells(rows, row_sums, cols, len(col_sums))
    row_of_cell = np.repeat(np.arange(len(row_sums), dtype=rows.dtype), cells_of_row)
    return Contingency(cells, row_of_cell, col_of_cell, row_sums, col_sums)


def _factorise(labels: NDArray) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Return labels as 0..C-1 in increasing order (N,), and their counts (C,); int32 (int64 from N = 2^31 on)."""
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
    """Write each label as 0..C-1 to ``codes``, and the counts to the start of ``counts`` (zeros); return C."""
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
    """Sort the columns by row (counting sort), then count equal columns of each row.

    Return the number of cells of each row, the cells, and their columns.
    """
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
    cell_of_col = np.full(num_cols, -1, cols.dtype)  # last cell of each column; may be one of an earlier row
    used, at = 0, 0
    for r in range(row_sums.size):
        first = used
        while at < end[r]:
            c = grouped[at]
            at += 1
            if cell_of_col[c] < first:
                cell_of_col[c] = used
                grouped[used] = c  # safe: used < at, so this entry has been read
                cells[used] = 0
                used += 1
            cells[cell_of_col[c]] += 1
        end[r] = used - first  # from here on: the number of cells of the row
    return end, cells[:used].copy(), grouped[:used].copy()


def _score(precision: float, recall: float) -> Score:
    total = precision + recall
    return Score(float(precision), float(recall), float(2 * precision * recall / total) if total else 0.0)


def pairwise(table: Contingency) -> Score:
    """Return pairwise precision and recall: TP = Σ c² - N, P = TP / (Σ m² - N), R = TP / (Σ n² - N).

    If all clusters are singletons, there are no predicted pairs, and P is 0. If each identity has one instance, there
    are no true pairs, and R is 0. :func:`evaluate` warns of both.
    """
    return _of_pairs(_pairs(table))


def pairwise_around(table: Contingency, rest: Contingency) -> Score:
    """Return the :func:`pairwise` score without the pairs inside a part of the instances, whose table is ``rest``."""
    return _of_pairs(_pairs(table) - _pairs(rest))


def fscore_error(truth: NDArray[np.integer], predicted: NDArray[np.integer], scored: NDArray[np.bool_]) -> float:
    """Return the standard error of the pairwise F-score, for identities drawn at random.

    F = 2 Σ a_i / Σ b_i is a ratio of sums over the scored identities i. a_i is the number of true pairs that are
    found; b_i is the number of true pairs plus the number of predicted pairs. A predicted pair of two scored identities
    counts half for each; a pair with an instance that is not scored counts fully. The error is
    sqrt(Σ (2 a_i - F b_i)^2) / Σ b_i (Taylor linearisation).

    Parameters
    ----------
    truth, predicted : (N,) integers
        Identities and clusters.
    scored : (N,) bool
        The instances that are scored; they must be whole identities.
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
    """Return the numbers of true positive, predicted and actual pairs (3,); each pair counts twice."""
    sums = (np.square(v, dtype=np.float64).sum() for v in (table.cells, table.col_sums, table.row_sums))
    return np.array([total - table.total for total in sums])


def _of_pairs(pairs: NDArray[np.float64]) -> Score:
    true_pairs, predicted_pairs, actual_pairs = pairs.tolist()
    return _score(
        true_pairs / predicted_pairs if predicted_pairs else 0.0, true_pairs / actual_pairs if actual_pairs else 0.0
    )


def bcubed(table: Contingency) -> Score:
    """Return BCubed precision and recall: P = 1/N Σ c²/m, R = 1/N Σ c²/n."""
    squares = np.square(table.cells, dtype=np.float64)
    precision = (squares / table.col_sums[table.col_of_cell]).sum() / table.total
    recall = (squares / table.row_sums[table.row_of_cell]).sum() / table.total
    return _score(precision, recall)


def nmi(table: Contingency) -> float:
    """Return the normalised mutual information, with the arithmetic mean of the entropies (scikit-learn's default).

    It is 1 if both entropies are 0.
    """
    n = table.total
    entropy_rows, entropy_cols = (-(v / n * np.log(v / n)).sum() for v in (table.row_sums, table.col_sums))
    if entropy_rows + entropy_cols == 0:
        return 1.0
    expected = table.row_sums[table.row_of_cell] * (table.col_sums[table.col_of_cell] / n)
    information = (table.cells / n * np.log(table.cells / expected)).sum()
    return float(np.clip(2 * information / (entropy_rows + entropy_cols), 0.0, 1.0))


def labelled(truth: ArrayLike) -> NDArray[np.bool_]:
    """Return which instances have a known identity, (N,) bool: False for label -1."""
    return np.asarray(truth) != UNLABELLED


def say_unlabelled(truth: NDArray[np.integer], where: str) -> None:
    """Log a warning with the number of instances of label -1, which are left out; ``where`` names the use."""
    count = np.count_nonzero(~labelled(truth))
    if count:
        log.warning("%s: %d of %d instances have no label (-1) and are left out", where, count, len(truth))


def require_pairs(truth: NDArray[np.integer], name: str, use: str) -> None:
    """Raise unless labels have at least two identities, one of them with at least two instances.

    Parameters
    ----------
    truth : (N,) integers
        Identities; -1 for unknown ones.
    name : str
        The file of the labels, for the message.
    use : str
        The use of the labels, such as 'training', for the message.

    Raises
    ------
    InputError
        If there are fewer than two identities, or none has two instances.
    """
    sizes = _factorise(truth[labelled(truth)])[1] if labelled(truth).any() else np.empty(0, np.int64)
    if len(sizes) < 2 or sizes.max() < 2:
        raise InputError(
            f"{name}: {use} needs at least 2 identities, one of them with 2 instances; found {len(sizes):,}, the "
            f"largest with {sizes.max(initial=0):,} ({np.count_nonzero(~labelled(truth)):,} of {len(truth):,} "
            "instances have label -1, which means no label)"
        )


def evaluate(truth: ArrayLike, predicted: ArrayLike, metrics: tuple[str, ...] = METRICS) -> dict[str, object]:
    """Return the named metrics as nested dictionaries of fractions between 0 and 1, as stored in `run.json`.

    Instances with the true label -1 have an unknown identity. They are left out, and their number is logged.

    Parameters
    ----------
    truth, predicted : (N,) integers
        Identities and clusters.
    metrics : tuple of str
        Names from :data:`starfc.runtime.defaults.METRICS`.

    Raises
    ------
    InputError
        If the arrays are empty or of different lengths, or all true labels are -1.
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
    """Format metrics in percent as a text table."""
    lines = [f"{'metric':<12}{'precision':>10}{'recall':>10}{'F-score':>10}"]
    for name, value in metrics.items():
        if isinstance(value, dict):
            cells = [f"{100 * value[key]:.2f}" for key in ("precision", "recall", "fscore")]
        else:
            cells = ["", "", f"{100 * value:.2f}"]
        lines.append(f"{name:<12}" + "".join(f"{cell:>10}" for cell in cells))
    return "\n".join(lines)
