"""What commands that put a model to data begin with: the model's config, and the data that it fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from starfc.config.config import Config
from starfc.config.recipes import changed, model_config
from starfc.data.dataset import Features, Split, open_split
from starfc.runtime.stages import Stages


def opened(
    model: Path,
    asked: Mapping[str, Any],
    place: Path,
    name: Path,
    labels: Path | None,
    feature_dim: int | None,
    key: str | None = None,
) -> tuple[Config, Split]:
    """The config of a model with what the options ask for, and the features at ``place``, called ``name``."""
    config = model_config(model, asked)
    structural = config.kind.structural
    dim = feature_dim if structural or feature_dim is not None else config.model.kwargs.feature_dim
    room = Stages(config.memory_limit_bytes()).memory_left()
    split = open_split(place, labels, feature_dim=dim, normalise=config.test_data.is_norm_feat, key=key, room=room)
    if structural:  # takes embeddings of any dimension
        config = changed(config, {"model": {"kwargs": {"feature_dim": split.features.dim}}})
    features = Features(split.features.array, str(name), split.features.normalise)
    return config, replace(split, features=features, name=name.stem)
