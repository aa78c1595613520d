"""What the entry points share: arguments of a config, logging, and errors as one message."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence

from mmengine.config import DictAction

from starfc.config import Config, load_config
from starfc.errors import InputError
from starfc.runtime.interrupts import Stopped


class _Options(DictAction):
    """KEY=VALUE pairs, added up where given more than once; one without '=' is a usage error, not a traceback."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Sequence[str],
        option_string: str | None = None,
    ) -> None:
        for value in values:
            if "=" not in value:
                parser.error(f"{option_string}: KEY=VALUE needed; found {value!r}")
        before = getattr(namespace, self.dest)
        super().__call__(parser, namespace, values, option_string)
        setattr(namespace, self.dest, {**before, **getattr(namespace, self.dest)})


def config_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    """Add --config and --cfg-options."""
    parser.add_argument("--config", default=default, metavar="FILE", help="config file (default: %(default)s)")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=_Options,
        default={},
        metavar="KEY=VALUE",
        help="override config keys, such as tau1=0.8 model.kwargs.nhid=256",
    )


def read_config(arguments: argparse.Namespace) -> Config:
    """Load the config of the parsed arguments, and set the log level it asks for."""
    config = load_config(arguments.config, arguments.cfg_options)
    logging.getLogger("starfc").setLevel(config.log_level)
    return config


def run_command(main: Callable[[], object]) -> int:
    """Run an entry point. A user's mistake is one message on stderr and exit code 2; a bug keeps its traceback."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.captureWarnings(True)
    loggers = [logging.getLogger("starfc"), logging.getLogger("py.warnings")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
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
