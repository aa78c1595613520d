"""The first step of commands that apply a model to data: read the model's config and open the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from starfc.config.config import Config
from starfc.config.recipes import model_config, with_changes
from starfc.data.dataset import Features, Split, open_split
from starfc.runtime.stages import Stages


def opened_split(
    model: Path,
    asked: Mapping[str, Any],
    place: Path,
    name: Path,
    labels: Path | None,
    feature_dim: int | None,
    key: str | None = None,
) -> tuple[Config, Split]:
    """Read a model's config and open the data.

    Parameters
    ----------
    model : path
        Folder of the model.
    asked : mapping
        Config values that the options set.
    place : path
        File of the features.
    name : path
        What messages and records call this file: "stdin" for a temporary file with data from stdin.
    labels : path, optional
        File of the identities.
    feature_dim : int, optional
        Dimension of the features, for a raw .bin file.
    key : str, optional
        Array or dataset within the features' file.

    Returns
    -------
    Config
        The config of the model with ``asked`` merged in.
    Split
        Features and labels.
    """
    config = model_config(model, asked)
    structural = config.kind.structural
    dim = feature_dim if structural or feature_dim is not None else config.model.kwargs.feature_dim
    room = Stages(config.memory_limit_bytes()).memory_left()
    split = open_split(place, labels, feature_dim=dim, normalise=config.test_data.is_norm_feat, key=key, room=room)
    if structural:  # such a model accepts embeddings of any dimension
        config = with_changes(config, {"model": {"kwargs": {"feature_dim": split.features.dim}}})
    features = Features(split.features.array, str(name), split.features.normalise)
    return config, replace(split, features=features, name=name.stem)
