"""Measure how hard a set is: similarities within identities, and to the nearest strangers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SAMPLED = 2000  # rows that are compared with all others
_BLOCK = 100  # of them at once


def similarities(features: NDArray[np.floating], identity: NDArray[np.int64], seed: int = 0) -> dict[str, float]:
    """Return cosine similarities of sampled rows: quantiles within identities, and medians to strangers.

    Parameters
    ----------
    features : (N, D) floating
        Embeddings, not normalised.
    identity : (N,) int64
        Identity of each.
    seed : int
        Seed of the sample of :data:`SAMPLED` rows.

    Returns
    -------
    dict
        ``within_10``, ``within_50``, ``within_90``: quantiles over all pairs of a sampled row and another row of its
        identity, NaN without such a pair. ``stranger_1``, ``stranger_80``: median over the sampled rows of the
        similarity to the nearest and the 80th nearest row of another identity, NaN if there are fewer.
    """
    unit = np.asarray(features, np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    rows = np.random.default_rng(seed).permutation(len(unit))[:SAMPLED]
    within, strangers = [], {1: [], 80: []}
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        for row, sims in zip(block, unit[block] @ unit.T, strict=True):
            same = identity == identity[row]
            others = sims[~same]
            same[row] = False
            within.append(sims[same])
            for rank, found in strangers.items():
                if len(others) >= rank:
                    found.append(np.partition(others, len(others) - rank)[len(others) - rank])
    pairs = np.concatenate(within)
    result = {f"within_{q}": float(np.percentile(pairs, q)) if len(pairs) else float("nan") for q in (10, 50, 90)}
    result |= {
        f"stranger_{rank}": float(np.median(found)) if found else float("nan") for rank, found in strangers.items()
    }
    return {name: round(value, 3) for name, value in result.items()}
