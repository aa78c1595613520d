"""Keys of the published code's configs: which have no effect here, and which say again what another key says."""

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
)  # keys of the published configs that change nothing
SAID_TWICE = {f"{split}.{key}": top for split in _SPLITS for key, top in (("k", "knn"), ("th_sim", "th_sim"))} | {
    "k_num2": "hierarchical.k_mid"
}  # keys of the published configs, and the ones that decide
RETIRED = dict.fromkeys(WITHOUT_EFFECT, "a key of the published configs that has no effect; remove it") | {
    key: f"{decides} decides that; set it there, and remove this key" for key, decides in SAID_TWICE.items()
}
RETIRED["_base_"] = "only a .py config inherits from another; a .json config is data, and stands alone"


def with_effect(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """A config without those keys of the published ones that change nothing, and these; what disagrees stays in it.

    ``defaults`` is a whole config, for the keys that are not given.
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
    """A config whose epochs of ``lr_config.step`` are shares of the number of epochs that they were written for."""
    policy = values.get("lr_config")
    if not isinstance(policy, Mapping):
        return values
    steps = policy.get("step")
    if not isinstance(epochs, int) or not isinstance(steps, list) or not all(isinstance(step, int) for step in steps):
        return values
    return values | {"lr_config": {**policy, "step": [step / epochs for step in steps if step < epochs]}}
