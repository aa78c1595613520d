"""Random numbers of training: a stream of its own for every epoch, subgraph and step, from one seed.

No generator has a state that outlives a step, so a run can go on from any step, and processes and prefetched subgraphs
cannot disturb one another.
"""

from __future__ import annotations

import numpy as np
import torch

_HOLDOUT, _SUBGRAPH, _EPOCH, _STEP = 1, 2, 3, 4


def holdout_stream(seed: int) -> np.random.Generator:
    """Which identities are held back."""
    return np.random.default_rng([seed, _HOLDOUT])


def epoch_stream(seed: int, epoch: int) -> np.random.Generator:
    """The order of an epoch's seed identities."""
    return np.random.default_rng([seed, _EPOCH, epoch])


def subgraph_stream(seed: int, number: int) -> np.random.Generator:
    """A subgraph's instances, offsets and patches; ``number`` counts the subgraphs of all processes."""
    return np.random.default_rng([seed, _SUBGRAPH, number])


def step_generator(seed: int, number: int, step: int) -> torch.Generator:
    """Rotation and Gumbel noise of a step; torch's global generators (dropout) are set to it too."""
    state = int(np.random.SeedSequence([seed, _STEP, number, step]).generate_state(1, np.uint64)[0] >> 1)
    torch.manual_seed(state)
    return torch.Generator().manual_seed(state)
