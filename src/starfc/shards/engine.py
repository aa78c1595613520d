"""Run the tasks of a stage: on this machine, or on a cluster with Ray.

Tasks are idempotent and independent, and their results are files. So an engine only decides where a task runs. Both
keep at most twice as many tasks in flight as there are workers, start a task again whose worker has died, and redo the
task that made a damaged array.
"""

from __future__ import annotations

import logging
import multiprocessing
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Protocol

from starfc.errors import InputError
from starfc.runtime.extras import require
from starfc.runtime.kernel_cache import lock_kernel_cache
from starfc.runtime.machine import memory_mb, set_threads
from starfc.runtime.processes import end_with_parent
from starfc.runtime.progress import progress
from starfc.runtime.words import word
from starfc.shards.run import ShardRun
from starfc.shards.store import DamagedError
from starfc.shards.tasks import kind_of, opened, run_task
from starfc.storage.safe import first_line

log = logging.getLogger("starfc")

_POLL = 1.0  # seconds between looks at a store whose tasks others run
_TRIES = 4  # times that a task is started if its workers die


class Engine(Protocol):
    """A place where tasks run."""

    workers: int
    memory: int | None  #: bytes of the largest machine, None if not known

    def submit(self, run: ShardRun, stage: str, index: int, needs: int) -> Any:
        """Start a task that needs this memory, in bytes; return a handle."""

    def finished(self, handles: list[Any]) -> list[tuple[Any, BaseException | None]]:
        """Wait until a task ends; return the handles of the tasks that have, with their errors."""

    def is_lost(self, error: BaseException) -> bool:
        """Return whether a task ended because its worker died."""


def run_stage(engine: Engine, run: ShardRun, stage: str, predicted: Sequence[int] = ()) -> None:
    """Run the tasks of a stage that are not finished.

    ``predicted`` is the memory of each task, in bytes. Without it, a task is expected to need as much as the one that
    needed most so far; the first ones of a stage start without an expectation.
    """
    needs = 0
    count = run.count(stage)
    todo = [(stage, index) for index in sorted(set(range(count)) - run.finished(stage), reverse=True)]
    tries: Counter[tuple[str, int]] = Counter()
    running: dict[Any, tuple[str, int]] = {}
    blocked: dict[tuple[str, int], list[tuple[str, int]]] = {}  # by the task that makes a damaged array again
    with progress(stage, total=count, done=count - len(todo), unit="task") as bar:
        while todo or running:
            while todo and len(running) < 2 * max(engine.workers, 1):
                task = todo.pop()
                expected = predicted[task[1]] if predicted and task[0] == stage else needs
                running[engine.submit(run, *task, expected)] = task
            for handle, error in engine.finished(list(running)):
                task = running.pop(handle)
                if error is None:
                    needs = max(needs, run.peak_of(*task))
                    bar.update(task[0] == stage)
                    todo += blocked.pop(task, [])
                    continue
                tries[task] += 1
                if engine.is_lost(error):
                    if tries[task] == _TRIES:
                        raise InputError(
                            f"{_name(task)}: its worker died {_TRIES} times; most often the memory is too small: use "
                            f"fewer {word('workers')} per machine, or a smaller {word('shard_rows')}"
                        ) from error
                    log.warning("%s: its worker died; it starts again", _name(task))
                    todo.append(task)
                elif isinstance(error, DamagedError) and tries[task] < _TRIES:
                    source = error.stage, error.index
                    if source in blocked:
                        blocked[source].append(task)
                    elif _forget(run, error):
                        todo.append(source)
                        blocked[source] = [task]
                    else:
                        todo.append(task)
                elif isinstance(error, DamagedError):
                    raise InputError(f"{error}; it was made again, and damaged again; look at the disk") from error
                else:
                    raise error


def mend(engine: Engine, run: ShardRun, error: DamagedError) -> None:
    """Make a damaged array again by its task."""
    if _forget(run, error):
        run_stage(engine, run, error.stage)


def _forget(run: ShardRun, error: DamagedError) -> bool:
    """Mark the task that made a damaged array as not finished; return False if the array is whole by now."""
    if run.store.is_whole(error.stage, error.index):
        return False
    run.store.forget(error.stage, error.index)
    if kind_of(error.stage) is None:  # the driver makes it, at the start of a run
        raise InputError(f"{error}; start the same command again, which makes it anew") from error
    log.warning("%s; it is made again", error)
    return True


def _name(task: tuple[str, int]) -> str:
    return f"{task[0]}/{task[1]:05d}"


class LocalEngine:
    """Processes on this machine. With 0 workers, tasks run in this process.

    Parameters
    ----------
    workers : int
        Number of processes.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        known = memory_mb()
        self.memory: int | None = None if known is None else known << 20
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, run: ShardRun, stage: str, index: int, needs: int) -> Future:
        if self.workers == 0:
            done: Future = Future()
            try:
                done.set_result(run_task(run, stage, index))
            except DamagedError as error:
                done.set_exception(error)
            return done
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.workers, multiprocessing.get_context("spawn"), initializer=_start_child
            )
        try:
            return self._pool.submit(_task, run.store.url, stage, index)
        except BrokenProcessPool:
            self._pool = None
            return self.submit(run, stage, index, needs)

    def finished(self, handles: list[Future]) -> list[tuple[Future, BaseException | None]]:
        done, _ = wait(handles, return_when=FIRST_COMPLETED)
        return [(handle, handle.exception()) for handle in done]

    def is_lost(self, error: BaseException) -> bool:
        return isinstance(error, BrokenProcessPool)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _start() -> None:
    lock_kernel_cache()
    set_threads(1)


def _start_child() -> None:
    """Prepare a process of :class:`LocalEngine`."""
    end_with_parent()
    _start()


def _task(url: str, stage: str, index: int) -> dict[str, Any]:
    return run_task(opened(url), stage, index)


class RayEngine:
    """Workers of a Ray cluster (Ray Core, tasks only). State is files, so tasks return numbers only.

    Parameters
    ----------
    address : str, optional
        Address of the cluster: ``auto``, or HOST:PORT. Default: a cluster on this machine, which ends with the run.
    workers : int
        Processors of a cluster on this machine. With an address, the cluster says how many it has.
    """

    def __init__(self, address: str | None, workers: int) -> None:
        require("ray", "--engine ray")
        import ray

        self._ray = ray
        try:
            _require_open(address)
            ray.init(  # without an address, Ray itself would look for a cluster that runs already
                address or "local", num_cpus=None if address else workers, log_to_driver=False,
                logging_level=logging.ERROR, include_dashboard=False if address is None else None,
            )  # fmt: skip
        except OSError as error:
            raise InputError(
                f"--address: no Ray cluster at {address!r} ({first_line(error)}); start one with `ray start --head`, "
                "or leave --address out to use this machine"
            ) from None
        self.workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
        memories = [int(node["Resources"].get("memory", 0)) for node in ray.nodes()]
        self.memory: int | None = max(memories, default=0) or None
        self._remote = ray.remote(_ray_task)

    def submit(self, run: ShardRun, stage: str, index: int, needs: int) -> Any:
        # `memory` only schedules: it keeps a machine from getting more tasks than fit
        options = self._remote.options(num_cpus=1, max_retries=0, memory=needs or None)
        return options.remote(run.store.url, stage, index)

    def finished(self, handles: list[Any]) -> list[tuple[Any, BaseException | None]]:
        done, _ = self._ray.wait(handles, num_returns=1)
        return [(handle, self._error(handle)) for handle in done]

    def _error(self, handle: Any) -> BaseException | None:
        try:
            damaged = self._ray.get(handle)
        except self._ray.exceptions.RayTaskError as error:
            return error.cause if isinstance(error.cause, InputError | OSError) else error
        except self._ray.exceptions.RayError as error:
            return error
        return DamagedError(*damaged) if damaged else None

    def is_lost(self, error: BaseException) -> bool:
        lost = self._ray.exceptions
        return isinstance(
            error, lost.WorkerCrashedError | lost.NodeDiedError | lost.OutOfMemoryError | lost.ObjectLostError
        )

    def close(self) -> None:
        self._ray.shutdown()


def _require_open(address: str | None) -> None:
    """Raise OSError if nothing listens at an address HOST:PORT. Ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=5).close()


def _ray_task(url: str, stage: str, index: int) -> tuple[str, int, str] | None:
    """Run a task on a Ray worker; return which array was damaged, if one was."""
    _start()
    try:
        run_task(opened(url), stage, index)
    except DamagedError as error:
        return error.stage, error.index, error.why
    return None


class WaitEngine:
    """Tasks that others run: ``starfc task`` in a job array, for example of SLURM. This process waits for their files.

    As long as tasks are not finished, ``waiting.json`` names their stage and the number of its tasks. A task whose
    worker dies is not noticed; it must be started again by the same means.
    """

    workers = 1 << 30  # all tasks of a stage are waited for at the same time
    memory: int | None = None

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, int], ShardRun] = {}
        self._announced: tuple[ShardRun, str] | None = None

    def submit(self, run: ShardRun, stage: str, index: int, needs: int) -> tuple[str, int]:
        if self._announced is None or self._announced[1] != stage:
            self._announced = run, stage
            run.store.write_json("waiting.json", {"stage": stage, "tasks": run.count(stage)})
            last = run.count(stage) - 1
            log.info("%s: waiting for `starfc task %s %s I`, I from 0 to %d", stage, run.store.url, stage, last)
        self._waiting[stage, index] = run
        return stage, index

    def finished(self, handles: list[tuple[str, int]]) -> list[tuple[tuple[str, int], BaseException | None]]:
        while True:
            done = []
            for stage in {stage for stage, _ in handles}:
                run = next(self._waiting[handle] for handle in handles if handle[0] == stage)
                there = run.finished(stage)
                done += [handle for handle in handles if handle[0] == stage and handle[1] in there]
            if len(done) == len(handles):
                self.close()
            if done:
                return [(handle, None) for handle in done]
            time.sleep(_POLL)

    def is_lost(self, error: BaseException) -> bool:
        return False

    def close(self) -> None:
        if self._announced is not None:
            self._announced[0].store.remove_json("waiting.json")
            self._announced = None


@contextmanager
def engine_of(name: str, workers: int, address: str | None) -> Iterator[LocalEngine | RayEngine | WaitEngine]:
    """Yield an engine by its name: 'local', 'ray' or 'wait'. Each task has one thread, so tasks do not share cores."""
    engine: LocalEngine | RayEngine | WaitEngine
    lock_kernel_cache()
    if name == "ray":
        engine = RayEngine(address, workers)
    elif name == "wait":
        engine = WaitEngine()
    else:
        engine = LocalEngine(workers)
    try:
        yield engine
    finally:
        engine.close()
