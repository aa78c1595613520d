"""``starfc train``: train a model on the user's own labelled features."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from starfc.commands import options
from starfc.errors import InputError
from starfc.models.kinds import KINDS, STRUCTURAL

# a type checker cannot know the members, because they are read from the table
Recipe = Enum("Recipe", {kind.recipe: kind.recipe for kind in KINDS.values()}, type=str)  # type: ignore[misc]


def train(
    features: Annotated[Path, typer.Argument(metavar="FEATURES", help=options.FEATURES_HELP.split(";")[0] + ".")],
    labels: options.LabelsFile,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the training run.")],
    kind: Annotated[
        Recipe | None,
        typer.Option("--type", help="Type of model. Default: structural, for data like the training data."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A config file instead of --type. Its data splits are not used.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Training epochs. Default: set by the type.")] = None,
    k: Annotated[
        int | None, typer.Option(min=2, help="Neighbours per instance, the instance itself included. Default: 80.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Set a config key, such as optimizer.lr=0.001; may be repeated."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest checkpoint in the folder.")
    ] = False,
    invalid_rows: options.Invalid = None,
    feature_dim: options.FeatureDim = None,
    key: options.Key = None,
    memory: options.Memory = None,
    threads: options.Threads = None,
    device: options.Device = None,
    device_memory: options.DeviceMemory = None,
    seed: options.Seed = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Train a model on labelled features.

    Some identities are held out of training; the thresholds are chosen on them. The folder gets config, weights,
    thresholds, log and checkpoints; use it with `starfc cluster --model DIR`. On Ctrl-C or SIGTERM a checkpoint is
    written.
    """
    if kind is not None and config is not None:
        raise InputError("--type: not allowed with --config, whose model.type sets the type; leave out one of the two")
    options.set_messages(quiet, verbose)
    import shlex
    import sys

    from starfc.config.config import load_config
    from starfc.config.recipes import merged, training_config
    from starfc.data.files import feature_blocks
    from starfc.training.trainer import run_training, training_text

    dim = feature_blocks(features, feature_dim, key).dim
    asked: dict[str, Any] = {"model": {"kwargs": {"feature_dim": dim}}, "train_data": {"key": key}} | options.given(
        total_epochs=epochs,
        knn=k,
        invalid_rows=invalid_rows,
        memory_limit=memory,
        threads=threads,
        device=device,
        device_memory=device_memory,
        seed=seed,
    )
    for one in setting or []:
        asked = merged(asked, _setting(one))
    base = None if config is None else load_config(config, options.given(total_epochs=epochs))
    recipe = STRUCTURAL.recipe if kind is None else kind.value
    whole = training_config(features.absolute(), labels.absolute(), recipe, asked, base)
    again = [word for word in sys.argv[1:] if word != "--resume"]
    record = run_training(
        whole,
        out,
        "auto" if resume else None,
        shlex.join(["starfc", *again, "--resume"]),
        inputs=(features, labels),
        overwrite=overwrite,
    )
    if record is not None:
        options.show({"out": str(out), **record}, training_text(record, out), as_json=as_json, quiet=quiet)


def _setting(text: str) -> dict[str, Any]:
    """Return KEY=VALUE as a nested mapping: a dot in the key is a level. A value that is no Python literal is text."""
    import ast

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"--set: needs KEY=VALUE; found {text!r}")
    try:
        content: Any = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        content = value
    for name in reversed(key.split(".")):
        content = {name: content}
    return content
