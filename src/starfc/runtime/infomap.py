"""Run the package infomap in a separate process. In one process with faiss it crashes: each loads its own OpenMP."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from starfc.errors import InputError
from starfc.runtime.extras import installed, needs

_BLOCK = 1 << 20  # the separate process reads this many links at a time
# the separate process gets the sys.path of this process, so that it imports the same modules
_START = """
import sys
sys.path[:] = sys.argv.pop(1).splitlines()
from starfc.runtime.infomap import _main
_main()
"""


def modules(
    links: Iterable[NDArray[np.float64]], num_nodes: int, *, directed: bool, seed: int, what: str = "Infomap"
) -> NDArray[np.int64]:
    """Compute the two-level modules of Infomap (one trial) in a separate process.

    Parameters
    ----------
    links : iterable of (m, 3) float64
        Blocks of links: source, target, weight.
    num_nodes : int
        Number of nodes N.
    directed : bool
        Whether the links are directed.
    seed : int
        Seed of Infomap's random numbers.
    what : str
        The feature that needs the package, for the message.

    Returns
    -------
    (N,) int64
        Module of every node; -1 for nodes without a link.

    Raises
    ------
    InputError
        The package is not installed.
    """
    if not installed("infomap"):
        raise InputError(needs("infomap", what))
    numbers = [str(int(number)) for number in (num_nodes, directed, seed)]
    command = [sys.executable, "-c", _START, "\n".join(map(os.path.abspath, sys.path)), *numbers]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            try:
                for block in links:
                    process.stdin.write(np.ascontiguousarray(block, np.float64).data)
                process.stdin.close()
            except BrokenPipeError:  # the process has ended; its exit code is checked below
                pass
            answer = process.stdout.read()
        except BaseException:
            process.kill()
            raise
    found = np.frombuffer(answer, np.int64)
    if process.returncode or len(found) != num_nodes:
        raise RuntimeError(f"the process of infomap ended with code {process.returncode}; see its messages on stderr")
    return found.copy()


def modules_here(
    links: Iterable[NDArray[np.float64]], num_nodes: int, *, directed: bool, seed: int
) -> NDArray[np.int64]:
    """Compute the same as :func:`modules` in this process, which must not import faiss."""
    from infomap import Infomap

    network, found = Infomap(silent=True, two_level=True, directed=directed, seed=seed, num_trials=1), None
    labels = np.full(num_nodes, -1, np.int64)
    for block in links:
        network.add_links(block)
        found = network
    if found is not None:  # Infomap raises an error for an empty network
        of_nodes = network.run().modules()
        labels[list(of_nodes)] = list(of_nodes.values())
    return labels


def _main() -> None:
    num_nodes, directed, seed = map(int, sys.argv[1:])
    answer = os.dup(1)
    os.dup2(2, 1)  # packages may print to stdout, which must hold only the answer
    found = modules_here(_blocks(), num_nodes, directed=bool(directed), seed=seed)
    with os.fdopen(answer, "wb") as out:
        out.write(found.data)


def _blocks() -> Iterator[NDArray[np.float64]]:
    while data := sys.stdin.buffer.read(_BLOCK * 24):
        yield np.frombuffer(data, np.float64).reshape(-1, 3)
