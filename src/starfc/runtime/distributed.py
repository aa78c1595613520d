"""Several training processes, one per GPU (or per share of the CPU), as started by torchrun.

Every process trains on subgraphs of its own; their gradients are averaged at every step, so all weights stay equal, bit
for bit. The process of rank 0 alone writes. Without torchrun there is one process, and nothing is sent.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, nn
from torch import distributed as dist

from starfc.errors import InputError


@dataclass(frozen=True)
class World:
    """This process among all: ``rank`` of ``size``, ``local_rank`` of ``local_size`` on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def writes(self) -> bool:
        """Whether this is the process that writes logs and checkpoints."""
        return self.rank == 0

    def highest(self, value: int) -> int:
        """The highest value of all processes."""
        return value if self.size == 1 else int(self._reduced(torch.tensor(value), dist.ReduceOp.MAX))

    def total(self, *values: float) -> list[float]:
        """The sum over all processes of each value."""
        if self.size == 1:
            return list(values)
        return self._reduced(torch.tensor(values, dtype=torch.float64), dist.ReduceOp.SUM).tolist()

    def average_gradients(
        self, parameters: Iterable[nn.Parameter], loss: Tensor | None, stop: bool
    ) -> tuple[float, bool]:
        """Replace every gradient by its mean over the processes that have a loss.

        Parameters
        ----------
        parameters : iterable
            In the same order in every process.
        loss : scalar tensor or None
            None where this process has no subgraph at this step: it takes the others' gradients.
        stop : bool
            Whether this process was asked to stop.

        Returns
        -------
        (float, bool)
            The mean loss, and whether any process was asked to stop; equal in all processes.

        Notes
        -----
        One all-reduce: gradients, loss, number of processes and requests to stop travel in one buffer.
        """
        if self.size == 1:
            assert loss is not None  # there is no other that has one
            return float(loss.detach()), stop
        parameters = list(parameters)
        device = parameters[0].device
        state = torch.tensor([0.0 if loss is None else float(loss.detach()), float(loss is not None), float(stop)])
        flat = [p.new_zeros(p.numel()) if p.grad is None or loss is None else p.grad.flatten() for p in parameters]
        bucket = self._reduced(torch.cat([*flat, state.to(device)]), dist.ReduceOp.SUM)
        total, count, stops = bucket[-3:].tolist()
        at = 0
        for p in parameters:
            p.grad = (bucket[at : at + p.numel()] / count).view_as(p)
            at += p.numel()
        return total / count, stops > 0

    def _reduced(self, tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        try:
            if dist.get_backend() == "nccl":
                tensor = tensor.to(torch.device("cuda", self.local_rank))
            dist.all_reduce(tensor, operation)
        except RuntimeError as error:  # what a broken connection looks like in torch's backends
            reason = str(error).splitlines()[0][:160]
            raise InputError(
                f"process {self.rank} of {self.size}: another process of this run has ended ({reason}); its own "
                "message says why"
            ) from None
        return tensor


@contextmanager
def processes(device: str) -> Iterator[World]:
    """Join the other processes that torchrun has started, if any; ``device`` is the config's."""
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield World()
        return
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    world = World(*(int(os.environ[name]) for name in names))
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu and world.local_size > torch.cuda.device_count():
        raise InputError(
            f"NPROC: at most one process per GPU ({torch.cuda.device_count()}) needed; found {world.local_size}; "
            "lower it, or set device=cpu"
        )
    if on_gpu:
        torch.cuda.set_device(world.local_rank)
    # one process may search a large validation graph while the others wait; a process that ends is noticed at once
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(days=1))
    try:
        yield world
    finally:
        dist.destroy_process_group()
