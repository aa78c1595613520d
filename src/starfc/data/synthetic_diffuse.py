"""Parameters of synthetic embeddings that are sums of independent directions, the kind ``diffuse``."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from starfc.data.synthetic_kernels import make_rows
from starfc.data.synthetic_sizes import Sizes, above_zero, at_least, shares

_QUANTILES = 4097


@dataclass(frozen=True)
class Synthetic(Sizes):
    """Parameters of the kind ``diffuse``. Weights are lengths of vectors before normalisation.

    The data have the difficulties of faces: look-alikes (identities share family directions), separate modes of one
    identity (age, pose), and poor photos. Poor photos of all identities drift towards a few shared "bad photo"
    directions, and thus connect different identities. An instance of quality q in [0, 1] is

        x = normalise((centre + (1 - centre)·q)·c + mode·w·m + noise·(1 - relief·q)·n + bad·max(0, below - q)·b)

    where c = normalise(family·u·f + o) is the centre of the identity, f the direction of its family, o its own
    direction, m one of its modes, n the direction of the instance, b a "bad photo" direction, and u, w are uniform in
    [0, 1]. All directions are unit vectors of independent numbers with a bell-shaped distribution; axis m = 1..d has
    the standard deviation m^-spectrum.

    With the defaults, methods without training score as published for MS1M. With 54,000 nodes and seed 0 single link
    has pairwise F 68.9 (precision 90.6, recall 55.7; published 70.6), and Infomap 94.4 (published 94.0);
    ``benchmarks/synthetic_baselines.py``.
    """

    family_size: int = 20  #: mean number of identities per family of look-alikes
    family_weight: float = 1.1  #: the weight of the family in a centre is uniform from 0 to this
    modes: int = 4  #: modes per identity (age, pose)
    mode_weight: float = 0.85  #: the weight of the mode in an instance is uniform from 0 to this
    centre_weight: float = 0.35  #: weight of the centre at quality 0; it is 1 at quality 1
    noise_weight: float = 1.0  #: weight of the instance's own direction at quality 0
    noise_relief: float = 0.65  #: share of this weight that quality 1 removes
    quality_a: float = 2.2  #: quality is Beta(quality_a, quality_b)
    quality_b: float = 1.6
    poor_share: float = 0.2  #: share of instances whose quality is multiplied by poor_factor
    poor_factor: float = 0.25
    bad_directions: int = 12  #: shared "bad photo" directions
    bad_weight: float = 1.1  #: weight of such a direction per unit of quality below bad_below
    bad_below: float = 0.45
    spectrum: float = 0.35  #: standard deviation of axis m is m^-spectrum

    def _wrong(self) -> list[str]:
        counts = ("family_size", "modes", "bad_directions")
        wrong = at_least(self, dict.fromkeys(counts, 1)) + above_zero(self, ("quality_a", "quality_b", "noise_weight"))
        return wrong + shares(self, ("centre_weight", "noise_relief", "poor_share", "poor_factor", "bad_below"))

    def fill(
        self, start: int, features: NDArray[np.float32], labels: NDArray[np.int64], ends: NDArray[np.int64], seed: int
    ) -> None:
        """Generate n rows, from row ``start``: features (n, d) float32 and labels (n,) int64; ``ends`` (C,) int64."""
        make_rows(
            start,
            features,
            labels,
            ends,
            max(1, round(len(ends) / self.family_size)),
            (np.arange(1, features.shape[1] + 1) ** -self.spectrum).astype(np.float32),
            betaincinv(self.quality_a, self.quality_b, np.linspace(0, 1, _QUANTILES)),
            seed,
            _Weights(*(getattr(self, name) for name in _Weights._fields)),
        )


_Weights = namedtuple(
    "_Weights",
    "family_weight modes mode_weight centre_weight noise_weight noise_relief poor_share poor_factor bad_directions "
    "bad_weight bad_below",
)
