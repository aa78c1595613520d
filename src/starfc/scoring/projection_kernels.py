"""Per-edge scores from node projections, threshold included: compiled for the CPU, and in torch for other devices.

With slopes a, w = W2[1] - W2[0] and c = b2[1] - b2[0], PReLU(t) = a t + (1 - a) max(t, 0) splits a logit into what
belongs to the nodes and what is left per edge:

    z_ij = [Σ_h w_h a_h u_ih] + [Σ_h w_h a_h v_jh] + Σ_h w_h (1 - a_h) max(u_ih + v_jh, 0) + c

The bracketed terms are made in float32, once per node; v of the last sum is half-precision. max(t, 0) moves by no more
than t does, so this changes z_ij by at most e_j = Σ_h |w_h (1 - a_h)| |half(v_jh) - v_jh|: an edge whose logit is
farther than that from the threshold is decided.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba as nb
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starfc.graph.affinity_kernels import MISSING
from starfc.models.gcn import EdgeHead
from starfc.runtime.half import single
from starfc.runtime.simd import prefetch_row

SUMMATION = 1e-4  # of a logit: float32 sums of 512 terms in another order stay below it
_AHEAD = 4  # rows of v asked for ahead of their use
_EDGES = 1 << 14  # torch: 2^14 edges x 512 float32 = 32 MiB at a time


@dataclass(frozen=True)
class Scorer:
    """w a (h,), w (1 - a) (h,) and c of an edge head."""

    linear: Tensor
    bend: Tensor
    constant: float

    @classmethod
    def of(cls, head: EdgeHead) -> Scorer:
        """The parameters of a head, on its device."""
        slope, weight, constant = (p.detach() for p in head.scorer())
        return cls(weight * slope, weight * (1 - slope), float(constant))


@dataclass(frozen=True)
class Candidates:
    """Entries of m rows that are to be scored: those of row i are ``ids[indptr[i] : indptr[i + 1]]``."""

    indptr: NDArray[np.int64]
    ids: NDArray[np.integer]


@dataclass(frozen=True)
class Entries:
    """Entries of m rows that reach a threshold: ``counts`` (m,) a row; ``cols``, ``scores``, ``doubtful`` (E,).

    ``doubtful`` entries are those that half precision leaves undecided.
    """

    counts: NDArray[np.int64]
    cols: NDArray[np.integer]
    scores: NDArray[np.float32]
    doubtful: NDArray[np.bool_]

    @property
    def local(self) -> NDArray[np.int64]:
        """Which of the m rows each entry is of, (E,)."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def select(self, mask: NDArray[np.bool_]) -> Entries:
        """The entries where ``mask`` (E,) holds."""
        counts = np.bincount(self.local[mask], minlength=len(self.counts))
        return Entries(counts, self.cols[mask], self.scores[mask], self.doubtful[mask])


def score_rows(
    candidates: Candidates,
    source: NDArray[np.float32],
    target: Tensor,
    first: int,
    source_term: NDArray[np.float32],
    target_term: NDArray[np.float32],
    error: NDArray[np.float32],
    scorer: Scorer,
    line: float,
) -> Entries:
    """Entries whose logit may exceed ``line``, row by row, in their order, with their p.

    Parameters
    ----------
    candidates : Candidates
        Of m rows; those below ``first`` or not below first + n are passed over.
    source : (m, h) float32
        u of these rows.
    target : (n, h) float16
        v of the nodes from ``first`` on.
    source_term (m,), target_term (N,), error (N,)
        The bracketed terms, and e.
    """
    indptr, ids = candidates.indptr, candidates.ids
    counts = np.zeros(len(indptr) - 1, np.int64)
    cols, scores, doubtful = (np.empty(len(ids), dtype) for dtype in (ids.dtype, np.float32, np.bool_))
    kept = _score_rows(
        indptr, ids, source, target.numpy().view(np.uint16), first, source_term, target_term, error,
        scorer.bend.numpy(), np.float32(scorer.constant), np.float32(line), counts, cols, scores, doubtful,
    )  # fmt: skip
    return Entries(counts, cols[:kept].copy(), scores[:kept].copy(), doubtful[:kept].copy())


def score_rows_torch(
    candidates: Candidates,
    source: NDArray[np.float32],
    target: Tensor,
    first: int,
    source_term: NDArray[np.float32],
    target_term: NDArray[np.float32],
    error: NDArray[np.float32],
    scorer: Scorer,
    line: float,
) -> Entries:
    """:func:`score_rows` on any device."""
    ids, m = candidates.ids, len(candidates.indptr) - 1
    held = (ids >= first) & (ids < first + len(target))
    local, cols = np.repeat(np.arange(m), np.diff(candidates.indptr))[held], ids[held]
    device = target.device
    ours = torch.from_numpy(source).to(device)
    z = np.empty(len(cols), np.float32)
    for start in range(0, len(cols), _EDGES):
        part = slice(start, start + _EDGES)
        i, j = (torch.from_numpy(x[part].astype(np.int64)).to(device) for x in (local, cols - first))
        z[part] = ((ours[i] + target[j].float()).relu_() @ scorer.bend).cpu().numpy()
    z += source_term[local] + target_term[cols] + np.float32(scorer.constant)
    margin = error[cols] + np.float32(SUMMATION)
    kept = z > np.float32(line) - margin
    counts = np.bincount(local[kept], minlength=m).astype(np.int64)
    doubtful = z[kept] <= np.float32(line) + margin[kept]
    return Entries(counts, cols[kept], (1 / (1 + np.exp(-z[kept]))).astype(np.float32), doubtful)


@nb.njit(cache=True, fastmath={"reassoc", "contract", "nsz", "arcp"})
def _bent(u, v, bend):
    zero = np.float32(0.0)
    z = zero
    for h in range(bend.size):
        z += bend[h] * max(u[h] + single(v[h]), zero)
    return z


@nb.njit(cache=True, nogil=True)
def _score_rows(
    indptr, ids, source, target, first, source_term, target_term, error, bend, constant, line, counts, cols, scores,
    doubtful,
):  # fmt: skip
    one, kept, last = np.float32(1.0), 0, ids.size - 1
    for i in range(counts.size):
        before = kept
        for e in range(indptr[i], indptr[i + 1]):
            j, ahead = ids[e], ids[min(e + _AHEAD, last)]
            if first <= ahead < first + target.shape[0]:
                prefetch_row(target, ahead - first, target.shape[1])
            if not first <= j < first + target.shape[0]:
                continue
            z = _bent(source[i], target[j - first], bend) + (source_term[i] + target_term[j]) + constant
            margin = error[j] + np.float32(SUMMATION)
            if z > line - margin:
                cols[kept] = j
                scores[kept] = one / (one + np.exp(-z))
                doubtful[kept] = z <= line + margin
                kept += 1
        counts[i] = kept - before
    return kept


@nb.njit(cache=True, nogil=True)
def own_entries(rows, ids, width, place):
    """Places of the neighbours that some rows list, among the first ``width``: row pointers and places."""
    indptr, found = np.empty(rows.size + 1, np.int64), np.empty(rows.size * width, place.dtype)
    at = 0
    for r in range(rows.size):
        indptr[r] = at
        for c in range(width):
            if ids[rows[r], c] >= 0:
                found[at] = place[ids[rows[r], c]]
                at += 1
    indptr[rows.size] = at
    return indptr, found[:at]


@nb.njit(cache=True, nogil=True)
def stored_entries(rows, ids, kinds, sources_indptr, sources, place):
    """Places of some rows' neighbours in the affinity graph, the rows themselves left out: row pointers and places.

    ``sources_indptr`` (N + 1,) are pointers over ``sources`` a node, all scales together.
    """
    indptr, width = np.empty(rows.size + 1, np.int64), kinds.shape[1]
    most = rows.size * width
    for i in rows:
        most += sources_indptr[i + 1] - sources_indptr[i]
    found, at = np.empty(most, place.dtype), 0
    for r in range(rows.size):
        indptr[r], i = at, rows[r]
        for c in range(width):
            if kinds[i, c] != MISSING:
                found[at] = place[ids[i, c]]
                at += 1
        for e in range(sources_indptr[i], sources_indptr[i + 1]):
            found[at] = place[sources[e]]
            at += 1
    indptr[rows.size] = at
    return indptr, found[:at]
