"""Score edges from node projections and apply the threshold: compiled kernels for the CPU, torch for other devices.

Let a be the slopes of the PReLU, w = W2[1] - W2[0] and c = b2[1] - b2[0]. Because PReLU(t) = a t + (1 - a) max(t, 0),
a logit splits into terms of single nodes (in brackets) and one sum per edge:

    z_ij = [Σ_h w_h a_h u_ih] + [Σ_h w_h a_h v_jh] + Σ_h w_h (1 - a_h) max(u_ih + v_jh, 0) + c

The terms in brackets are computed once per node in float32. In the last sum, v is rounded to half precision. Rounding
changes max(t, 0) by at most as much as t. Therefore z_ij changes by at most
e_j = Σ_h |w_h (1 - a_h)| |half(v_jh) - v_jh|. If a logit is farther than e_j from the threshold, half precision is
enough to decide about the edge.
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

SUMMATION = 1e-4  # bound on the change of a logit if the 512 terms of a float32 sum are added in another order
_AHEAD = 4  # rows of v are prefetched this many edges ahead
_EDGES = 1 << 14  # edges that torch scores at a time: 2^14 edges x 512 float32 = 32 MiB


@dataclass(frozen=True)
class Scorer:
    """The parameters of an edge head: ``linear`` w a (h,), ``bend`` w (1 - a) (h,) and ``constant`` c."""

    linear: Tensor
    bend: Tensor
    constant: float

    @classmethod
    def of(cls, head: EdgeHead) -> Scorer:
        """Return the parameters of an edge head, on the head's device."""
        slope, weight, constant = (p.detach() for p in head.scorer())
        return cls(weight * slope, weight * (1 - slope), float(constant))


@dataclass(frozen=True)
class Candidates:
    """The candidate edges of m rows. The other ends of row i's edges are ``ids[indptr[i] : indptr[i + 1]]``."""

    indptr: NDArray[np.int64]
    ids: NDArray[np.integer]


@dataclass(frozen=True)
class Entries:
    """The E edges of m rows whose logit may exceed the threshold.

    Attributes
    ----------
    counts : (m,) int64
        Number of edges of each row.
    cols : (E,) integers
        The other end of each edge.
    scores : (E,) float32
        p of each edge.
    doubtful : (E,) bool
        True where half precision cannot decide whether the logit exceeds the threshold.
    """

    counts: NDArray[np.int64]
    cols: NDArray[np.integer]
    scores: NDArray[np.float32]
    doubtful: NDArray[np.bool_]

    @property
    def local(self) -> NDArray[np.int64]:
        """The row of each edge, (E,) int64 in [0, m)."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def select(self, mask: NDArray[np.bool_]) -> Entries:
        """Return the edges where ``mask`` (E,) is True."""
        counts = np.bincount(self.local[mask], minlength=len(self.counts))
        return Entries(counts, self.cols[mask], self.scores[mask], self.doubtful[mask])


def score_rows(
    candidates: Candidates,
    source: NDArray[np.float32],
    target: Tensor,
    first: int,
    source_term: NDArray[np.float32],
    target_term: Tensor,
    error: Tensor,
    scorer: Scorer,
    line: float,
) -> Entries:
    """Score candidate edges and return those whose logit may exceed ``line``, in the order of the candidates.

    Parameters
    ----------
    candidates : Candidates
        The candidate edges of m rows, by place. Edges to places outside [first, first + n) are ignored.
    source : (m, h) float32
        u of the m rows.
    target : (n, h) float16
        v of the places [first, first + n).
    first : int
        The first place of ``target``.
    source_term, target_term : (m,) array, (N,) tensor, float32
        The terms of single nodes.
    error : (N,) float32
        The bounds e.
    scorer : Scorer
        The parameters of the edge head.
    line : float
        The threshold of the logit.
    """
    indptr, ids = candidates.indptr, candidates.ids
    counts = np.zeros(len(indptr) - 1, np.int64)
    cols, scores, doubtful = (np.empty(len(ids), dtype) for dtype in (ids.dtype, np.float32, np.bool_))
    kept = _score_rows(
        indptr, ids, source, target.numpy().view(np.uint16), first, source_term, target_term.numpy(), error.numpy(),
        scorer.bend.numpy(), np.float32(scorer.constant), np.float32(line), counts, cols, scores, doubtful,
    )  # fmt: skip
    return Entries(counts, cols[:kept].copy(), scores[:kept].copy(), doubtful[:kept].copy())


def score_rows_torch(
    candidates: Candidates,
    source: NDArray[np.float32],
    target: Tensor,
    first: int,
    source_term: NDArray[np.float32],
    target_term: Tensor,
    error: Tensor,
    scorer: Scorer,
    line: float,
) -> Entries:
    """Do the same as :func:`score_rows` on any device, in torch. Only the edges that are returned leave the device."""
    device, m = target.device, len(candidates.indptr) - 1
    ids, counts = (torch.from_numpy(x).to(device) for x in (candidates.ids, np.diff(candidates.indptr)))
    held = ((ids >= first) & (ids < first + len(target))).nonzero()[:, 0]
    local, cols = torch.repeat_interleave(counts)[held], ids[held].long()
    ours, terms = (torch.from_numpy(x).to(device) for x in (source, source_term))
    z = torch.cat(
        [
            (ours[i] + target[j - first].float()).relu_() @ scorer.bend
            for i, j in zip(local.split(_EDGES), cols.split(_EDGES), strict=True)
        ]
    )
    z += terms[local] + target_term[cols] + scorer.constant
    threshold, margin = float(np.float32(line)), error[cols] + SUMMATION
    kept = z > threshold - margin
    number = torch.bincount(local[kept], minlength=m)
    doubtful = z[kept] <= threshold + margin[kept]
    found = (number, ids[held][kept], torch.sigmoid(z[kept]), doubtful)
    return Entries(*(x.cpu().numpy() for x in found))


@nb.njit(cache=True, fastmath={"reassoc", "contract", "nsz", "arcp"})
def _bent(u, v, bend):
    """Return Σ_h w_h (1 - a_h) max(u_h + v_h, 0) of one edge."""
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
    """Return the places of the first ``width`` neighbours of some rows: row pointers, and places."""
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
    """Return the places of some rows' neighbours in the affinity graph, without self loops: row pointers, and places.

    ``sources_indptr`` (N + 1,) are pointers into ``sources``, one range per node for all scales together.
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
