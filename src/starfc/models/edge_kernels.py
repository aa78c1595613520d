"""The fused edge head: everything that is left per edge once the node projections are made.

With W1 = [W1a | W1b], w = W2[1] - W2[0] and c = b2[1] - b2[0], the head of spec section 4 is

    u_i = W1a x_i + b1,   v_j = W1b x_j                      (per node: two GEMMs)
    z_ij = Σ_h w_h · PReLU_h(u_ih + v_jh) + c,   p_ij = σ(z_ij)     (per edge)

because the softmax of two classes is the sigmoid of their difference. :func:`edge_logits` is that per-edge part as a
differentiable operator; nothing of size edges x h is stored, forward or backward.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import torch
from torch import Tensor
from torch.nn import functional

_FASTMATH = {"reassoc", "contract", "nsz", "arcp"}
_EDGE_BLOCK = 1 << 14  # torch path: 2^14 edges x 512 float32 = 32 MiB at a time
_HIDDEN_SLICE = 64  # backward: 64 float32 = 4 cache lines per thread and row


def edge_logits(source: Tensor, target: Tensor, slope: Tensor, weight: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """z_e = Σ_h weight_h · PReLU(source[rows_e, h] + target[cols_e, h]; slope_h), differentiable.

    Parameters
    ----------
    source, target : (N, h) tensors
        Node projections u and v.
    slope, weight : (h,) tensors
        PReLU slope and w = W2[1] - W2[0] per hidden unit.
    rows, cols : (E,) integer tensors
        Edges; sorted by row they are fastest.

    Returns
    -------
    (E,) tensor
        Logits without the constant c. On the CPU by compiled kernels, elsewhere by blocked torch operations.
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
    inputs = [_sliced(t) for t in (source, target, slope, weight)]
    grads = [torch.zeros_like(t) for t in inputs]
    _backward_kernel(*_arrays(grad, *inputs, rows, cols), *(g.numpy() for g in grads))
    width = weight.numel()
    wide = [g.movedim(0, -2).flatten(-2)[..., :width] for g in grads]
    return tuple(wide)


def _sliced(x: Tensor) -> Tensor:
    """(..., h) -> (slices, ..., _HIDDEN_SLICE), contiguous; the last slice is filled up with zeros."""
    padded = functional.pad(x.detach(), (0, -x.shape[-1] % _HIDDEN_SLICE))
    return padded.unflatten(-1, (-1, _HIDDEN_SLICE)).movedim(-2, 0).contiguous()


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
        r, c, g = rows[edges], cols[edges], grad[edges]
        hidden = source[r] + target[c]
        positive = hidden > 0
        grad_weight += g @ torch.where(positive, hidden, hidden * slope)
        grad_slope += (g @ torch.where(positive, torch.zeros_like(hidden), hidden)) * weight
        through = g[:, None] * torch.where(positive, weight, weight * slope)
        grad_source.index_add_(0, r, through)
        grad_target.index_add_(0, c, through)
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


@nb.njit(parallel=True, cache=True, fastmath=_FASTMATH)
def _backward_kernel(grad, source, target, slope, weight, rows, cols, g_source, g_target, g_slope, g_weight):
    # Threads share the hidden units, not the edges: every accumulator has one writer and a fixed order of summation.
    # Arrays come cut into slices of the hidden units, (slices, N, 64): rows of a length known when compiling, one
    # store per inner loop (or the compiler gives up proving the arrays distinct) and no branch: that makes it SIMD.
    zero = source.dtype.type(0.0)
    for s in nb.prange(source.shape[0]):
        w = weight[s]
        below_w = np.empty(_HIDDEN_SLICE, source.dtype)
        rise = np.empty(_HIDDEN_SLICE, source.dtype)
        through = np.empty(_HIDDEN_SLICE, source.dtype)
        above = np.zeros(_HIDDEN_SLICE, source.dtype)  # Σ_e g_e max(t, 0)
        below = np.zeros(_HIDDEN_SLICE, source.dtype)  # Σ_e g_e min(t, 0)
        for h in range(_HIDDEN_SLICE):
            below_w[h] = w[h] * slope[s, h]
            rise[h] = w[h] - below_w[h]
        for e in range(grad.size):
            u, v, g = source[s, rows[e]], target[s, cols[e]], grad[e]
            for h in range(_HIDDEN_SLICE):
                above[h] += g * max(u[h] + v[h], zero)
            for h in range(_HIDDEN_SLICE):
                below[h] += g * min(u[h] + v[h], zero)
            for h in range(_HIDDEN_SLICE):
                through[h] = g * (below_w[h] + rise[h] * source.dtype.type(u[h] + v[h] > zero))
            g_u, g_v = g_source[s, rows[e]], g_target[s, cols[e]]
            for h in range(_HIDDEN_SLICE):
                g_u[h] += through[h]
            for h in range(_HIDDEN_SLICE):
                g_v[h] += through[h]
        for h in range(_HIDDEN_SLICE):
            g_weight[s, h] = above[h] + slope[s, h] * below[h]
            g_slope[s, h] = w[h] * below[h]
