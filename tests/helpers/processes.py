"""Work in other processes, alone or in two at once as torchrun starts them.

They are forked from a process that has imported torch and the package, which would take each of them seconds.
"""

from __future__ import annotations

import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from torch import multiprocessing

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["pytest", "starfc.runs.assign", "starfc.runs.cluster", "starfc.training.trainer"])


def start(work: Callable[..., object], *arguments: object) -> BaseProcess:
    process = _CONTEXT.Process(target=work, args=arguments)
    process.start()
    return process


def start_two(work: Callable[..., object], *arguments: object) -> list[BaseProcess]:
    """Two processes that call ``work`` with their rank, the port for :func:`join`, and the arguments."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [start(work, rank, port, *arguments) for rank in range(2)]


def end(processes: list[BaseProcess]) -> None:
    """Wait for all; every one has to end well."""
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def kill(processes: list[BaseProcess]) -> bool:
    """Kill all; returns whether one was still at work."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
    return any(process.exitcode for process in processes)


def two(work: Callable[..., object], *arguments: object) -> None:
    end(start_two(work, *arguments))


def join(rank: int, port: int) -> None:
    """What torchrun sets in each of two processes."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"})


def run_script(command: Sequence[str], check: bool) -> None:
    """What ``subprocess.run`` does with ``[python, script, *arguments]``."""
    process = start(_as_main, *command[1:])
    process.join()
    if check and process.exitcode:
        raise subprocess.CalledProcessError(process.exitcode, command)


def _as_main(script: str, *arguments: str) -> None:
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")
