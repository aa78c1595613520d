"""Run an entry point: logs go to stderr, and an error is one message."""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starfc.errors import InputError
from starfc.runtime.interrupts import Stopped, until_reported
from starfc.runtime.words import CONFIG, Words, use

_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_OF_NAMES = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR)


def run_command(main: Callable[[], object], words: Words = CONFIG) -> int:
    """Run an entry point and return the exit code of the process.

    A mistake in the input gives one message on stderr and exit code 2. A bug keeps its traceback.

    Parameters
    ----------
    main : callable
        The entry point.
    words : Words
        Names of the parameters in messages.
    """
    with until_reported():
        return end_code(lambda: _logged(main, words))


def _logged(main: Callable[[], object], words: Words) -> None:
    """Call ``main`` with the names of an interface in messages; logs and warnings go to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # file names may not be UTF-8
    logger = logging.getLogger("starfc")
    logger.addHandler(handler)
    try:
        with use(words), warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: logger.warning("%s", message)
            main()
    finally:
        logger.removeHandler(handler)


def end_code(main: Callable[[], object]) -> int:
    """Call ``main``, and return the exit code of the process; an error that is no bug becomes a message on stderr."""
    try:
        with _flushed():
            main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of the output, such as head, has closed it
        _drop_output()
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in (*_OF_WRITING, *_OF_NAMES):
            raise
        how = "written" if error.errno in _OF_WRITING else "opened"
        print(f"error: {_named(error)}: cannot be {how} ({error.strerror}); name another path", file=sys.stderr)
        _drop_output()
        return 2
    except Stopped as stop:
        if str(stop):
            print(stop, file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


@contextmanager
def _flushed() -> Iterator[None]:
    """Write all output at the end of the block, also at an exit, so that an error of writing is raised here."""
    try:
        yield
    except SystemExit:
        _flush()
        raise
    _flush()


def _flush() -> None:
    if sys.stdout is not None:  # None if the process was started with a closed stdout
        sys.stdout.flush()


def _drop_output() -> None:
    """Let output that cannot be written end nowhere; otherwise Python would try it again at the end, and complain."""
    try:
        _flush()
    except OSError:
        with open(os.devnull, "w") as nothing:  # noqa: PTH123
            os.dup2(nothing.fileno(), sys.stdout.fileno())


def _named(error: OSError) -> str:
    return os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "the output"
