"""Pass values from the tasks of one stage to those of the next, by the place that they are for.

Each task sorts its values by the shard of their target, and stores them with the start of each shard's part. A task of
the next stage reads its part from all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from starfc.shards.run import ShardRun


def bucketed(targets: NDArray[np.integer], parts: dict[str, NDArray], size: int, count: int) -> dict[str, NDArray]:
    """Return values as arrays to store: sorted by the shard of their target, with ``starts`` (count + 1,).

    Parameters
    ----------
    targets : (m,) integers
        The place that each value is for.
    parts : dict of (m, ...) arrays
        The values; they keep their order within a shard.
    size, count : int
        Places of each shard, and number of shards.
    """
    of = targets // size
    order = np.argsort(of, kind="stable")
    starts = np.searchsorted(of[order], np.arange(count + 1))
    return {"starts": starts, "target": targets[order]} | {name: array[order] for name, array in parts.items()}


def received(run: ShardRun, stage: str, index: int, parts: Sequence[str]) -> list[NDArray]:
    """Return the values that all tasks of ``stage`` stored for shard ``index``, in the order of the tasks.

    The first array has the targets, followed by the ``parts``.
    """
    found: list[list[NDArray]] = [[] for _ in ("target", *parts)]
    for task in range(run.count(stage)):
        starts = run.load(stage, task, "starts")
        mine = slice(int(starts[index]), int(starts[index + 1]))
        if mine.start < mine.stop or task == 0:
            for array, part in zip(found, ("target", *parts), strict=True):
                array.append(run.load(stage, task, part)[mine])
    return [np.concatenate(arrays) for arrays in found]
