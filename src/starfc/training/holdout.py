"""Identities held back from training, on which thresholds are chosen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def hold_back(centres: NDArray[np.float32], share: float, group: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Identities to hold back, in groups of look-alikes.

    A random seed identity and its nearest free ones make a group, until ``share`` of the C identities is held back. A
    random choice of single identities would leave most of their look-alikes behind: the held-back graph would be easier
    than a whole one, and thresholds chosen on it too loose.

    Parameters
    ----------
    centres : (C, d) float32
        Normalised identity centres.
    share : float
        Share of the identities, in [0, 1).
    group : int
        Identities per group.

    Returns
    -------
    (n,) int64
        Held-back identities, ascending; n = floor(share · C).
    """
    wanted = int(share * len(centres))
    free = np.ones(len(centres), bool)
    while (held := int((~free).sum())) < wanted:
        seed = rng.choice(np.flatnonzero(free))
        near = np.argsort(-(centres @ centres[seed]), kind="stable")
        free[near[free[near]][: min(group, wanted - held)]] = False
    return np.flatnonzero(~free)
