"""Compiled kernels of :mod:`starfc.data.synthetic`. Every random number is a hash of the seed and of its own address.

A number is ``mix(key + m·GOLDEN)``, the output function of SplitMix64 (Steele, Lea and Flood 2014). Each object (a
family, an identity, an instance, ...) has a key. For this reason any row can be generated from its number alone, in any
order and in any thread, and the result does not depend on a library's random numbers. Sums are computed in a fixed
order (no fast-math), so the result does not depend on the vector width of the machine either.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_U = np.uint64

# kinds of keys: the second word that is hashed into a key
SIZE, FAMILY_OF, FAMILY, OWN, MODE, BAD, NOISE, INSTANCE, ORDER = range(9)
GROUP_OF, GROUP, CAUSE, LATENT_WEIGHTS, CAUSE_WEIGHTS, PHASE, OUT_WEIGHTS = range(9, 16)

_ROWS_A_TASK = 64
_BELL_MEAN, _BELL_SCALE = 131070, ((2.0**32 - 1) / 3) ** -0.5  # of the sum of four numbers uniform in 0 .. 2^16 - 1


@nb.njit(cache=True, inline="always")
def _mix(x):
    x = (x ^ (x >> _U(30))) * _U(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> _U(27))) * _U(0x94D049BB133111EB)
    return x ^ (x >> _U(31))


@nb.njit(cache=True)
def _key(seed, kind, index):
    return _mix(_mix(_U(seed) * GOLDEN + _U(kind) + _U(1)) + _U(index) * GOLDEN)


@nb.njit(cache=True, inline="always")
def _uniform(key, m):
    """Return the m-th number of a key, uniform in [0, 1)."""
    return np.float64(_mix(key + _U(m) * GOLDEN) >> _U(11)) * 2.0**-53


@nb.njit(cache=True)
def uniforms(seed: int, kind: int, start: int, stop: int) -> NDArray[np.float64]:
    """Return a uniform number in [0, 1) for each object ``start .. stop`` of a kind, (stop - start,) float64."""
    out = np.empty(stop - start)
    for i in range(out.size):
        out[i] = _uniform(_key(seed, kind, start + i), 0)
    return out


@nb.njit(cache=True, inline="always")
def _words(key, m):
    """Return the sum of the four 16-bit words of the m-th hash of a key, less its mean: bell-shaped, int64."""
    h = _mix(key + _U(m) * GOLDEN)
    words = (h & _U(0xFFFF)) + ((h >> _U(16)) & _U(0xFFFF)) + ((h >> _U(32)) & _U(0xFFFF)) + (h >> _U(48))
    return np.int64(words) - _BELL_MEAN


@nb.njit(cache=True, inline="always")
def _bell(key, m):
    """Return the m-th number of a key, bell-shaped with mean 0 and variance 1."""
    return np.float64(_words(key, m)) * _BELL_SCALE


@nb.njit(cache=True)
def bells(seed: int, kind: int, index: int, count: int) -> NDArray[np.float64]:
    """Return the first numbers of an object, bell-shaped with mean 0 and variance 1, (count,) float64."""
    key, out = _key(seed, kind, index), np.empty(count)
    for m in range(count):
        out[m] = _bell(key, m)
    return out


@nb.njit(cache=True)
def _direction(seed, kind, index, spectrum, out):
    """Write to ``out`` (d,) float32 a unit vector of independent bell-shaped numbers scaled by ``spectrum``.

    The sum of the four 16-bit words of a hash replaces a Gaussian. With hundreds of axes the difference is negligible.
    """
    key = _key(seed, kind, index)
    for m in range(out.size):
        out[m] = np.float32(_words(key, m)) * spectrum[m]
    _normalise(out)


@nb.njit(cache=True)
def _normalise(x):
    total = np.float64(0)
    for m in range(x.size):
        total += np.float64(x[m]) * x[m]
    scale = np.float32(1 / np.sqrt(total))
    for m in range(x.size):
        x[m] *= scale


@nb.njit(cache=True)
def shuffled(row: int, num_nodes: int, seed: int) -> int:
    """Return the instance in ``row``. The function is a bijection on [0, N).

    On b bits with 2^b >= N, multiplication by an odd number and xor with the upper half are bijections. Four rounds of
    them mix the numbers. If the result is outside [0, N), the rounds are repeated ("cycle walking", Black and Rogaway
    2002), so that the whole remains a bijection on [0, N).
    """
    bits = 0
    while (1 << bits) < num_nodes:
        bits += 1
    mask, half = _U((1 << bits) - 1), _U((bits + 1) // 2)
    x = _U(row)
    while True:
        for turn in range(4):
            key = _key(seed, ORDER, turn)
            x = (x * (key | _U(1)) + (key >> _U(32))) & mask
            x ^= x >> half
        if x < _U(num_nodes):
            return np.int64(x)


@nb.njit(cache=True)
def _centre(seed, identity, num_families, family_weight, spectrum, part, out):
    """Write to ``out`` an identity's centre: normalise(family_weight·u·family + own), u uniform in [0, 1)."""
    key = _key(seed, FAMILY_OF, identity)
    _direction(seed, OWN, identity, spectrum, out)
    _direction(seed, FAMILY, min(int(_uniform(key, 0) * num_families), num_families - 1), spectrum, part)
    _add(out, family_weight * _uniform(key, 1), part)
    _normalise(out)


@nb.njit(cache=True)
def _add(x, weight, y):
    weight = np.float32(weight)
    for m in range(x.size):
        x[m] += weight * y[m]


@nb.njit(cache=True)
def _quality(u_beta, u_poor, quantiles, poor_share, poor_factor):
    at = u_beta * (quantiles.size - 1)
    below = int(at)
    q = quantiles[below] + (at - below) * (quantiles[below + 1] - quantiles[below])
    return q * poor_factor if u_poor < poor_share else q


@nb.njit(parallel=True, cache=True)
def make_rows(start, features, labels, ends, num_families, spectrum, quantiles, seed, p) -> None:
    """Generate n rows of the shuffled data, from row ``start``.

    Parameters
    ----------
    start : int
        First row.
    features : (n, d) float32
        Output: the features.
    labels : (n,) int64
        Output: the identities.
    ends : (C,) int64
        Cumulative sizes of the identities.
    num_families : int
        Number of families of look-alikes.
    spectrum : (d,) float32
        Standard deviation of each axis.
    quantiles : (Q,) float64
        Quality at the quantiles 0, 1/(Q-1), ..., 1.
    seed : int
        Seed of all random numbers.
    p : named tuple
        Weights of :class:`starfc.data.synthetic.Synthetic`.
    """
    n, dim = features.shape
    for task in nb.prange((n + _ROWS_A_TASK - 1) // _ROWS_A_TASK):
        part = np.empty(dim, np.float32)
        for i in range(task * _ROWS_A_TASK, min(n, (task + 1) * _ROWS_A_TASK)):
            instance = shuffled(start + i, ends[-1], seed)
            identity = np.searchsorted(ends, instance, side="right")
            labels[i] = identity
            key = _key(seed, INSTANCE, instance)
            q = _quality(_uniform(key, 0), _uniform(key, 1), quantiles, p.poor_share, p.poor_factor)
            x = features[i]
            _centre(seed, identity, num_families, p.family_weight, spectrum, part, x)
            for m in range(dim):
                x[m] *= np.float32(p.centre_weight + (1 - p.centre_weight) * q)
            _direction(seed, MODE, identity * p.modes + int(_uniform(key, 2) * p.modes), spectrum, part)
            _add(x, p.mode_weight * _uniform(key, 3), part)
            _direction(seed, NOISE, instance, spectrum, part)
            _add(x, p.noise_weight * (1 - p.noise_relief * q), part)
            if q < p.bad_below:
                _direction(seed, BAD, int(_uniform(key, 4) * p.bad_directions), spectrum, part)
                _add(x, p.bad_weight * (p.bad_below - q), part)
            _normalise(x)


@nb.njit(cache=True)
def _add_bells(key, weight, out):
    for m in range(out.size):
        out[m] += np.float32(weight * _bell(key, m))


@nb.njit(cache=True)
def _add_product(x, weights, out):
    """Add x (m,) times ``weights`` (m, n) to ``out`` (n,), in the order of x."""
    for k in range(x.size):
        _add(out, x[k], weights[k])


@nb.njit(parallel=True, cache=True)
def make_manifold_rows(start, features, labels, ends, num_families, network, spectrum, seed, p) -> None:
    """Generate n rows of the shuffled data near a manifold, from row ``start``.

    Parameters
    ----------
    start : int
        First row.
    features : (n, d) float32
        Output: the features.
    labels : (n,) int64
        Output: the identities.
    ends : (C,) int64
        Cumulative sizes of the identities.
    num_families : int
        Number of families of look-alikes.
    network : named tuple of float32
        Weights of the network: ``latent`` (L, H), ``cause`` (M, H), ``phase`` (H,), ``out`` (H, d).
    spectrum : (d,) float32
        Standard deviation of each axis.
    seed : int
        Seed of all random numbers.
    p : named tuple
        Parameters of :class:`starfc.data.synthetic_manifold.Manifold`.
    """
    n, dim = features.shape
    for task in nb.prange((n + _ROWS_A_TASK - 1) // _ROWS_A_TASK):
        part, units = np.empty(dim, np.float32), np.empty(network.phase.size, np.float32)
        latent, cause = np.empty(len(network.latent), np.float32), np.empty(len(network.cause), np.float32)
        for i in range(task * _ROWS_A_TASK, min(n, (task + 1) * _ROWS_A_TASK)):
            instance = shuffled(start + i, ends[-1], seed)
            identity = np.searchsorted(ends, instance, side="right")
            labels[i] = identity
            of = _key(seed, FAMILY_OF, identity)
            family = min(int(_uniform(of, 0) * num_families), num_families - 1)
            group = min(int(_uniform(_key(seed, GROUP_OF, family), 0) * p.groups), p.groups - 1)
            latent[:] = 0
            _add_bells(_key(seed, GROUP, group), np.sqrt(p.group_share), latent)
            _add_bells(_key(seed, FAMILY, family), np.sqrt(p.family_share), latent)
            _add_bells(_key(seed, OWN, identity), np.sqrt(max(0.0, 1 - p.group_share - p.family_share)), latent)

            key = _key(seed, INSTANCE, instance)
            scale = p.spread * np.exp(p.identity_sigma * _bell(of, 1) + p.instance_sigma * _bell(key, 3))
            mode = identity * p.modes + int(_uniform(key, 0) * p.modes)
            cause[:] = 0
            _add_bells(_key(seed, MODE, mode), scale * np.sqrt(p.mode_share), cause)
            _add_bells(_key(seed, CAUSE, instance), scale * np.sqrt(1 - p.mode_share), cause)

            units[:] = network.phase
            _add_product(latent, network.latent, units)
            _add_product(cause, network.cause, units)
            for k in range(units.size):
                units[k] = abs(units[k] - 4 * np.floor(units[k] / 4) - 2) - 1
            x = features[i]
            x[:] = 0
            _add_product(units, network.out, x)
            _normalise(x)
            _direction(seed, NOISE, instance, spectrum, part)
            _add(x, p.noise_weight, part)
            poor = _uniform(key, 1)
            if poor < p.poor_share:
                _direction(seed, BAD, int(_uniform(key, 2) * p.bad_places), spectrum, part)
                _add(x, p.bad_weight * (1 - poor / p.poor_share), part)
            _normalise(x)
