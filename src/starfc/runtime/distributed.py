"""Training in several processes, which torchrun starts: one per GPU, or one per share of the CPU cores.

Every process trains on its own subgraphs. The gradients are averaged at every step, so the weights of all processes
stay equal, bit for bit. Only the process of rank 0 writes files. Without torchrun there is one process, and nothing is
sent.
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
    """The place of this process among all processes: ``rank`` of ``size``, and ``local_rank`` of ``local_size``.

    The local numbers count only the processes on the same machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def writes(self) -> bool:
        """Return whether this process writes logs and checkpoints."""
        return self.rank == 0

    def highest(self, value: int) -> int:
        """Return the highest of the values that all processes pass."""
        return value if self.size == 1 else int(self._reduced(torch.tensor(value), dist.ReduceOp.MAX))

    def total(self, *values: float) -> list[float]:
        """Return the sum of each value over all processes."""
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
            The parameters with gradients, in the same order in every process.
        loss : scalar tensor or None
            Loss of this process. None if it has no subgraph at this step; it then takes the gradients of the others.
        stop : bool
            Whether this process was asked to stop.

        Returns
        -------
        (float, bool)
            The mean loss, and whether any process was asked to stop. Both are equal in all processes.

        Notes
        -----
        There is one all-reduce per step: gradients, losses, counts and stop requests are sent in one buffer.
        """
        if self.size == 1:
            assert loss is not None  # a single process has a subgraph at every step
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
        except RuntimeError as error:  # the backends of torch raise this for a broken connection
            reason = str(error).splitlines()[0][:160]
            raise InputError(
                f"process {self.rank} of {self.size}: another process of this run has ended ({reason}); see the "
                "message of that process"
            ) from None
        return tensor


@contextmanager
def processes(device: str) -> Iterator[World]:
    """Connect to the other processes that torchrun started, if there are any. ``device`` is that of the config."""
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield World()
        return
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    world = World(*(int(os.environ[name]) for name in names))
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu and world.local_size > torch.cuda.device_count():
        raise InputError(
            f"NPROC: must be at most the number of GPUs ({torch.cuda.device_count()}); found {world.local_size}; "
            "lower it, or set device=cpu"
        )
    if on_gpu:
        torch.cuda.set_device(world.local_rank)
    # The timeout is long because one process may build a large validation graph while the others wait. A process that
    # ends is noticed at once in any case.
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(days=1))
    try:
        yield world
    finally:
        dist.destroy_process_group()
