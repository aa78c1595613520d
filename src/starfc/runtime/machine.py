"""Record versions, commit and machine of a run, and set its threads and its device."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import torch

from starfc.errors import InputError
from starfc.runtime.words import word
from starfc.version import __version__

log = logging.getLogger("starfc")

_PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "faiss-cpu",
    "faiss-gpu",
    "numba",
    "mmengine-lite",
    "scikit-learn",
    "pyarrow",
)


def set_threads(threads: int | None, processes: int = 1) -> int:
    """Set the number of threads of torch and numba, and return it.

    Parameters
    ----------
    threads : int or None
        Number of threads. None: the cores divided by ``processes``. If there are fewer cores, it is lowered to their
        number, with a warning.
    processes : int
        Number of processes on this machine.
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = threads or max(1, available // processes)
    if count > available:
        log.warning("threads: %d requested, but there are %d cores; using %d threads", count, available, available)
        count = available
    most = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]  # numba sets it when it reads the environment
    numba.set_num_threads(min(count, most))  # the first time it starts its threads, which sets those of torch too
    torch.set_num_threads(count)
    return count


def choose_device(device: str, local_rank: int = 0) -> torch.device:
    """Return the torch device for a name: 'auto', 'cpu', 'cuda' or 'cuda:N'.

    'auto' is a GPU if torch finds one that computes, and the CPU otherwise. 'auto' and 'cuda' mean GPU number
    ``local_rank``, which is the rank of this process on its machine.

    Raises
    ------
    InputError
        A GPU is requested, and torch finds none, or none of this number, or cannot compute there.
    """
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError(
            f"{word('device')}: {device!r} needs a GPU that torch can use; found none; use 'cpu' or 'auto'"
        )
    chosen, count = torch.device("cuda" if device == "auto" else device), torch.cuda.device_count()
    if chosen.index is None:
        chosen = torch.device("cuda", local_rank)
    elif chosen.index >= count:
        raise InputError(
            f"{word('device')}: cuda:0 to cuda:{count - 1} needed; found {device!r}, but torch finds {count} "
            f"GPU{'s' * (count != 1)}; use one of them, or 'cpu'"
        )
    try:  # a GPU can be too old for this build of torch, reserved by another process, or full
        torch.ones(1, device=chosen).add_(1).item()
    except RuntimeError as error:
        reason = f"torch cannot compute on {chosen} ({str(error).partition(chr(10))[0]})"
        if device != "auto":
            raise InputError(f"{word('device')}: {reason}; use another GPU, or 'cpu'") from None
        log.warning("%s: %s; the CPU is used", word("device"), reason)
        return torch.device("cpu")
    return chosen


def environment(threads: int, device: torch.device) -> dict[str, Any]:
    """Return versions, git commit, machine and command line, for the record of a run."""
    return {
        "versions": {"python": platform.python_version(), "starfc": __version__}
        | {p: v for p in _PACKAGES if (v := _version(p))},
        "git": git_state(),
        "machine": {
            "platform": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "memory_mb": memory_mb(),
            "threads": threads,
            "device": str(device),
            "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        },
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def git_state() -> dict[str, Any] | None:
    """Return the commit of the package's checkout, and whether its files were changed. None without a checkout."""
    root = Path(__file__).resolve().parent
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(root, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()


def memory_mb() -> int | None:
    """Return the memory of this machine, in MB; None if the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    except (ValueError, OSError, AttributeError):
        return None
