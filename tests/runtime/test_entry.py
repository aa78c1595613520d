"""Test how an entry point ends."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from helpers.paths import ROOT

# a library whose destructor aborts, as those of threads that still run can; and a function that Python calls at its end
FAULTY = """
import atexit, ctypes, sys
library = ctypes.CDLL(None)
library.__cxa_atexit(ctypes.cast(library.abort, ctypes.c_void_p), None, None)
atexit.register(print, "the end")
"""
STARFC = "sys.argv[1:] = {}; from starfc.commands import main; main()"
SCRIPT = "from starfc.runtime.entry import leave, run_command; leave(run_command(lambda: print('done')))"


@pytest.mark.skipif(sys.platform != "linux", reason="uses a function of glibc")
@pytest.mark.parametrize(
    ("code", "ends", "said"),
    [
        (STARFC.format(["--version"]), 0, "0."),
        (STARFC.format(["info", "nothing.npy"]), 2, ""),
        (SCRIPT, 0, "done\n"),
        ("", -6, ""),
    ],
)
def test_a_fault_in_the_destructor_of_a_library_does_not_end_a_finished_command(code, ends, said):
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", FAULTY + code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == ends
    assert done.stdout.startswith(said)
    assert done.stdout.endswith("the end\n")
