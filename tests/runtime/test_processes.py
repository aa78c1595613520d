"""Test that workers end with the process that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from helpers.paths import ROOT
from starfc.shards import engine
from starfc.training import contextual

DRIVER = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from starfc.runtime.processes import end_with_parent
pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent)
print(pool.submit(os.getpid).result(), flush=True)
time.sleep(60)
"""


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_worker_ends_when_the_process_that_started_it_is_killed():
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True, env=environment) as driver:
        worker = int(driver.stdout.readline())
        assert alive(worker)
        driver.send_signal(signal.SIGKILL)
    until = time.monotonic() + 20
    while alive(worker) and time.monotonic() < until:
        time.sleep(0.02)
    assert not alive(worker)


@pytest.mark.parametrize(("module", "prepare"), [(contextual, "_alone"), (engine, "_start_child")])
def test_workers_of_every_pool_end_so(monkeypatch, module, prepare):
    class Ends(Exception):
        pass

    def end_with_parent():
        raise Ends

    monkeypatch.setattr(module, "end_with_parent", end_with_parent)
    with pytest.raises(Ends):
        getattr(module, prepare)()
