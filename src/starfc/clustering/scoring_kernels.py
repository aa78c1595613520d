"""Per-edge scores from half-precision node projections, threshold included, on the CPU (compiled) and elsewhere (torch).

With slopes a, w = W2[1] - W2[0] and c = b2[1] - b2[0], PReLU(t) = a t + (1 - a) max(t, 0) splits a logit into what
belongs to the nodes and what is left per edge:

    z_ij = [Σ_h w_h a_h u_ih] + [Σ_h w_h a_h v_jh] + Σ_h w_h (1 - a_h) max(u_ih + v_jh, 0) + c

The bracketed terms are made in float32, once per node; u and v of the last sum are half-precision. max(t, 0) moves by no
more than t does, so this changes z_ij by at most e_i + e_j with e = Σ_h |w_h (1 - a_h)| |half(u_h) - u_h|, likewise for
v: an edge whose logit is farther than that from the threshold is decided.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba as nb
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starfc.models.gcn import EdgeHead
from starfc.runtime.half import single

SUMMATION = 1e-4  # of a logit: float32 sums of 512 terms in another order stay below it
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

    def terms(self, whole: Tensor, half: Tensor) -> NDArray[np.float32]:
        """A projection and its halved copy (m, h) -> each node's own term of a logit, and its error: (m, 2)."""
        error = (whole - half.float()).abs() @ self.bend.abs()
        return torch.stack([whole @ self.linear, error], dim=1).cpu().numpy()


@dataclass(frozen=True)
class Entries:
    """kNN entries of m rows that reach a threshold: ``counts`` (m,) a row; ``cols``, ``scores``, ``doubtful`` (E,).

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
    ids: NDArray[np.integer],
    source: NDArray[np.float16],
    target: Tensor,
    source_terms: NDArray[np.float32],
    target_terms: NDArray[np.float32],
    scorer: Scorer,
    line: float,
) -> Entries:
    """Entries whose logit may exceed ``line``, row by row, in their order, with their p.

    Parameters
    ----------
    ids : (m, k) integers
        Neighbours, -1 where missing.
    source : (m, h)
        u of these rows.
    target : (N, h) float16
        v of every node.
    source_terms (m, 2), target_terms (N, 2)
        :meth:`Scorer.terms` of u and v.
    """
    counts = np.zeros(len(ids), np.int64)
    cols, scores = np.empty(ids.shape, ids.dtype), np.empty(ids.shape, np.float32)
    doubtful = np.empty(ids.shape, np.bool_)
    _score_rows(
        np.ascontiguousarray(ids), source.view(np.uint16), target.numpy().view(np.uint16), source_terms, target_terms,
        scorer.bend.numpy(), np.float32(scorer.constant), np.float32(line), counts, cols, scores, doubtful,
    )  # fmt: skip
    kept = np.arange(ids.shape[1]) < counts[:, None]
    return Entries(counts, cols[kept], scores[kept], doubtful[kept])


def score_rows_torch(
    ids: NDArray[np.integer],
    source: NDArray[np.float16],
    target: Tensor,
    source_terms: NDArray[np.float32],
    target_terms: NDArray[np.float32],
    scorer: Scorer,
    line: float,
) -> Entries:
    """:func:`score_rows` on any device."""
    local, column = np.nonzero(ids >= 0)
    cols, device = ids[local, column], target.device
    ours = torch.from_numpy(source).to(device)
    z = np.empty(len(cols), np.float32)
    for start in range(0, len(cols), _EDGES):
        part = slice(start, start + _EDGES)
        i, j = (torch.from_numpy(x[part].astype(np.int64)).to(device) for x in (local, cols))
        z[part] = ((ours[i].float() + target[j].float()).relu_() @ scorer.bend).cpu().numpy()
    z += source_terms[local, 0] + target_terms[cols, 0] + np.float32(scorer.constant)
    error = source_terms[local, 1] + target_terms[cols, 1] + np.float32(SUMMATION)
    kept = z > np.float32(line) - error
    counts = np.bincount(local[kept], minlength=len(ids)).astype(np.int64)
    doubtful = z[kept] <= np.float32(line) + error[kept]
    return Entries(counts, cols[kept], (1 / (1 + np.exp(-z[kept]))).astype(np.float32), doubtful)


@nb.njit(cache=True, fastmath={"reassoc", "contract", "nsz", "arcp"})
def _bent(u, v, bend):
    zero = np.float32(0.0)
    z = zero
    for h in range(bend.size):
        z += bend[h] * max(u[h] + single(v[h]), zero)
    return z


@nb.njit(cache=True, nogil=True)
def _score_rows(ids, source, target, source_terms, target_terms, bend, constant, line, counts, cols, scores, doubtful):
    one, u = np.float32(1.0), np.empty(bend.size, np.float32)
    for i in range(ids.shape[0]):
        for h in range(u.size):
            u[h] = single(source[i, h])
        kept = 0
        for c in range(ids.shape[1]):
            j = ids[i, c]
            if j < 0:
                continue
            z = _bent(u, target[j], bend) + (source_terms[i, 0] + target_terms[j, 0]) + constant
            error = source_terms[i, 1] + target_terms[j, 1] + np.float32(SUMMATION)
            if z > line - error:
                cols[i, kept] = j
                scores[i, kept] = one / (one + np.exp(-z))
                doubtful[i, kept] = z <= line + error
                kept += 1
        counts[i] = kept


@nb.njit(cache=True, nogil=True)
def place_rows(indptr, rows, cols, scores, all_cols, all_scores):
    """Copy the entries of some rows, row by row, to where ``indptr`` says."""
    at = 0
    for i in rows:
        for e in range(indptr[i], indptr[i + 1]):
            all_cols[e] = cols[at]
            all_scores[e] = scores[at]
            at += 1
