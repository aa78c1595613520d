"""``starfc task``: run one task of a run on shards."""

from __future__ import annotations

from typing import Annotated

import typer

from starfc.commands import options
from starfc.commands.status import StoreName


def task(
    store: StoreName,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="Name of the stage, as `starfc status` shows it.")],
    index: Annotated[int, typer.Argument(metavar="I", help="Number of the task, from 0.")],
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    quiet: options.QuietText = False,
) -> None:
    """Run one task of a run on shards, for job arrays such as those of SLURM.

    `starfc cluster --engine wait` writes the store, and waits for the tasks of each stage. A task that is finished is
    not run again.
    """
    options.set_messages(quiet)
    from starfc.errors import InputError
    from starfc.runtime.kernel_cache import lock_kernel_cache
    from starfc.runtime.machine import set_threads
    from starfc.shards.run import ShardRun
    from starfc.shards.store import DamagedError, Store
    from starfc.shards.tasks import kind_of, run_task

    lock_kernel_cache()
    set_threads(threads)
    opened = Store(store)
    run = ShardRun.open(opened)
    if kind_of(stage) is not None and index in run.finished(stage):
        options.show({}, f"{stage}/{index:05d}: finished before", as_json=False, quiet=quiet)
        return
    try:
        record = run_task(run, stage, index)
    except DamagedError as error:
        if kind_of(error.stage) is None:  # the driver makes it, at the start of a run
            raise InputError(f"{error}; end `starfc cluster`, and start it again") from None
        if not opened.is_whole(error.stage, error.index):
            opened.forget(error.stage, error.index)
        raise InputError(
            f"{error}; run its task again, then this one: starfc task {store} {error.stage} {error.index}"
        ) from None
    seconds, peak = record["seconds"], record["peak_rss_mb"]
    options.show(record, f"{stage}/{index:05d}: {seconds:.1f} s, peak {peak:,.0f} MB", as_json=False, quiet=quiet)
