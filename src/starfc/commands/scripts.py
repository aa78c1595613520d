"""Arguments that the scripts share (train.py, test_final.py, test_dynamic.py), and the code that runs them.

This module does not import torch or numba before the arguments are read, so that help and error messages stay quick.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, get_args

from mmengine.config import DictAction

from starfc.commands import options
from starfc.config.config import Config, load_config, stored_config
from starfc.config.schema import nested
from starfc.errors import MissingFileError
from starfc.runtime.entry import run_command as run_command
from starfc.storage.opened import opened


class _Options(DictAction):
    """KEY=VALUE pairs. A repeated option adds pairs; a value without '=' is a usage error instead of a traceback."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Sequence[str],
        option_string: str | None = None,
    ) -> None:
        for value in values:
            if "=" not in value:
                parser.error(f"{option_string}: needs KEY=VALUE; found {value!r}")
        before = getattr(namespace, self.dest)
        super().__call__(parser, namespace, values, option_string)
        setattr(namespace, self.dest, {**before, **getattr(namespace, self.dest)})


class _Sets(argparse.Action):
    """An option that overrides a config key: ``const`` is the key, or, of a flag, the key and its value."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        key, value = self.const if self.nargs == 0 else (self.const, values)
        namespace.cfg_options = {**namespace.cfg_options, key: value}


def config_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    """Add --config, --cfg-options, --threads, --quiet and --verbose."""
    _add_config(parser, default)
    _add_options(parser)


def _add_config(parser: argparse._ActionsContainer, default: str) -> None:
    parser.add_argument("--config", default=default, metavar="FILE", help="config file (default: %(default)s)")


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=_Options,
        default={},
        metavar="KEY=VALUE",
        help="override config keys, such as tau1=0.8 model.kwargs.nhid=256",
    )
    shared: dict[str, Any] = {"action": _Sets, "dest": "cfg_options", "default": argparse.SUPPRESS}
    parser.add_argument(
        "--threads", const="threads", type=int, metavar="N", help="CPU threads (default: the config's)", **shared
    )
    levels = parser.add_mutually_exclusive_group()
    for name, level, about in (
        ("quiet", "WARNING", "no progress and no messages, only warnings, errors and the result"),
        ("verbose", "DEBUG", "details too: every stage, also short ones, and its memory"),
    ):
        levels.add_argument(f"-{name[0]}", f"--{name}", nargs=0, const=("log_level", level), help=about, **shared)


def read_config(arguments: argparse.Namespace) -> Config:
    """Load the config that the parsed arguments name, and set the log level of this config."""
    return _heard(load_config(arguments.config, arguments.cfg_options))


def model_arguments(parser: argparse.ArgumentParser, default: str, out: str) -> None:
    """Add the arguments that name a trained model (--config and --model, or --run) and its data (--features, --labels).

    Parameters
    ----------
    parser : ArgumentParser
        Parser that gets the arguments.
    default : str
        Default of --config.
    out : str
        The default of --out, in words, for the help.
    """
    either = parser.add_mutually_exclusive_group()
    _add_config(either, default)
    either.add_argument(
        "--run",
        metavar="DIR",
        help="folder of a training run; use its config, weights and thresholds instead of --config and --model",
    )
    parser.add_argument("--model", metavar="DIR", help="folder of the weights (default: the config's)")
    _add_options(parser)
    parser.add_argument("--features", metavar="FILE", help="use this file instead of the config's split")
    parser.add_argument("--labels", metavar="FILE", help="identities of --features")
    parser.add_argument("--out", metavar="DIR", help=f"folder for the results (default: {out})")
    overwrite_argument(parser)


_OF_SHARDS = {
    "engine": options.EngineOption,
    "workers": options.Workers,
    "address": options.Address,
    "store": options.StoreOption,
    "shard_rows": options.ShardRows,
}


def engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `starfc cluster` that run it on shards, with the same help."""
    for name, annotated in _OF_SHARDS.items():
        kind, option = get_args(annotated)
        more: dict[str, Any] = {"type": next(part for part in get_args(kind) if part is not type(None))}
        if issubclass(more["type"], Enum):
            more = {"choices": [place.value for place in more["type"]]}
        else:
            more["metavar"] = option.metavar or ("N" if more["type"] is int else "TEXT")
        parser.add_argument(f"--{name.replace('_', '-')}", help=option.help, **more)


def overwrite_argument(parser: argparse.ArgumentParser) -> None:
    """Add --overwrite."""
    parser.add_argument(
        "--overwrite", action="store_true", help="replace output files even if this script did not write them"
    )


@dataclass(frozen=True)
class Source:
    """A config and the folder of its weights.

    Attributes
    ----------
    config : Config
    model_folder : path or None
        Folder of the weights. None: ``pretrained`` of the config.
    run : path or None
        Folder of the training run that both are from; None without ``--run``.
    """

    config: Config
    model_folder: Path | None
    run: Path | None


def read_source(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Source:
    """Read the config and find the weights that the arguments of :func:`model_arguments` name.

    The config of a training run also holds settings of the machine (``OF_MACHINE``). They are replaced by the defaults.

    Raises
    ------
    MissingFileError, InputError
        The folder of --run lacks its config or its weights, or the config cannot be read.
    """
    if arguments.run is None:
        model = None if arguments.model is None else Path(arguments.model)
        return Source(read_config(arguments), model, None)
    if arguments.model is not None:
        parser.error("argument --model: not allowed with argument --run")  # same words as argparse for --config
    from starfc.config.recipes import OF_MACHINE, with_changes
    from starfc.graph.store import find_graph
    from starfc.models.kinds import KINDS

    run = opened(arguments.run)
    weights = [kind.first_file for kind in KINDS.values()]
    for needed in (["config.json"], weights):
        if not any(run.has(name) for name in needed):
            raise MissingFileError(
                f"{run.folder}: needs {' or '.join(needed)}, which is not there: this is not the folder of a training "
                "run, or training has not finished; name the --work-dir of a finished train.py, or use --config and "
                "--model"
            )
    own = asdict(Config())
    config = stored_config(run, {key: own[key] for key in OF_MACHINE} | arguments.cfg_options)
    graph = config.test_graph_path
    named = any(key.startswith("test_data") for key in arguments.cfg_options)
    if graph is not None and not named and find_graph(graph) is None:
        # the run may belong to another user: read the graph that it names, but never write one there
        config = with_changes(config, {"test_data": {"knn_graph_path": None}})
    return Source(_heard(config), run.folder, run.folder)


def cluster_script(refinement: str, about: str, default: Path, outputs: Path) -> None:
    """Run test_final.py or test_dynamic.py: cluster the data that the arguments name, and print a report.

    Parameters
    ----------
    refinement : {'fixed', 'dynamic'}
        Method that sets the threshold of node intimacy.
    about : str
        Description for the help.
    default : path
        Default of --config.
    outputs : path
        Parent folder of the results when neither --out nor --run is given.
    """
    parser = argparse.ArgumentParser(description=about)
    suffix = "" if refinement == "fixed" else f"-{refinement}"
    out = f"{outputs.name}/<config name>{suffix}; of a run, DIR/results/<test split>-{refinement}"
    model_arguments(parser, default=str(default), out=out)
    engine_arguments(parser)
    arguments = parser.parse_args()
    from starfc.runs.cluster import cluster_text, run_inference

    source = read_source(parser, arguments)
    if arguments.out is not None:
        folder = Path(arguments.out)
    elif source.run is not None:
        data = source.config.test_name if arguments.features is None else Path(arguments.features).stem
        folder = source.run / "results" / f"{data}-{refinement}"
    else:
        folder = outputs / (Path(arguments.config).stem + suffix)
    given, config = nested(arguments.cfg_options), source.config
    if source.run is not None and "seed" not in given:
        config = replace(config, seed=Config().seed)  # the seed in the config was for the training
    if refinement == "dynamic":
        given = given.get("dynamic") or {}
    shards = options.shard_options(str(folder), **{name: getattr(arguments, name) for name in _OF_SHARDS})
    record = run_inference(
        config,
        refinement=refinement,
        model_folder=source.model_folder,
        tau1=given.get("tau1"),
        tau2=given.get("tau2"),
        features=arguments.features,
        labels=arguments.labels,
        out=folder,
        overwrite=arguments.overwrite,
        shards=shards,
    )
    if shards is not None:
        shards.clear()
    print(cluster_text(record, folder))


def _heard(config: Config) -> Config:
    """Set the log level of a config, and return the config."""
    logging.getLogger("starfc").setLevel(config.log_level)
    return config
