"""Parameters of synthetic embeddings near a curved surface of few dimensions, as real embeddings are.

An embedding network maps few causes (who somebody is; age, pose, light) to many axes. These data do the same. Identity
i is a point z_i of a latent space of L dimensions. Its instance j has further causes y_j of M dimensions. One random
network with two layers, fixed by the seed, maps both to the d axes of an embedding:

    z_i = sqrt(group_share)·g + sqrt(family_share)·f + sqrt(1 - group_share - family_share)·o
    y_j = t_j·(sqrt(mode_share)·m + sqrt(1 - mode_share)·n),   t_j = spread·exp(identity_sigma·v_i + instance_sigma·w_j)
    h_j = a(gain·W z_i + V y_j + b),   a(s) = |s - 4·floor(s / 4) - 2| - 1
    x_j = normalise(normalise(A h_j) + noise_weight·e_j + bad_weight·max(0, 1 - u_j / poor_share)·p)

g, f, o (L,) belong to the demographic group, to the family of look-alikes and to the identity; m, n (M,) to a mode of
the identity (an age, a pose) and to the instance; v and w are numbers. W (H, L), V (H, M) and A (d, H) are weights of
the network. All these have independent entries of mean 0 and variance 1 with a bell-shaped distribution; then W is
divided by sqrt(L), V by sqrt(M), and axis m = 1..d of A is multiplied by m^-spectrum. b (H,) is uniform in [0, 4). The
step a folds a number into [-1, 1], a triangle wave of period 4. Folding with random phases b makes all places alike:
the similarity of two points depends on nothing but their distance in the latent space, about as a bell-shaped curve
whose width is 1/gain, and far points are as different as independent directions. e_j is a direction of the instance,
and p is one of a few directions where photos gather that show too little of a face (Deng et al. 2021, arXiv
2106.04112). u_j is uniform in [0, 1), so a share ``poor_share`` of the instances is drawn there.

The instances of one identity differ in a subspace of M dimensions, the image of V, which turns smoothly with z.

With more identities the latent space is filled more densely, as in real populations: strangers come nearer, and the
task becomes harder. From 10^5 to 10^6 instances of profile ms1m the similarity to the 80th stranger rises by .04
(``strong``) to .06 (``glyph``, ``weak``), and the local dimension of strangers by a tenth, because the instances' own
causes and noise are a larger part of smaller distances. The similarities within an identity stay. ``docs/synthetic.md``
has the figures.
"""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starfc.data.synthetic_kernels import (
    CAUSE_WEIGHTS,
    LATENT_WEIGHTS,
    OUT_WEIGHTS,
    PHASE,
    bells,
    make_manifold_rows,
    uniforms,
)
from starfc.data.synthetic_sizes import Sizes, above_zero, at_least, shares


@dataclass(frozen=True)
class Manifold(Sizes):
    """Parameters of the data; the module's docstring has the formula. The defaults are those of ``strong``."""

    latent_dim: int = 20  #: L, dimensions of the latent space of identities
    gain: float = 0.415  #: standard deviation of a unit's input that is due to the identity; bends the surface
    units: int = 256  #: H, units of the network
    groups: int = 8  #: demographic groups
    group_share: float = 0.02  #: share of the latent variance between groups
    family_size: int = 37  #: mean number of identities per family of look-alikes
    family_share: float = 0.435  #: share of the latent variance between the families of a group
    cause_dim: int = 10  #: M, dimensions in which the instances of an identity differ
    spread: float = 0.152  #: standard deviation of a unit's input that is due to the instance
    identity_sigma: float = 0.081  #: spread differs between identities: standard deviation of its logarithm
    instance_sigma: float = 0.366  #: and between the instances of an identity
    modes: int = 4  #: modes per identity (age, pose)
    mode_share: float = 0.325  #: share of the variance of instances that is between modes
    noise_weight: float = 0.262  #: length of an instance's own direction, in all d dimensions
    bad_places: int = 2  #: shared "bad photo" directions
    bad_weight: float = 0.522  #: length of such a direction for the worst instance
    poor_share: float = 0.044  #: share of instances that are drawn to such a direction
    spectrum: float = 0.095  #: standard deviation of axis m is m^-spectrum

    def _wrong(self) -> list[str]:
        counts = ("latent_dim", "units", "groups", "family_size", "cause_dim", "modes", "bad_places")
        lengths = ("spread", "identity_sigma", "instance_sigma", "noise_weight", "bad_weight")
        wrong = at_least(self, dict.fromkeys(counts, 1) | dict.fromkeys(lengths, 0)) + above_zero(self, ("gain",))
        wrong += shares(self, ("group_share", "family_share", "mode_share", "poor_share"))
        if self.group_share + self.family_share > 1:
            total = self.group_share + self.family_share
            wrong.append(f"group_share + family_share must be <= 1; found {total:g}")
        return wrong

    def fill(
        self, start: int, features: NDArray[np.float32], labels: NDArray[np.int64], ends: NDArray[np.int64], seed: int
    ) -> None:
        """Generate n rows, from row ``start``: features (n, d) float32 and labels (n,) int64; ``ends`` (C,) int64."""
        axes = np.arange(1, features.shape[1] + 1) ** -self.spectrum
        make_manifold_rows(
            start,
            features,
            labels,
            ends,
            max(1, round(len(ends) / self.family_size)),
            _Network(
                self._weights(seed, LATENT_WEIGHTS, self.latent_dim, self.units, self.gain / self.latent_dim**0.5),
                self._weights(seed, CAUSE_WEIGHTS, self.cause_dim, self.units, self.cause_dim**-0.5),
                (4 * uniforms(seed, PHASE, 0, self.units)).astype(np.float32),
                self._weights(seed, OUT_WEIGHTS, self.units, features.shape[1], axes),
            ),
            axes.astype(np.float32),
            seed,
            _Weights(*(getattr(self, name) for name in _Weights._fields)),
        )

    @staticmethod
    def _weights(seed: int, kind: int, rows: int, columns: int, scale: float | NDArray) -> NDArray[np.float32]:
        """Return a layer of the network, (rows, columns) float32."""
        return (np.stack([bells(seed, kind, row, columns) for row in range(rows)]) * scale).astype(np.float32)


_Network = namedtuple("_Network", "latent cause phase out")
_Weights = namedtuple(
    "_Weights",
    "groups group_share family_share spread identity_sigma instance_sigma modes mode_share noise_weight bad_places "
    "bad_weight poor_share",
)

#: Parameters fitted to the figures of real embeddings that ``benchmarks/synthetic_fit.py`` measures: glyphs, and faces
#: in a strong network (dlib) and in a weak one (for mobile devices).
PRESETS = {
    "glyph": Manifold(
        latent_dim=11,
        gain=1.0,
        group_share=0.04,
        family_size=19,
        family_share=0.58,
        cause_dim=10,
        spread=0.325,
        identity_sigma=0.11,
        instance_sigma=0.45,
        mode_share=0.26,
        noise_weight=0.1,
        bad_weight=0.74,
        poor_share=0.04,
        spectrum=0.12,
    ),
    "strong": Manifold(),
    "weak": Manifold(
        latent_dim=22,
        gain=0.62,
        group_share=0.037,
        family_size=8,
        family_share=0.272,
        cause_dim=22,
        spread=0.515,
        identity_sigma=0.196,
        instance_sigma=0.329,
        mode_share=0.419,
        noise_weight=0.284,
        bad_weight=0.843,
        poor_share=0.041,
        spectrum=0.104,
    ),
}
