"""Run one task of a stage. This is what every engine calls, and ``starfc task``."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from starfc.errors import InputError
from starfc.runtime.stages import peak_rss_mb, reset_peak
from starfc.shards import communities, edges, projections, scores, search
from starfc.shards.run import ShardRun
from starfc.shards.store import Store

Task = Callable[[ShardRun, str, int], dict[str, NDArray]]

#: The function of each kind of stage. A stage's name is its kind, and a number if there are several.
STAGES: dict[str, Task] = {
    "exact": search.exact,
    "cells": search.probe,
    "pairs": search.pairs,
    "back": search.back,
    "sweep": search.swept,
    "near": scores.near,
    "smooth": scores.smooth,
    "first": scores.first,
    "codes": scores.codes,
    "second": scores.second,
    "project": projections.project,
    "parse": projections.parse,
    "edges": edges.edges,
    "forest": edges.forest,
    "within": edges.within,
    "modules": communities.modules,
    "joined": communities.joined,
}

#: The kinds of which there are several stages, each with its number: ``sweep-0``, ``sweep-1``.
NUMBERED = {"cells", "pairs", "back", "sweep", "second", "edges", "forest", "within", "modules", "joined"}

_runs: dict[str, ShardRun] = {}


def opened(url: str) -> ShardRun:
    """Return the run of a store, opened once per process."""
    if url not in _runs:
        _runs[url] = ShardRun.open(Store(url))
    return _runs[url]


def kind_of(stage: str) -> str | None:
    """Return the kind of a stage; None if no stage can have this name."""
    found = re.fullmatch(r"([a-z]+)(-\d+)?", stage)
    if found is None or found[1] not in STAGES or (found[1] in NUMBERED) != bool(found[2]):
        return None
    return found[1]


def run_task(run: ShardRun, stage: str, index: int) -> dict[str, Any]:
    """Run a task and store its arrays; return its seconds, peak memory in MB, and bytes read.

    Raises
    ------
    InputError
        There is no such stage or task.
    DamagedError
        An array that the task needs is damaged or missing.
    """
    kind = kind_of(stage)
    if kind is None:
        raise InputError(
            f"stage: one of {', '.join(STAGES)} needed, with its number if there are several; found {stage!r}"
        )
    count = run.count(stage)
    if not 0 <= index < count:
        raise InputError(f"task: a number from 0 to {count - 1} needed; found {index}")
    reset_peak()
    started, before, asked = time.perf_counter(), run.store.bytes_read, run.digest_of_input(stage)
    arrays = STAGES[kind](run, stage, index)
    record = {
        "seconds": time.perf_counter() - started,
        "peak_rss_mb": peak_rss_mb(),
        "bytes_read": run.store.bytes_read - before,
        "at": time.time(),
        "input": asked,
    }
    run.store.save(stage, index, arrays, **record)
    return record
