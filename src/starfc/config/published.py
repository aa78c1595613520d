"""Keys of the published code's configs: keys without effect here, and keys that repeat the value of another key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SPLITS = ("train_data", "test_data")
WITHOUT_EFFECT = frozenset(
    (
        "INPUT_SIZE",
        "STAGES",
        "batch_size_per_gpu",
        "eval_interim",
        "k_num3",
        "mid_feat_path",
        "mid_feat_path_test",
        "model.kwargs.nclass",
        "optimizer_config",
        "sample_num",
        "train_data.knn_graph_path",  # training builds the graph of every subgraph
        "use_gcn_feat",
        "workers_per_gpu",
        *(f"{split}.{key}" for split in _SPLITS for key in ("list_path", "conf_metric", "eval_interim")),
        *(f"{split}.neighbor_depth" for split in _SPLITS),
    )
)  # keys of the published configs that have no effect here
SAID_TWICE = {f"{split}.{key}": top for split in _SPLITS for key, top in (("k", "knn"), ("th_sim", "th_sim"))} | {
    "k_num2": "hierarchical.k_mid"
}  # keys of the published configs that repeat a value, and the key that is used instead
RETIRED = dict.fromkeys(WITHOUT_EFFECT, "this key of the published configs has no effect here; remove it") | {
    key: f"the value of {decides} is used instead; set it there, and remove this key"
    for key, decides in SAID_TWICE.items()
}
RETIRED["_base_"] = "only a .py config can inherit from another one, a .json config cannot; remove this key"


def with_effect(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """Remove the published configs' keys that change nothing from a config.

    Parameters
    ----------
    values : mapping
        The config.
    defaults : mapping
        A complete config with the default of every key.

    Returns
    -------
    dict
        The config without these keys. A key that repeats another one stays if the two values differ.
    set of str
        The removed keys.
    """
    ignored = {key for key in WITHOUT_EFFECT if _at(values, key) is not _NOWHERE}
    for key, decides in SAID_TWICE.items():
        if _at(values, key) == _at(values, decides, _at(defaults, decides)):
            ignored.add(key)

    def kept(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        return {
            key: kept(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
            for key, value in mapping.items()
            if f"{prefix}{key}" not in ignored
        }

    return kept(values), ignored


_NOWHERE = object()


def _at(values: Any, dotted: str, default: Any = _NOWHERE) -> Any:
    for name in dotted.split("."):
        if not isinstance(values, Mapping) or name not in values:
            return default
        values = values[name]
    return values


def with_shares(values: dict[str, Any], epochs: Any) -> dict[str, Any]:
    """Return a config with ``lr_config.step`` as shares of ``epochs``, the number of epochs that it was written for."""
    policy = values.get("lr_config")
    if not isinstance(policy, Mapping):
        return values
    steps = policy.get("step")
    if not isinstance(epochs, int) or not isinstance(steps, list) or not all(isinstance(step, int) for step in steps):
        return values
    return values | {"lr_config": {**policy, "step": [step / epochs for step in steps if step < epochs]}}
