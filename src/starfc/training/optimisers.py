"""Create optimisers and learning-rate schedules."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, OneCycleLR

from starfc.config.config import Config


def make_optimizer(
    config: Config, parameters: Iterable[nn.Parameter], lr: float | None = None
) -> torch.optim.Optimizer:
    """Create the optimiser of a config: SGD (published) or AdamW. ``lr`` overrides the learning rate of the config."""
    o = config.optimizer
    lr = o.lr if lr is None else lr
    if o.type == "SGD":
        return torch.optim.SGD(parameters, lr, momentum=o.momentum, weight_decay=o.weight_decay)
    return torch.optim.AdamW(parameters, lr, weight_decay=o.weight_decay)


class Schedule:
    """The learning-rate schedule of a run: divided by 10 at given epochs (published), or one cycle over all rounds."""

    def __init__(self, config: Config, optimizer: torch.optim.Optimizer, rounds: int) -> None:
        policy = config.lr_config
        self._by_epoch = policy.policy == "step"
        if self._by_epoch:
            self._schedule: LRScheduler = MultiStepLR(optimizer, config.milestones, gamma=0.1)
        else:  # + 1, because torch counts a step in the constructor
            self._schedule = OneCycleLR(optimizer, config.optimizer.lr, total_steps=rounds + 1, pct_start=policy.warmup)

    def after_round(self) -> None:
        """Update the learning rate after a round, which is one subgraph of every process."""
        if not self._by_epoch:
            self._schedule.step()

    def after_epoch(self) -> None:
        """Update the learning rate after an epoch."""
        if self._by_epoch:
            self._schedule.step()

    def state_dict(self) -> dict[str, object]:
        """Return the state for :meth:`load_state_dict`, without the milestones, which the config sets."""
        state = self._schedule.state_dict()
        state.pop("milestones", None)
        return state

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restore the state of a schedule of the same config."""
        self._schedule.load_state_dict(state)
