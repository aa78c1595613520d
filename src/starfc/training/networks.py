"""Small networks that map the points of a kind of data: with random weights, or trained on other identities."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

Rng = np.random.Generator
Rows = NDArray[np.float32]
Ids = NDArray[np.int64]

_BATCH = 192  # batch size in the training of a network


def random_network(rng: Rng, widths: tuple[int, ...], kinds: int = 3) -> Callable[[Rows], Rows]:
    """Return a network with random weights, and with tanh, ReLU or sine between its layers."""
    pairs = list(itertools.pairwise(widths))
    weights = [(rng.normal(size=pair) / np.sqrt(pair[0])).astype(np.float32) for pair in pairs]
    offsets = [(0.3 * rng.normal(size=out)).astype(np.float32) for _, out in pairs]
    unit = (np.tanh, lambda x: np.maximum(x, 0), np.sin)[rng.integers(0, kinds)]

    def network(rows: Rows) -> Rows:
        for at, (weight, offset) in enumerate(zip(weights, offsets, strict=True)):
            rows = rows @ weight + offset
            rows = unit(rows) if at + 1 < len(weights) else rows
        return rows

    return network


def embedded(rng: Rng, learnt: Rows, learnt_ids: Ids, features: Rows) -> Rows:
    """Embed ``features`` with a network that is trained here to distinguish the ``learnt`` identities."""
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 31)))
    dim, hidden = int(rng.choice((16, 32, 64, 128, 128, 256, 512))), int(rng.choice((128, 256)))
    unit = nn.ReLU() if rng.random() < 0.5 else nn.PReLU()
    first, last = nn.Linear(features.shape[1], hidden), nn.Linear(hidden, dim)
    network = nn.Sequential(first, unit, last)
    for layer in (first, last):
        nn.init.normal_(layer.weight, 0, layer.in_features**-0.5, generator=generator)
        nn.init.zeros_(layer.bias)
    classes = nn.Parameter(torch.randn(int(learnt_ids.max()) + 1, dim, generator=generator) * dim**-0.5)
    steps, decay = int(log_uniform(rng, 20, 300)), 10 ** rng.uniform(-4, -1)
    margin, scale = rng.uniform(0, 0.4) if rng.random() < 0.7 else None, rng.uniform(8, 40)
    optimizer = torch.optim.AdamW([*network.parameters(), classes], lr=3e-3, weight_decay=decay)
    inputs, targets = torch.from_numpy(learnt), torch.from_numpy(learnt_ids.astype(np.int64))
    for _ in range(steps):
        batch = torch.from_numpy(rng.integers(0, len(inputs), _BATCH))
        out = network(inputs[batch])
        if margin is None:
            logits = out @ classes.T
        else:  # CosFace (Wang et al., CVPR 2018)
            logits = functional.normalize(out) @ functional.normalize(classes).T
            logits = scale * (logits - margin * functional.one_hot(targets[batch], len(classes)))
        optimizer.zero_grad()
        functional.cross_entropy(logits, targets[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        found = network(torch.from_numpy(features)).numpy()
    return np.maximum(found, 0) + np.float32(1e-3) if rng.random() < 0.3 else found


def log_uniform(rng: Rng, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
