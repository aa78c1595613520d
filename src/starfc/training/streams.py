"""Random numbers of training. Every epoch, subgraph and step has its own stream, derived from one seed.

No generator is used for longer than its epoch, subgraph or step. For this reason a run can continue from any step, and
processes and prefetched subgraphs cannot influence each other's random numbers.
"""

from __future__ import annotations

import numpy as np
import torch

_HOLDOUT, _SUBGRAPH, _EPOCH, _STEP = 1, 2, 3, 4


def holdout_stream(seed: int) -> np.random.Generator:
    """Return the generator that selects the held-out identities."""
    return np.random.default_rng([seed, _HOLDOUT])


def epoch_stream(seed: int, epoch: int) -> np.random.Generator:
    """Return the generator of the order of an epoch's seed identities."""
    return np.random.default_rng([seed, _EPOCH, epoch])


def subgraph_stream(seed: int, number: int) -> np.random.Generator:
    """Return the generator of a subgraph's instances, offsets and patches. ``number`` counts those of all processes."""
    return np.random.default_rng([seed, _SUBGRAPH, number])


def step_generator(seed: int, number: int, step: int) -> torch.Generator:
    """Return the generator of a step's rotation and Gumbel noise. Also seed torch's global generators, for dropout."""
    state = int(np.random.SeedSequence([seed, _STEP, number, step]).generate_state(1, np.uint64)[0] >> 1)
    torch.manual_seed(state)
    return torch.Generator().manual_seed(state)
