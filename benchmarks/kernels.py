"""Compare the throughput of the compiled kernels with the limits of the machine, with one thread and random data.

    python benchmarks/kernels.py [--rows 125688] [--json OUT]

* edge scores: one edge gathers a row of 512 float16 and computes 512 x (add, max, multiply-add). It is compared with a
  plain gather of the same rows (a sum of every 32nd entry, one per cache line), which moves the same bytes. Neighbours
  are within 800 rows of a node, as after sorting the nodes, or anywhere.
* selection: products are compared with floors that none reaches, by rows and by columns. It is compared with a plain
  sum of the same array.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numba as nb
import numpy as np
import torch

from harness import report
from starfc.graph.pools import Pools
from starfc.runtime.machine import set_threads
from starfc.runtime.simd import prefetch_row
from starfc.scoring.projection_kernels import Candidates, Scorer, score_rows

HIDDEN, NEIGHBOURS, EDGE_ROWS, TILE = 512, 80, 2048, 1024


def main() -> None:
    parser = argparse.ArgumentParser(description="Throughput of the compiled kernels.")
    parser.add_argument("--rows", type=int, default=125_688, metavar="N")
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    set_threads(1)
    report({"edges": edges(arguments.rows), "selection": selection()}, 1, arguments.json)


def seconds(run: Callable[[], object], repeats: int = 5) -> float:
    """Return the best CPU time of several runs, after one that compiles."""
    run()
    times = []
    for _ in range(repeats):
        started = time.thread_time()
        run()
        times.append(time.thread_time() - started)
    return min(times)


def edges(n: int) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(0)
    target = torch.from_numpy(rng.normal(size=(n, HIDDEN)).astype(np.float16))
    source = rng.normal(size=(EDGE_ROWS, HIDDEN)).astype(np.float32)
    scorer = Scorer(torch.zeros(HIDDEN), torch.from_numpy(rng.normal(size=HIDDEN).astype(np.float32)), 0.0)
    zeros, none = np.zeros(EDGE_ROWS, np.float32), torch.zeros(n)
    results = {}
    for name, near in (("neighbours near", 800), ("neighbours anywhere", n)):
        ids = rng.integers(0, min(near, n), (EDGE_ROWS, NEIGHBOURS)).astype(np.int32)
        listed = Candidates(np.arange(0, ids.size + 1, NEIGHBOURS), ids.ravel())
        ours = seconds(lambda ids=listed: score_rows(ids, source, target, 0, zeros, none, none, scorer, 0.0))
        gather = seconds(lambda ids=ids: plain_gather(ids, target.numpy().view(np.uint16)))
        moved = 2 * HIDDEN * ids.size / 1e9
        results[name] = {
            "ns_per_edge": ours / ids.size * 1e9,
            "gb_per_second": moved / ours,
            "plain_gather_gb_per_second": moved / gather,
            "gflops": 4 * HIDDEN * ids.size / ours / 1e9,
        }
    return results


@nb.njit(nogil=True)
def plain_gather(ids, target):
    total = 0
    for i in range(ids.shape[0]):
        for c in range(ids.shape[1]):
            prefetch_row(target, ids[i, min(c + 4, ids.shape[1] - 1)])
            row = target[ids[i, c]]
            for h in range(0, row.size, 32):
                total += row[h]
    return total


def selection() -> dict[str, dict[str, float]]:
    results = {}
    for dtype in (torch.bfloat16, torch.float32):
        products = torch.rand(TILE, TILE).to(dtype)
        pools = Pools.empty(TILE, 100, dtype, np.int32)
        pools.floor[:] = pools.floor.dtype.type(32_000)  # above every product
        bytes_moved = products.nbytes / 1e9
        results[str(dtype).removeprefix("torch.")] = {
            "rows_gb_per_second": bytes_moved
            / seconds(lambda p=pools, x=products: p.offer_rows(x, 0, np.arange(TILE)), 50),
            "columns_gb_per_second": bytes_moved / seconds(lambda p=pools, x=products: p.offer_columns(x, 0), 50),
            "plain_sum_gb_per_second": bytes_moved / seconds(lambda x=products: x.view(torch.int32).numpy().sum(), 50),
        }
    return results


if __name__ == "__main__":
    main()
