"""Sizes of the identities of synthetic data: a law of sizes, and profiles of three known kinds of data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from starfc.data.synthetic_kernels import SIZE, uniforms
from starfc.errors import InputError


@dataclass(frozen=True)
class Sizes:
    """The number of instances s of each identity: log-normal, or a power law if ``size_exponent`` is above 0.

    With u uniform in [0, 1) and the standard normal quantile function Φ^-1, lengths are drawn as

        s = clip(round(mean_size · exp(size_sigma · Φ^-1(u) - size_sigma² / 2)), min_size, max_size)

    or, for an exponent e > 1, as s = floor((a - u (a - b))^(1 / (1 - e))) with a = min_size^(1 - e) and
    b = (max_size + 1)^(1 - e). Then P(S >= s) is proportional to s^(1 - e) - (max_size + 1)^(1 - e); e = 2 is Zipf's
    law. The last identity gets the instances that remain.
    """

    mean_size: float = 68.0  #: mean of the log-normal law, before clipping
    size_sigma: float = 0.55  #: standard deviation of the logarithm of a log-normal size
    min_size: int = 2  #: sizes are between min_size and max_size; the last identity gets the remaining instances
    max_size: int = 400
    size_exponent: float = 0.0  #: exponent of a power law P(s) ~ s^-exponent; 0 chooses the log-normal law

    def __post_init__(self) -> None:
        wrong = [*at_least(self, {"mean_size": 1, "min_size": 1, "size_sigma": 0}), *self._wrong()]
        if self.max_size < self.min_size:
            wrong.append(f"max_size must be >= min_size; found {self.max_size} < {self.min_size}")
        if not (self.size_exponent == 0 or self.size_exponent > 1):
            wrong.append(f"size_exponent must be 0 (log-normal sizes) or > 1; found {self.size_exponent}")
        if wrong:
            raise InputError("synthetic data: " + "; ".join(wrong))

    def _wrong(self) -> list[str]:
        """Return what is wrong with the parameters that a subclass adds."""
        return []

    def ends(self, num_nodes: int, seed: int) -> NDArray[np.int64]:
        """Return the cumulative sizes of the identities of N instances, (C,) int64; the last is N."""
        sizes = np.empty(0, np.int64)
        while (total := int(sizes.sum())) < num_nodes:
            more = 64 + int((num_nodes - total) / self.mean_size)
            sizes = np.concatenate([sizes, self._draw(uniforms(seed, SIZE, len(sizes), len(sizes) + more))])
        ends = np.cumsum(sizes)
        return np.minimum(ends[: 1 + np.searchsorted(ends, num_nodes)], num_nodes)

    def _draw(self, uniform: NDArray[np.float64]) -> NDArray[np.int64]:
        if self.size_exponent:
            power = 1 - self.size_exponent
            low, high = float(self.min_size) ** power, (self.max_size + 1.0) ** power
            return np.clip((low - uniform * (low - high)) ** (1 / power), self.min_size, self.max_size).astype(np.int64)
        normal = ndtri(np.maximum(uniform, 2.0**-53))
        drawn = self.mean_size * np.exp(self.size_sigma * normal - self.size_sigma**2 / 2)
        return np.clip(np.rint(drawn), self.min_size, self.max_size).astype(np.int64)


#: Profiles: MS1M (mean 68), WebFace42M (mean 21, 3 to more than 300), a photo library (Zipf; half are single photos).
PROFILES: dict[str, dict[str, float]] = {
    "ms1m": {"mean_size": 68.0, "size_sigma": 0.55, "min_size": 2, "max_size": 400},
    "webface": {"mean_size": 21.0, "size_sigma": 0.75, "min_size": 3, "max_size": 1000},
    "library": {"mean_size": 7.5, "min_size": 1, "max_size": 1000, "size_exponent": 2.0},
}


def at_least(parameters: object, least: Mapping[str, float]) -> list[str]:
    """Return a complaint for each of the named parameters that is below its least value."""
    return [
        f"{name} must be >= {bound}; found {getattr(parameters, name)}"
        for name, bound in least.items()
        if not getattr(parameters, name) >= bound
    ]


def above_zero(parameters: object, names: Iterable[str]) -> list[str]:
    """Return a complaint for each of the named parameters that is not above 0."""
    return [
        f"{name} must be > 0; found {getattr(parameters, name)}" for name in names if not getattr(parameters, name) > 0
    ]


def shares(parameters: object, names: Iterable[str]) -> list[str]:
    """Return a complaint for each of the named parameters that is not between 0 and 1."""
    return [
        f"{name} must be between 0 and 1; found {getattr(parameters, name)}"
        for name in names
        if not 0 <= getattr(parameters, name) <= 1
    ]
