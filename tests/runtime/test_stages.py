"""Test stages, progress and the record of the machine."""

from __future__ import annotations

import logging
import subprocess
import sys

import numpy as np
import pytest
import torch

import starfc
from starfc.errors import InputError
from starfc.runtime import memory
from starfc.runtime import progress as progress_module
from starfc.runtime import stages as stages_module
from starfc.runtime.machine import choose_device, environment
from starfc.runtime.stages import Stages, resident_bytes


def test_stages_measure_time_and_peak_memory():
    stages = Stages()
    with stages.stage("small"):
        pass
    with stages.stage("large", needs=200 << 20):
        assert np.ones(200 << 17).sum() == 200 << 17  # 200 MiB
    small, large = stages.finished
    assert large.peak_rss_mb > small.peak_rss_mb + 150
    assert large.seconds > 0
    assert "large" in stages.table()
    assert "total" in stages.table()


def test_a_stage_above_the_limit_does_not_start():
    started, limit = False, resident_bytes() + (1 << 30)  # the process that runs all tests holds gigabytes
    with (
        pytest.raises(InputError, match="memory_limit: stage 'big' needs about 2,048 MB"),
        Stages(limit).stage("big", 2 << 30),
    ):
        started = True
    assert not started


MAPPED = """
import sys
import numpy as np
from starfc.runtime.memory import release_unused
from starfc.runtime.stages import Stages, resident_bytes

array = np.lib.format.open_memmap(sys.argv[1], "w+", np.int64, (1 << 24,))
array[:] = 7
changed = np.load(sys.argv[1], mmap_mode="c")
changed[:] = 8
before = resident_bytes()
release_unused()
assert resident_bytes() < before - (100 << 20), (before, resident_bytes())
held = resident_bytes()
assert (array == 7).all() and (changed == 8).all()
assert resident_bytes() > held + (100 << 20)
Stages(held + (50 << 20)).require("next", 20 << 20)
assert array.sum() == 7 << 24
assert Stages(held + (50 << 20)).memory_left() > 20 << 20
print("released")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="pages are released on Linux only")
def test_pages_of_files_are_given_back_and_no_change_is_lost(tmp_path):
    done = subprocess.run([sys.executable, "-c", MAPPED, tmp_path / "x.npy"], capture_output=True, text=True)
    assert done.stdout == "released\n", done.stderr


def test_only_pages_of_files_are_given_back():
    start = "7f10-7f20 rw-s 00000000 fe:00 338846 "
    for kept in (
        "anon_inode:[io_uring]",
        "/dev/shm/sem.x (deleted)",
        "/dev/nvidia0",
        "/memfd:x (deleted)",
        "/SYSV00 x",
        "",
    ):
        assert not memory._SHARED.match(start + kept), kept
    for file in ("/home/a/x.npy", "/tmp/#338846 (deleted)", "/home/dev/x"):
        assert memory._SHARED.match(start + file)[2] == "7f20"
    assert not memory._SHARED.match("7f10-7f20 rw-p 00000000 fe:00 338846 /home/a/x.npy")


FREED = """
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from starfc.runtime.stages import Stages, resident_bytes

def work():
    np.ones(1 << 21)  # once freed, smaller arrays are taken from the heap
    arrays = [np.ones(1 << 16) for _ in range(400)]  # 200 MiB that the C library keeps
    last = np.ones(8)
    del arrays[:]
    return last

with ThreadPoolExecutor(1) as pool:
    last = pool.submit(work).result()
    held = resident_bytes()
    Stages(held + (30 << 20)).require("next", 100 << 20)
print("started")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the heap of glibc")
def test_freed_memory_does_not_count_against_the_limit():
    # in a process of its own, whose heap has no other free memory
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True)
    assert done.stdout == "started\n", done.stderr


def test_a_failing_stage_is_not_reported_as_finished():
    stages = Stages()
    with pytest.raises(ZeroDivisionError), stages.stage("bad"):
        raise ZeroDivisionError
    assert stages.finished == []


def test_progress_without_a_terminal_is_lines(capsys, monkeypatch):
    real = progress_module.tqdm
    monkeypatch.setattr(logging.getLogger("starfc"), "level", logging.INFO)  # another test may have been quiet
    monkeypatch.setattr(
        progress_module, "tqdm", lambda *a, **k: real(*a, **k | {"delay": 0, "mininterval": 0, "miniters": 1})
    )
    assert list(progress_module.progress("work", range(3))) == [0, 1, 2]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 3
    assert all(line.startswith("work") for line in lines)


def test_nothing_is_shown_for_what_is_over_at_once(capsys):
    list(progress_module.progress("work", range(3)))
    assert capsys.readouterr().err == ""


def test_short_stages_that_need_little_are_details(caplog, monkeypatch):
    caplog.set_level(logging.DEBUG, logger="starfc")
    for name, seconds in (("short", 0.5), ("long", 2.0)):
        clock = iter([0.0, seconds])
        monkeypatch.setattr(stages_module.time, "perf_counter", lambda clock=clock: next(clock))
        with Stages().stage(name, needs=1):
            pass
    Stages().require("large", 1 << 30)
    assert [(one.levelname, one.getMessage().split(",")[0]) for one in caplog.records] == [
        ("DEBUG", "short: needs about 0 MB"),
        ("DEBUG", "short: 0.5 s"),
        ("DEBUG", "long: needs about 0 MB"),
        ("INFO", "long: 2.0 s"),
        ("INFO", "large: needs about 1"),
    ]


def test_the_log_leaves_out_stages_of_samples_within_samples(caplog, monkeypatch):
    monkeypatch.setattr(stages_module, "_LONG", 0)
    caplog.set_level(logging.INFO, logger="starfc")
    stages = Stages()
    with stages.together("samples") as inner, inner.together("samples") as innermost:
        for some, name in ((inner, "outer"), (innermost, "detail")):
            with some.stage(name, needs=1):
                pass
    assert "samples: outer: 0.0 s" in caplog.text
    assert "needs about" not in caplog.text
    assert "detail" not in caplog.text
    assert [stage.name for stage in innermost.finished] == ["detail"]  # it is measured all the same


def test_the_record_names_versions_and_machine():
    record = environment(2, torch.device("cpu"))
    assert {"python", "torch", "numpy", "scipy", "numba"} <= set(record["versions"])
    assert record["versions"]["starfc"] == starfc.__version__
    assert record["machine"]["threads"] == 2
    assert record["machine"]["memory_mb"] > 0


def test_devices():
    assert choose_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        assert choose_device("auto").type == "cpu"
        with pytest.raises(InputError, match="'cuda:0' needs a GPU"):
            choose_device("cuda:0")
