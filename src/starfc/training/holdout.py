"""Select identities to hold out of training. Thresholds are chosen on them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def hold_back(centres: NDArray[np.float32], share: float, group: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Select identities to hold out, in groups of look-alikes.

    A group is a random seed identity and the nearest identities that are still free. Groups are added until ``share``
    of the C identities is held out. If single identities were chosen at random, most of their look-alikes would stay in
    the training data. The graph of the held-out identities would then be easier than a complete graph, and thresholds
    chosen on it would be too low.

    Parameters
    ----------
    centres : (C, d) float32
        Normalised identity centres.
    share : float
        Share of the identities, in [0, 1).
    group : int
        Identities per group.
    rng : Generator
        Random numbers.

    Returns
    -------
    (n,) int64
        Held-out identities, sorted; n = floor(share · C).
    """
    wanted = int(share * len(centres))
    free = np.ones(len(centres), bool)
    while (held := int((~free).sum())) < wanted:
        seed = rng.choice(np.flatnonzero(free))
        near = np.argsort(-(centres @ centres[seed]), kind="stable")
        free[near[free[near]][: min(group, wanted - held)]] = False
    return np.flatnonzero(~free)
