"""Stages of a run: what each needs before it starts, what it took when it ended."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from starfc.errors import InputError
from starfc.runtime.words import advice, word

log = logging.getLogger("starfc")


@dataclass(frozen=True)
class Stage:
    """Seconds and peak resident memory (MiB) of one finished stage."""

    name: str
    seconds: float
    peak_rss_mb: float


@dataclass
class Stages:
    """Times stages and checks their memory.

    Parameters
    ----------
    memory_limit : int, optional
        Bytes this process may hold. A stage that is predicted to need more does not start.
    finished : list of Stage
        Those that have ended.
    """

    memory_limit: int | None = None
    finished: list[Stage] = field(default_factory=list)

    @contextmanager
    def together(self, name: str) -> Iterator[Stages]:
        """Stages that end as one of this name, with the time of all and the highest of their peaks."""
        inner, started = Stages(self.memory_limit), time.perf_counter()
        yield inner
        peak = max((stage.peak_rss_mb for stage in inner.finished), default=peak_rss_mb())
        self.finished.append(Stage(name, time.perf_counter() - started, peak))

    @contextmanager
    def stage(self, name: str, needs: int = 0) -> Iterator[None]:
        """Run one stage; ``needs`` is the memory in bytes that it will add, predicted from shapes."""
        self._check(name, needs)
        _reset_peak()
        started = time.perf_counter()
        yield
        self.finished.append(Stage(name, time.perf_counter() - started, peak_rss_mb()))
        log.info("%s: %.1f s, peak %.0f MB", name, self.finished[-1].seconds, self.finished[-1].peak_rss_mb)

    def memory_left(self) -> int | None:
        """Bytes between what this process holds and its limit, None where it has none.

        Raises
        ------
        InputError
            It holds more than its limit.
        """
        if self.memory_limit is None:
            return None
        held = resident_bytes()
        self._require_above(held)
        return self.memory_limit - held

    def _check(self, name: str, needs: int) -> None:
        log.info("%s: needs about %s", name, megabytes(needs))
        held = resident_bytes()
        self._require_above(held, f", and stage '{name}' needs about {megabytes(needs)} on top")
        if self.memory_limit is not None and held + needs > self.memory_limit:
            raise InputError(
                f"{word('memory_limit')}: stage '{name}' needs about {megabytes(needs)} on top of {megabytes(held)} "
                f"held, above the limit of {megabytes(self.memory_limit)}; raise it{advice(', lower {}', 'knn')}, or "
                "take fewer instances"
            )
        free = available_bytes()
        if free is not None and needs > free:
            log.warning("%s: needs about %s and the machine has %s free", name, megabytes(needs), megabytes(free))

    def _require_above(self, held: int, more: str = "") -> None:
        """No option makes the process itself smaller: a limit below what it holds can only be raised."""
        if self.memory_limit is not None and held > self.memory_limit:
            raise InputError(
                f"{word('memory_limit')}: the process itself holds {megabytes(held)}, above the limit of "
                f"{megabytes(self.memory_limit)}{more}; set a limit above what it holds, by what the data take"
            )

    def table(self) -> str:
        """Stage, seconds, share and peak memory, as text."""
        total = sum(s.seconds for s in self.finished) or 1.0
        lines = [f"{'stage':<24}{'seconds':>10}{'share':>8}{'peak MB':>10}"]
        lines += [
            f"{s.name:<24}{s.seconds:>10.2f}{s.seconds / total:>8.1%}{s.peak_rss_mb:>10.0f}" for s in self.finished
        ]
        peak = max((s.peak_rss_mb for s in self.finished), default=0.0)
        return "\n".join([*lines, f"{'total':<24}{total:>10.2f}{1:>8.0%}{peak:>10.0f}"])


def megabytes(count: int) -> str:
    """Bytes as 'n MB' (2^20)."""
    return f"{count / 2**20:,.0f} MB"


def resident_bytes() -> int:
    """Resident memory of this process now; its peak where the system does not tell."""
    return int(_proc_status("VmRSS") or peak_rss_mb() * 2**20)


def peak_rss_mb() -> float:
    """Peak resident memory in MiB: since the last reset on Linux, of the whole process elsewhere."""
    peak = _proc_status("VmHWM")
    if peak is not None:
        return peak / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def available_bytes() -> int | None:
    """Memory that the machine can still give, None where it does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # then the peak is the process's so far


def _proc_status(key: str) -> int | None:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
