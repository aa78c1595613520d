"""Compiled kernels for the scale selector's steps between the bfloat16 matrix products.

The three tokens of a node are embeddings of almost the same neighbourhood. They differ little, and so do their logits.
Rounding each token to bfloat16 would make an error larger than these differences. Therefore a product takes the middle
token and the differences of the other tokens from it, each rounded to bfloat16:

    W x_t = W x_mid + W (x_t - x_mid)

The rounding error of the middle token is the same in all three tokens. It cancels in the differences of the logits, up
to second order. The rounding error of a difference is relative to the difference. All steps between products are
float32. ``products`` (n, 3, ·) and ``out`` (n, 3, ·) are bfloat16 bits in this form (difference, middle, difference);
biases are added to the middle token.
"""

from __future__ import annotations

import math

import numba as nb
import numpy as np

from starfc.runtime.half import number, rounded

MIDDLE = 1  # index of the middle token
_FAST = {"reassoc", "contract", "nsz", "arcp"}  # with error_model="numpy", these let the compiler vectorise the loops
_SQRT_HALF = np.float32(math.sqrt(0.5))
_ONE, _HALF, _ZERO = np.float32(1), np.float32(0.5), np.float32(0)
# Coefficients of erf(x) = x P(x²) / Q(x²) on [-4, 4] from Eigen, accurate to the last digits of float32
_P = tuple(
    map(
        np.float32,
        (
            -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
            -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
        ),
    )
)  # fmt: skip
_Q = tuple(
    map(
        np.float32,
        (
            -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
            -1.42647390514189e-02,
        ),
    )
)  # fmt: skip


@nb.njit(cache=True, fastmath=_FAST, error_model="numpy")
def _gelu(x):
    """Return GELU(x) = x Φ(x)."""
    t = min(max(x * _SQRT_HALF, np.float32(-4)), np.float32(4))
    s = t * t
    p = _P[0]
    p = p * s + _P[1]
    p = p * s + _P[2]
    p = p * s + _P[3]
    p = p * s + _P[4]
    p = p * s + _P[5]
    p = p * s + _P[6]
    q = _Q[0]
    q = q * s + _Q[1]
    q = q * s + _Q[2]
    q = q * s + _Q[3]
    q = q * s + _Q[4]
    return _HALF * x * (_ONE + t * p / q)


@nb.njit(cache=True, fastmath=_FAST, error_model="numpy")
def _normalise(x, eps, weight, bias, out):
    """Write the LayerNorm of one token to ``out``."""
    mean, square = _ZERO, _ZERO
    for c in range(x.size):
        mean += x[c]
    mean /= np.float32(x.size)
    for c in range(x.size):
        square += (x[c] - mean) * (x[c] - mean)
    factor = _ONE / math.sqrt(square / np.float32(x.size) + eps)
    for c in range(x.size):
        out[c] = (x[c] - mean) * factor * weight[c] + bias[c]


@nb.njit(cache=True, fastmath=_FAST, error_model="numpy")
def _differences(tokens, out):
    """Write the middle token and the differences of the other two from it to ``out``, as bfloat16 bits."""
    for c in range(tokens.shape[1]):
        middle = tokens[MIDDLE, c]
        out[0, c] = rounded(tokens[0, c] - middle)
        out[1, c] = rounded(middle)
        out[2, c] = rounded(tokens[2, c] - middle)


@nb.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def norm_tokens(tokens, eps, weight, bias, out, spreads):
    """Apply the first LayerNorm to tokens (n, 3, h).

    ``spreads`` (n,) receives the larger distance of an outer normalised token from the middle one.
    """
    normal = np.empty(tokens.shape[1:], np.float32)
    for i in range(tokens.shape[0]):
        for t in range(3):
            _normalise(tokens[i, t], eps, weight, bias, normal[t])
        _differences(normal, out[i])
        least, most = _ZERO, _ZERO
        for c in range(normal.shape[1]):
            least += (normal[0, c] - normal[MIDDLE, c]) ** 2
            most += (normal[2, c] - normal[MIDDLE, c]) ** 2
        spreads[i] = math.sqrt(max(least, most))


@nb.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def attend(products, bias, heads, out):
    """Apply self-attention between the tokens of each node: (n, 3, 3h) products of [W_q; W_k; W_v] -> (n, 3, h)."""
    h = out.shape[2]
    width = h // heads
    factor = _ONE / np.float32(math.sqrt(width))
    qkv, mixed, weights = np.empty((3, 3 * h), np.float32), np.empty((3, h), np.float32), np.empty(3, np.float32)
    for i in range(products.shape[0]):
        for c in range(3 * h):
            middle = number(products[i, MIDDLE, c]) + bias[c]
            qkv[0, c] = middle + number(products[i, 0, c])
            qkv[1, c] = middle
            qkv[2, c] = middle + number(products[i, 2, c])
        for first in range(0, h, width):
            for t in range(3):
                query, total = qkv[t, first : first + width], _ZERO
                for s in range(3):
                    key, dot = qkv[s, h + first : h + first + width], _ZERO
                    for c in range(width):
                        dot += query[c] * key[c]
                    weights[s] = dot * factor
                highest = max(weights[0], weights[1], weights[2])
                for s in range(3):
                    weights[s] = math.exp(weights[s] - highest)
                    total += weights[s]
                a, b, d = weights[0] / total, weights[1] / total, weights[2] / total
                for c in range(first, first + width):
                    mixed[t, c] = a * qkv[0, 2 * h + c] + b * qkv[1, 2 * h + c] + d * qkv[2, 2 * h + c]
        _differences(mixed, out[i])


@nb.njit(cache=True, fastmath=_FAST, error_model="numpy")
def _add_products(tokens, products, bias, out):
    """Add the products and the bias to three tokens (the residual connection)."""
    for c in range(tokens.shape[1]):
        middle = number(products[MIDDLE, c]) + bias[c]
        out[0, c] = tokens[0, c] + (middle + number(products[0, c]))
        out[1, c] = tokens[1, c] + middle
        out[2, c] = tokens[2, c] + (middle + number(products[2, c]))


@nb.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def add_and_norm(tokens, products, product_bias, eps, weight, bias, residual, out):
    """Write the residual sum (n, 3, h) float32 to ``residual`` and its LayerNorm, the second one, to ``out``."""
    normal = np.empty(tokens.shape[1:], np.float32)
    for i in range(tokens.shape[0]):
        _add_products(tokens[i], products[i], product_bias, residual[i])
        for t in range(3):
            _normalise(residual[i, t], eps, weight, bias, normal[t])
        _differences(normal, out[i])


@nb.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def activate(products, bias):
    """Add the bias and apply GELU in place."""
    middle, at_middle = np.empty(bias.size, np.float32), np.empty(bias.size, np.float32)
    for i in range(products.shape[0]):
        row = products[i, MIDDLE]
        for c in range(bias.size):
            middle[c] = number(row[c]) + bias[c]
            at_middle[c] = _gelu(middle[c])
            row[c] = rounded(at_middle[c])
        for t in range(0, 3, 2):
            row = products[i, t]
            for c in range(bias.size):
                row[c] = rounded(_gelu(middle[c] + number(row[c])) - at_middle[c])


@nb.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def score_tokens(residual, products, product_bias, eps, weight, bias, unit, constant, logits):
    """Write the logits (n, 3): residual sum, last LayerNorm and linear unit."""
    tokens, normal = np.empty(residual.shape[1:], np.float32), np.empty(residual.shape[2], np.float32)
    for i in range(residual.shape[0]):
        _add_products(residual[i], products[i], product_bias, tokens)
        for t in range(3):
            _normalise(tokens[t], eps, weight, bias, normal)
            total = constant
            for c in range(normal.size):
                total += normal[c] * unit[c]
            logits[i, t] = total
