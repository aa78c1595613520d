"""Stages of a run: check the memory before each stage, and measure its time and memory."""

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
from starfc.runtime.memory import release_unused
from starfc.runtime.words import advice, word

log = logging.getLogger("starfc")

_LONG, _LARGE = 1.0, 1 << 30  # seconds and bytes; messages about less than that are details


@dataclass(frozen=True)
class Stage:
    """Name, seconds and peak resident memory (MiB) of one finished stage."""

    name: str
    seconds: float
    peak_rss_mb: float


@dataclass
class Stages:
    """The stages of a run. It measures the time of each, and checks the memory limit.

    Parameters
    ----------
    memory_limit : int, optional
        Bytes that this process may hold. A stage that is predicted to need more does not start.
    finished : list of Stage
        The finished stages.
    within : str
        What the log writes before the name of a stage.
    """

    memory_limit: int | None = None
    finished: list[Stage] = field(default_factory=list)
    within: str = ""

    @contextmanager
    def together(self, name: str) -> Iterator[Stages]:
        """Yield new stages, and record them as one stage ``name`` with their total time and highest peak."""
        inner, started = Stages(self.memory_limit, within=f"{self.within}{name}: "), time.perf_counter()
        yield inner
        peak = max((stage.peak_rss_mb for stage in inner.finished), default=peak_rss_mb())
        self.finished.append(Stage(name, time.perf_counter() - started, peak))

    @contextmanager
    def stage(self, name: str, needs: int = 0) -> Iterator[None]:
        """Run the block as one stage. ``needs`` is the memory in bytes that it will add, predicted from shapes."""
        self.require(name, needs)
        reset_peak()
        started = time.perf_counter()
        yield
        self.finished.append(Stage(name, time.perf_counter() - started, peak_rss_mb()))
        done = self.finished[-1]
        level = self._level(done.seconds >= _LONG)
        log.log(level, "%s%s: %.1f s, peak %.0f MB", self.within, name, done.seconds, done.peak_rss_mb)

    def _level(self, matters: bool) -> int:
        """Return the level of a message: stages within a stage within a stage (samples of samples) are details."""
        return logging.INFO if matters and self.within.count(": ") < 2 else logging.DEBUG

    def memory_left(self) -> int | None:
        """Return the bytes that this process may still take. None if there is no limit.

        Raises
        ------
        InputError
            The process already holds more than its limit.
        """
        if self.memory_limit is None:
            return None
        held = _held_bytes()
        self._require_above(held)
        return self.memory_limit - held

    def require(self, name: str, needs: int) -> None:
        """Raise InputError if a stage that needs this memory, in bytes, would exceed the limit."""
        if needs:
            log.log(self._level(needs >= _LARGE), "%s%s: needs about %s", self.within, name, megabytes(needs))
        held = _held_bytes()
        self._require_above(held, f", and stage '{name}' needs about {megabytes(needs)} more")
        if self.memory_limit is not None and held + needs > self.memory_limit:
            raise InputError(
                f"{word('memory_limit')}: stage '{name}' needs about {megabytes(needs)} in addition to the "
                f"{megabytes(held)} in use, above the limit of {megabytes(self.memory_limit)}; raise the limit"
                f"{advice(', lower {}', 'knn')}, or use fewer instances"
            )
        free = available_bytes()
        if free is not None and needs > free:
            log.warning("%s: needs about %s, but the machine has %s free", name, megabytes(needs), megabytes(free))

    def _require_above(self, held: int, more: str = "") -> None:
        """Raise InputError if the process holds more than its limit. ``more`` is added to the message."""
        if self.memory_limit is not None and held > self.memory_limit:
            raise InputError(
                f"{word('memory_limit')}: the process itself uses {megabytes(held)}, above the limit of "
                f"{megabytes(self.memory_limit)}{more}; set a limit above the sum of this and the memory for the data"
            )

    def table(self) -> str:
        """Return a table of stage, seconds, share and peak memory, as text."""
        total = sum(s.seconds for s in self.finished) or 1.0
        lines = [f"{'stage':<24}{'seconds':>10}{'share':>8}{'peak MB':>10}"]
        lines += [
            f"{s.name:<24}{s.seconds:>10.2f}{s.seconds / total:>8.1%}{s.peak_rss_mb:>10.0f}" for s in self.finished
        ]
        peak = max((s.peak_rss_mb for s in self.finished), default=0.0)
        return "\n".join([*lines, f"{'total':<24}{total:>10.2f}{1:>8.0%}{peak:>10.0f}"])


def _held_bytes() -> int:
    """Return the memory that this process holds after it has given back what it does not need."""
    release_unused()
    return resident_bytes()


def megabytes(count: int) -> str:
    """Return a number of bytes as text 'n MB', in units of 2^20 bytes."""
    return f"{count / 2**20:,.0f} MB"


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes, or its peak if the system does not report it."""
    return int(_proc_status("VmRSS") or peak_rss_mb() * 2**20)


def peak_rss_mb() -> float:
    """Return the peak resident memory in MiB: on Linux since the last reset, elsewhere of the whole process."""
    peak = _proc_status("VmHWM")
    if peak is not None:
        return peak / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def available_bytes() -> int | None:
    """Return the free memory of the machine in bytes. None if the system does not report it."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def reset_peak() -> None:
    """Let :func:`peak_rss_mb` begin anew, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # then the peak is that of the whole process so far


def _proc_status(key: str) -> int | None:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
