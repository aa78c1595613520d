"""Run a function in two processes that are set up as torchrun does."""

from __future__ import annotations

import os
import socket

from torch import multiprocessing


def join(rank: int, port: int) -> None:
    """What torchrun sets in each of two processes."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"})


def two(work, *arguments: object) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(work, (port, *arguments), nprocs=2)
