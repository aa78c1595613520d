"""Optimisers and learning-rate schedules."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, OneCycleLR

from starfc.config.config import Config


def make_optimizer(
    config: Config, parameters: Iterable[nn.Parameter], lr: float | None = None
) -> torch.optim.Optimizer:
    """SGD (published) or AdamW, at the configured rate unless another is given."""
    o = config.optimizer
    lr = o.lr if lr is None else lr
    if o.type == "SGD":
        return torch.optim.SGD(parameters, lr, momentum=o.momentum, weight_decay=o.weight_decay)
    return torch.optim.AdamW(parameters, lr, weight_decay=o.weight_decay)


class Schedule:
    """The learning rate of a run: a tenth at the given epochs (published), or one cycle over all its subgraphs."""

    def __init__(self, config: Config, optimizer: torch.optim.Optimizer, rounds: int) -> None:
        policy = config.lr_config
        self._by_epoch = policy.policy == "step"
        if self._by_epoch:
            self._schedule: LRScheduler = MultiStepLR(optimizer, config.milestones, gamma=0.1)
        else:  # one more than it takes: torch counts the step of its own construction
            self._schedule = OneCycleLR(optimizer, config.optimizer.lr, total_steps=rounds + 1, pct_start=policy.warmup)

    def after_round(self) -> None:
        """One subgraph (of every process) is done."""
        if not self._by_epoch:
            self._schedule.step()

    def after_epoch(self) -> None:
        """One epoch is done."""
        if self._by_epoch:
            self._schedule.step()

    def state_dict(self) -> dict[str, object]:
        """Numbers that :meth:`load_state_dict` takes; milestones are the config's."""
        state = self._schedule.state_dict()
        state.pop("milestones", None)
        return state

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on where a schedule of the same config was."""
        self._schedule.load_state_dict(state)
