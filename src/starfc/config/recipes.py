"""Configs without a config file: that of a trained model, and what training on a user's own files starts from.

The config files of the repository are not installed with the package. What they say beyond the schema's defaults stands
here again, and the tests compare the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from starfc.config.config import RETIRED, Config
from starfc.config.schema import build, merged
from starfc.models.checkpoint import Model, load_model, run_folder
from starfc.storage.records import Anything

_ONE_CYCLE = {"policy": "onecycle", "warmup": 0.15}
_GCN = {
    "model": {"type": "gcn", "kwargs": {"init": "metric"}},
    "cluster_num": 150,
    "sampling": {"nearest": 200, "patches": 4, "passes": 1, "rotation": 0.35, "subgraphs_per_epoch": 85},
    "optimizer": {"type": "AdamW", "lr": 5e-4, "weight_decay": 0.01},
    "total_epochs": 1,
    "lr_config": _ONE_CYCLE,
    "validation": {"source": "holdout", "holdout_share": 0.2, "holdout_group": 100},
}
RECIPES: dict[str, dict[str, Any]] = {  # by the kind's ``recipe``
    "any": {
        "model": {"type": "gcn_structural_any", "kwargs": {"nhid": 48}},
        "structural": {"candidates": 40, "smoothing": 10, "rounds": 2},
        "kinds": {"first": 900, "second": 900, "edges": 6000, "members": 2, "steps": 6000},
        "partition": {"type": "infomap"},
        "validation": {"source": "none"},
    },
    "structural": {
        "model": {"type": "gcn_structural", "kwargs": {"nhid": 64}},
        "structural": {"candidates": 40, "smoothing": 10, "rounds": 2},
        "cluster_num": 300,
        "sampling": {"nearest": 400, "instance_share": 1.0, "patches": 40, "passes": 1, "subgraphs_per_epoch": 300},
        "optimizer": {"type": "AdamW", "lr": 3e-3, "weight_decay": 1e-4},
        "total_epochs": 1,
        "lr_config": _ONE_CYCLE,
        "validation": {"source": "holdout", "holdout_share": 0.2, "holdout_group": 1},
    },
    "gcn": _GCN,
    "hierarchical": _GCN
    | {
        "model": {"type": "hierarchical", "kwargs": {"init": "metric"}},
        "cluster_num": 100,
        "sampling": _GCN["sampling"] | {"nearest": 133},
        "knn": 80,
        "hierarchical": {"k_mid": 60, "scales": [40, 60, 80], "selector_precision": "bfloat16"},
    },
}


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


def changed(config: Config, given: Mapping[str, Any]) -> Config:
    """A config with ``given`` (nested mapping) instead of what it says; every problem of the values is said at once."""
    return build(Config, merged(asdict(config), given), RETIRED)


def _described(model: Model) -> dict[str, Any]:
    widths = {"nhid": model.nhid} | ({} if model.kind.structural else {"feature_dim": model.feature_dim})
    whole = {"model": {"type": model.kind.name, "kwargs": widths}, "partition": {"type": model.kind.partition}}
    if model.kind.structural:
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
    values = RECIPES[kind] if base is None else asdict(base)
    paths = {"feat_path": _literal(features), "label_path": _literal(labels)}
    values = merged(values, {"train_name": Path(features).stem, "train_data": paths})
    if base is not None and base.validation.source == "test":
        share = base.validation.holdout_share
        values = merged(values, {"validation": {"source": "holdout" if share else "none"}})
    return build(Config, merged(values, given), RETIRED)


def _literal(path: str | Path) -> str:
    """A path in which braces name nothing."""
    return str(path).replace("{", "{{").replace("}", "}}")
