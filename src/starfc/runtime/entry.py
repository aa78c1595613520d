"""Running an entry point: logs on stderr, and errors as one message."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
from collections.abc import Callable

from starfc.errors import InputError
from starfc.runtime.atomic import unwritable
from starfc.runtime.interrupts import Stopped

_OF_THE_SYSTEM = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG,
    errno.EISDIR, errno.ENOTDIR,
)  # fmt: skip


def run_command(main: Callable[[], object]) -> int:
    """Run an entry point. A user's mistake is one message on stderr and exit code 2; a bug keeps its traceback."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.captureWarnings(True)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    loggers = [logging.getLogger("starfc"), logging.getLogger("py.warnings")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in _OF_THE_SYSTEM:
            raise
        print(f"error: {unwritable(_named(error), error)}", file=sys.stderr)
        return 2
    except Stopped as stop:
        if str(stop):
            print(stop, file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        logging.captureWarnings(False)
    return 0


def _named(error: OSError) -> str:
    return os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "the output"
