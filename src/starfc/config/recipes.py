"""Configs without a config file: the config of a trained model, and the config of a training on a user's files.

The training recipes are part of the package (:mod:`starfc.recipes`). The config files in ``configs/`` inherit them.
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
    """Return the values of a recipe (nested mapping). They override the defaults of the schema."""
    from mmengine.config import Config as FileConfig

    return FileConfig.fromfile(str(RECIPES / f"{name}.py"), lazy_import=False)._cfg_dict.to_dict()


# settings of a training for its machine and its data, which do not apply to another machine or data set
OF_MACHINE = ("threads", "device", "memory_limit", "device_memory")
_OF_TRAINING = ("seed", "invalid_rows", "knn_method", "knn_params", "knn_recall", "copies", "adapt", "reach", "metrics")


def model_config(model: str | Path | Model, given: Mapping[str, Any] | None = None) -> Config:
    """Return the config for clustering with a trained model.

    The folder of a training run has a config. Its settings for the training itself are not used. Weights without a
    config give the type of the model, its widths and k; all other values are defaults. The thresholds are set later, by
    :func:`starfc.config.thresholds.resolve`.

    Parameters
    ----------
    model : path or Model
        A folder, a checkpoint, or a model object.
    given : mapping, optional
        Values that override those of the model (nested mapping).

    Raises
    ------
    MissingFileError, InputError
        There is no such model, or values break rules. The message lists all problems.
    """
    if isinstance(model, str | Path):
        model = load_model(model)
    base, run = _described(model), run_folder(model)
    if run is not None:
        base["pretrained"] = str(model.folder)
        if run.has("config.json"):
            stored = run.json("config.json", Anything).root  # JSON, so no code is executed
            own = {key: value for key, value in stored.items() if key not in (*OF_MACHINE, *_OF_TRAINING)}
            base = own | {"pretrained": str(model.folder)}
    return build(Config, merged(base, given or {}), RETIRED)


def with_changes(config: Config, given: Mapping[str, Any]) -> Config:
    """Return a config with the values of ``given`` (nested mapping) replaced. An InputError lists all problems."""
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
    """Return the config of a training on a user's own files.

    Parameters
    ----------
    features, labels : path
        The training split. There is no test split, so validation uses identities held out of training, or is off.
    kind : {'any', 'structural', 'gcn', 'hierarchical'}
        The recipe.
    given : mapping
        Values that override those of the recipe (nested mapping).
    base : Config, optional
        A config to use instead of the recipe.
    """
    values = recipe(kind) if base is None else asdict(base)
    paths = {"feat_path": _literal(features), "label_path": _literal(labels)}
    values = merged(values, {"train_name": Path(features).stem, "train_data": paths})
    if base is not None and base.validation.source == "test":
        share = base.validation.holdout_share
        values = merged(values, {"validation": {"source": "holdout" if share else "none"}})
    return build(Config, merged(values, given), RETIRED)


def _literal(path: str | Path) -> str:
    """Return a path with its braces doubled, so that they are not filled in as names."""
    return str(path).replace("{", "{{").replace("}", "}}")
