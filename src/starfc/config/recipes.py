"""Configs without a config file: that of a trained model, and what training on a user's own files starts from.

The recipes of training come with the package (:mod:`starfc.recipes`); the config files of the repository inherit them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from starfc import recipes
from starfc.config.config import RETIRED, Config
from starfc.config.schema import build, merged
from starfc.models.checkpoint import Model, load_model, run_folder
from starfc.models.structural import StructuralModel
from starfc.storage.records import Anything

RECIPES = Path(recipes.__file__).parent  # NAME.py for the ``recipe`` of each kind of model


def recipe(name: str) -> dict[str, Any]:
    """The values of a recipe (nested mapping), which go before the schema's defaults."""
    from mmengine.config import Config as FileConfig

    return FileConfig.fromfile(str(RECIPES / f"{name}.py"), lazy_import=False)._cfg_dict.to_dict()


# what a training was told of its machine and of its data, which says nothing about another machine or set
OF_MACHINE = ("threads", "device", "memory_limit")
_OF_TRAINING = ("seed", "invalid_rows", "knn_method", "knn_params", "knn_recall", "copies", "adapt", "reach", "metrics")


def model_config(model: str | Path | Model, given: Mapping[str, Any] | None = None) -> Config:
    """The config to cluster by a trained model, with ``given`` (nested mapping) before what the model says.

    A training run's folder has a config, of which the settings of the training itself play no part; weights alone say
    their type, widths and neighbours, and the rest is the schema's defaults. What the thresholds are,
    :func:`starfc.config.thresholds.resolve` says.

    Parameters
    ----------
    model : path or Model
        A folder, a checkpoint, or a model that was loaded from one or made.

    Raises
    ------
    MissingFileError, InputError
        No such model, or every problem of the values, at once.
    """
    if isinstance(model, str | Path):
        model = load_model(model)
    base, run = _described(model), run_folder(model)
    if run is not None:
        base["pretrained"] = str(model.folder)
        if run.has("config.json"):
            stored = run.json("config.json", Anything).root  # data: nothing in it is executed
            own = {key: value for key, value in stored.items() if key not in (*OF_MACHINE, *_OF_TRAINING)}
            base = own | {"pretrained": str(model.folder)}
    return build(Config, merged(base, given or {}), RETIRED)


def with_changes(config: Config, given: Mapping[str, Any]) -> Config:
    """A config with ``given`` (nested mapping) instead of what it says; every problem of the values is said at once."""
    return build(Config, merged(asdict(config), given), RETIRED)


def _described(model: Model) -> dict[str, Any]:
    widths = {"nhid": model.nhid} | ({} if model.kind.structural else {"feature_dim": model.feature_dim})
    whole = {"model": {"type": model.kind.name, "kwargs": widths}, "partition": {"type": model.kind.partition}}
    if isinstance(model, StructuralModel):
        return whole | {"knn": model.columns + 1}
    if model.scales is not None:
        return whole | {"hierarchical": {"scales": list(model.scales)}, "knn": model.scales[-1]}
    return whole


def training_config(
    features: str | Path, labels: str | Path, kind: str, given: Mapping[str, Any], base: Config | None = None
) -> Config:
    """The config of a training on a user's own files: a recipe, or another config, with ``given`` before it.

    Parameters
    ----------
    features, labels : path
        The training split; there is no test split, so validation is on identities held back from it, or none.
    kind : {'any', 'structural', 'gcn', 'hierarchical'}
        Recipe.
    base : Config, optional
        Instead of the recipe.
    """
    values = recipe(kind) if base is None else asdict(base)
    paths = {"feat_path": _literal(features), "label_path": _literal(labels)}
    values = merged(values, {"train_name": Path(features).stem, "train_data": paths})
    if base is not None and base.validation.source == "test":
        share = base.validation.holdout_share
        values = merged(values, {"validation": {"source": "holdout" if share else "none"}})
    return build(Config, merged(values, given), RETIRED)


def _literal(path: str | Path) -> str:
    """A path in which braces name nothing."""
    return str(path).replace("{", "{{").replace("}", "}}")
