"""Small data sets."""

from __future__ import annotations

import numpy as np

from starfc.graph.neighbours import KnnGraph, tidy


def some_rows(identities=12, size=20, dim=24, noise=0.5, cone=0.0, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(identities, dim))
    rows = np.repeat(centres, size, axis=0) + noise * rng.normal(size=(identities * size, dim))
    rows += cone * np.sqrt(dim) * np.eye(dim)[0]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), np.repeat(np.arange(identities), size)


def blobs(identities: int = 12, size: int = 15, dim: int = 16, noise: float = 0.35, seed: int = 0):
    """Noisy directions around random centres: (N, dim) float32 of norms other than 1, and (N,) labels."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(identities, dim))
    labels = np.repeat(np.arange(identities), size)
    features = centres[labels] / np.sqrt(dim) + noise * rng.normal(size=(len(labels), dim)) / np.sqrt(dim)
    order = rng.permutation(len(labels))
    return (3 * features[order]).astype(np.float32), labels[order]


def unit(features: np.ndarray) -> np.ndarray:
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def random_graph(n: int, k: int, seed: int) -> KnnGraph:
    """Random neighbours, some missing, some similarities 0, some tied."""
    rng = np.random.default_rng(seed)
    ids, sims = np.full((n, k), -1), np.zeros((n, k))
    for i in range(n):
        others = np.setdiff1d(np.arange(n), [i])
        count = rng.integers(0, min(k, len(others)) + 1)
        ids[i, :count] = rng.choice(others, count, replace=False)
        sims[i, :count] = rng.integers(0, 5, count) / 4
    return tidy(ids, sims, np.arange(n), n)


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two labelings are equal up to renaming."""
    pairs = np.unique(np.stack([a, b], axis=1), axis=0)
    return len(pairs) == len(np.unique(a)) == len(np.unique(b))
