"""The command ``starfc``. Each of its commands has a module, and the module has one function of the same name.

These modules do not import torch or numba at the top. A command imports what it needs when it runs, so that help and
completion stay quick.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_type_hints

import typer
from typer.models import OptionInfo

import starfc
from starfc.commands.apply import apply
from starfc.commands.ask import ask
from starfc.commands.assign import assign
from starfc.commands.cluster import cluster
from starfc.commands.convert import convert
from starfc.commands.evaluate import evaluate
from starfc.commands.explain import explain
from starfc.commands.export import export
from starfc.commands.info import info
from starfc.commands.knn import knn
from starfc.commands.name import name
from starfc.commands.report import report
from starfc.commands.review import review
from starfc.commands.status import status
from starfc.commands.task import task
from starfc.commands.train import train
from starfc.commands.tune import tune
from starfc.commands.undo import undo
from starfc.runtime.entry import end_code, run_command
from starfc.runtime.words import PARAMETERS, Words

ABOUT = """Cluster faces, or any other embeddings, on their kNN graph by structure-aware clustering (STAR-FC).

Results go to stdout and to files. Progress and messages go to stderr. An output file is either replaced completely or
left as it was."""
EXIT_CODES = """Exit codes: 0 success; 2 a mistake in the command, an option or a file, explained in one message on
stderr; 130 interrupted; 128 + N training was stopped by signal N and wrote a checkpoint; 1 a bug, with its
traceback."""

app = typer.Typer(
    name="starfc",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _reported(command: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command in :func:`run_command` and make the code that it returns the exit code of the process."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        code = run_command(lambda: command(*arguments, **options), words_of(command))
        if code:
            raise typer.Exit(code)

    return run


def words_of(command: Callable[..., None]) -> Words:
    """Read from a command's signature which parameters it has, and the name of the option for each."""
    own = {}
    for parameter, hint in get_type_hints(command, include_extras=True).items():
        for about in get_args(hint):
            if isinstance(about, OptionInfo):
                long = [text for text in about.param_decls or () if text.startswith("--")]
                own[parameter] = long[0] if long else "--" + parameter.replace("_", "-")
    named = {parameter: parameter for parameter in own} | PARAMETERS
    known = {key: own[parameter] for key, parameter in named.items() if parameter in own}
    known |= {f"starfc {other.__name__}": f"starfc {other.__name__}" for other in COMMANDS}
    return Words(known, "--set {}".format if "setting" in own else str, whole="setting" in own)


def _version(asked: bool) -> None:
    if asked:
        print(starfc.__version__)
        raise typer.Exit


@app.callback(help=ABOUT, epilog=EXIT_CODES)
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


COMMANDS = (
    cluster, assign, ask, apply, undo, name, explain, report, review, export, train, evaluate, knn, tune, convert, info,
    status, task,
)  # fmt: skip
for _command in COMMANDS:
    app.command()(_reported(_command))


def main() -> None:
    """Run the command line: the entry point of ``starfc``."""
    sys.exit(end_code(lambda: app(prog_name="starfc")))  # the help and the version are written outside all commands
