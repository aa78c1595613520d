"""Running an entry point: logs on stderr, and errors as one message."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from starfc.errors import InputError
from starfc.runtime.interrupts import Stopped
from starfc.words import CONFIG, Words, use


def run_command(main: Callable[[], object], words: Words = CONFIG) -> int:
    """Run an entry point, whose messages speak in ``words``; the codes are those of the command line.

    A user's mistake is one message on stderr and exit code 2; a bug keeps its traceback.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.captureWarnings(True)
    loggers = [logging.getLogger("starfc"), logging.getLogger("py.warnings")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        with use(words):
            main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
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
