"""The fused edge head: the computation per edge, given the node projections.

With W1 = [W1a | W1b], w = W2[1] - W2[0] and c = b2[1] - b2[0], the head (:mod:`starfc.models.gcn`) is

    u_i = W1a x_i + b1,   v_j = W1b x_j                      (per node: two GEMMs)
    z_ij = Σ_h w_h · PReLU_h(u_ih + v_jh) + c,   p_ij = σ(z_ij)     (per edge)

because the softmax of two classes is the sigmoid of their difference. :func:`edge_logits` computes the part per edge as
a differentiable operator. Neither forward nor backward stores anything of size edges x h.

Let t_eh = u_ih + v_jh, a_h the slope, and g_e the gradient of z_e. The backward pass needs two masked sums per node,
one over its outgoing edges and one over its incoming edges:

    A_ih = Σ_{e: i -> ·} g_e [t_eh > 0],   G_i = Σ_{e: i -> ·} g_e;   A'_jh, G'_j likewise over e: · -> j

    du_ih = w_h (A_ih + a_h (G_i - A_ih)),   dv_jh = w_h (A'_jh + a_h (G'_j - A'_jh))
    Σ_e g_e max(t_eh, 0) = Σ_i u_ih A_ih + Σ_j v_jh A'_jh,   Σ_e g_e min(t_eh, 0) = the same with G - A for A

The last two sums give dw_h = Σ_e g_e PReLU(t_eh) and da_h = w_h Σ_e g_e min(t_eh, 0) without another pass over the
edges.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
import torch
from torch import Tensor

_FASTMATH = {"reassoc", "contract", "nsz", "arcp"}
_EDGE_BLOCK = 1 << 14  # edges per block in the torch version: 2^14 edges x 512 float32 = 32 MiB
_CHUNKS = 64  # number of chunks of nodes in the backward pass, each with its own partial sums


def edge_logits(source: Tensor, target: Tensor, slope: Tensor, weight: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Return z_e = Σ_h weight_h · PReLU(source[rows_e, h] + target[cols_e, h]; slope_h); differentiable.

    Parameters
    ----------
    source, target : (N, h) tensors
        Node projections u and v.
    slope, weight : (h,) tensors
        PReLU slope and w = W2[1] - W2[0] per hidden unit.
    rows, cols : (E,) integer tensors
        The edges. Edges that are sorted by row are fastest.

    Returns
    -------
    (E,) tensor
        Logits without the constant c. Compiled kernels compute them on the CPU, torch operations in blocks on other
        devices.
    """
    return _EdgeLogits.apply(source, target, slope, weight, rows, cols)


class _EdgeLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source, target, slope, weight, rows, cols):
        ctx.save_for_backward(source, target, slope, weight, rows, cols)
        forward = _forward_cpu if source.device.type == "cpu" else _forward_blocked
        return forward(source, target, slope, weight, rows, cols)

    @staticmethod
    def backward(ctx: Any, grad):
        backward = _backward_cpu if grad.device.type == "cpu" else _backward_blocked
        return *backward(grad.contiguous(), *ctx.saved_tensors), None, None


def _forward_cpu(source, target, slope, weight, rows, cols):
    out = torch.empty(rows.numel(), dtype=source.dtype)
    _forward_kernel(*_arrays(source, target, slope, weight, rows, cols), out.numpy())
    return out


def _backward_cpu(grad, source, target, slope, weight, rows, cols):
    grad, source, target, slope, weight, rows, cols = _arrays(grad, source, target, slope, weight, rows, cols)
    order, starts = _group_by_end(rows, cols, len(source))
    grad_source, above_u, below_u = _node_gradient(source, target, slope, weight, grad, cols, order[0], starts[0])
    grad_target, above_v, below_v = _node_gradient(target, source, slope, weight, grad, rows, order[1], starts[1])
    above, below = above_u + above_v, below_u + below_v
    grads = grad_source, grad_target, weight * below, above + slope * below
    return tuple(torch.from_numpy(g) for g in grads)


def _node_gradient(own, other, slope, weight, grad, ends, order, starts):
    """Return the gradient of one projection, and its part of Σ_e g_e max(t_e, 0) and Σ_e g_e min(t_e, 0), (h,) each."""
    out = np.empty_like(own)
    above, below = np.zeros((2, _CHUNKS, weight.size), own.dtype)
    _gather_kernel(own, other, slope, weight, grad, ends, order, starts, out, above, below)
    return out, above.sum(axis=0), below.sum(axis=0)


def _arrays(*tensors):
    return [t.detach().contiguous().numpy() for t in tensors]


def _forward_blocked(source, target, slope, weight, rows, cols):
    out = torch.empty(rows.numel(), dtype=source.dtype, device=source.device)
    for start in range(0, rows.numel(), _EDGE_BLOCK):
        edges = slice(start, start + _EDGE_BLOCK)
        hidden = source[rows[edges]] + target[cols[edges]]  # (b, h)
        out[edges] = torch.where(hidden > 0, hidden, hidden * slope) @ weight
    return out


def _backward_blocked(grad, source, target, slope, weight, rows, cols):
    grad_source, grad_target = torch.zeros_like(source), torch.zeros_like(target)
    grad_slope, grad_weight = torch.zeros_like(slope), torch.zeros_like(weight)
    for start in range(0, rows.numel(), _EDGE_BLOCK):
        edges = slice(start, start + _EDGE_BLOCK)
        r, c, g = rows[edges].long(), cols[edges].long(), grad[edges]
        hidden = source[r] + target[c]
        positive = hidden > 0
        grad_weight += g @ torch.where(positive, hidden, hidden * slope)
        grad_slope += (g @ torch.where(positive, torch.zeros_like(hidden), hidden)) * weight
        through = g[:, None] * torch.where(positive, weight, weight * slope)
        # this sorts the indices and adds in their order; index_add_ would add in any order on a GPU
        grad_source.index_put_((r,), through, accumulate=True)
        grad_target.index_put_((c,), through, accumulate=True)
    return grad_source, grad_target, grad_slope, grad_weight


@nb.njit(cache=True, fastmath=_FASTMATH, inline="always")
def _logit(u, v, slope, weight):
    zero = u.dtype.type(0.0)
    z = zero
    for h in range(weight.size):
        t = u[h] + v[h]
        z += weight[h] * (max(t, zero) + slope[h] * min(t, zero))
    return z


@nb.njit(parallel=True, cache=True, fastmath=_FASTMATH)
def _forward_kernel(source, target, slope, weight, rows, cols, out):
    for e in nb.prange(out.size):
        out[e] = _logit(source[rows[e]], target[cols[e]], slope, weight)


@nb.njit(parallel=True, cache=True)
def _group_by_end(rows, cols, num_nodes):
    """Group the edges by row and by column: (2, E) edge numbers, sorted within a group, and (2, N + 1) group starts."""
    order = np.empty((2, rows.size), np.int32)
    starts = np.zeros((2, num_nodes + 1), np.int64)
    for side in nb.prange(2):
        keys = rows if side == 0 else cols
        for e in range(keys.size):
            starts[side, keys[e] + 1] += 1
        for i in range(num_nodes):
            starts[side, i + 1] += starts[side, i]
        cursor = starts[side, :-1].copy()
        for e in range(keys.size):
            order[side, cursor[keys[e]]] = e
            cursor[keys[e]] += 1
    return order, starts


@nb.njit(parallel=True, cache=True, fastmath=_FASTMATH)
def _gather_kernel(own, other, slope, weight, grad, ends, order, starts, out, above, below):
    # Each node sums over its own edges. So each sum is computed by one thread in a fixed order, for any thread count.
    zero = own.dtype.type(0.0)
    size = (own.shape[0] + _CHUNKS - 1) // _CHUNKS
    for chunk in nb.prange(_CHUNKS):
        for i in range(chunk * size, min((chunk + 1) * size, own.shape[0])):
            mine, active = own[i], out[i]
            active[:] = zero  # Σ_e g_e [t_e > 0]
            total = zero
            for at in range(starts[i], starts[i + 1]):
                g, theirs = grad[order[at]], other[ends[order[at]]]
                total += g
                for h in range(mine.size):
                    active[h] += g if mine[h] + theirs[h] > zero else zero
            for h in range(mine.size):
                above[chunk, h] += mine[h] * active[h]
            for h in range(mine.size):
                below[chunk, h] += mine[h] * (total - active[h])
            for h in range(mine.size):
                active[h] = weight[h] * (active[h] + slope[h] * (total - active[h]))
