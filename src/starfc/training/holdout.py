"""Identities held back from training, on which thresholds are chosen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from starfc.config import Config, Validation
from starfc.training.sampling import identity_centres


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


def held_back(
    features: NDArray[np.float32], labels: NDArray[np.int64], rule: Validation, seed: int
) -> NDArray[np.bool_]:
    """The instances whose identities training holds back, the same ones whenever it is asked.

    Parameters
    ----------
    features : (N, d) float32
        L2-normalised, every instance of the training split that has a direction.
    labels : (N,) int64
        Identities 0..C-1.

    Returns
    -------
    (N,) bool
    """
    rng = np.random.default_rng([seed, 1])  # a stream of its own: the loss curve does not hang on the holdout
    centres = identity_centres(features, labels)
    return np.isin(labels, hold_back(centres, rule.holdout_share, rule.holdout_group, rng))


def holdout_text(config: Config, labels: NDArray[np.int64]) -> str:
    """What the held-back instances of these identities are, for the record."""
    return (
        f"{len(np.unique(labels))} identities ({len(labels)} instances) held back from {config.train_name}, "
        f"in groups of {config.validation.holdout_group}, seed {config.seed}"
    )
