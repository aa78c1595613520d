"""Weights on disk: ``Backbone.pth`` and ``Head.pth``, plain state dicts with the published names and shapes."""

from __future__ import annotations

import json
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from starfc.errors import InputError, MissingFileError
from starfc.models.gcn import StarFCModel
from starfc.runtime.atomic import replacing, write_json

FILES = {"backbone": "Backbone.pth", "head": "Head.pth"}
THRESHOLDS = "thresholds.json"


def save_model(model: StarFCModel, folder: str | Path) -> None:
    """Write both state dicts into ``folder``, each atomically."""
    for part, name in FILES.items():
        state = {key: value.detach().cpu().clone() for key, value in getattr(model, part).state_dict().items()}
        with replacing(Path(folder) / name) as temporary:
            torch.save(state, temporary)


def load_model(folder: str | Path, feature_dim: int | None = None, nhid: int | None = None) -> StarFCModel:
    """Read ``Backbone.pth`` and ``Head.pth``; the widths are those of the weights.

    Parameters
    ----------
    feature_dim, nhid : int, optional
        Widths that the weights must have.

    Raises
    ------
    MissingFileError, InputError
        A file is missing, truncated or no state dict, lacks a tensor, or has other widths.
    """
    folder = Path(folder)
    states = {part: _read_state(folder / name) for part, name in FILES.items()}
    weight = states["backbone"].get("conv1.weight")
    if weight is None or weight.ndim != 2:
        raise InputError(
            f"{folder / FILES['backbone']}: no conv1.weight of shape (2d, h); found {sorted(states['backbone'])}"
        )
    found = (weight.shape[0] // 2, weight.shape[1])
    wanted = (found[0] if feature_dim is None else feature_dim, found[1] if nhid is None else nhid)
    if found != wanted:
        raise InputError(
            f"{folder / FILES['backbone']}: conv1.weight is {tuple(weight.shape)}, so d = {found[0]}, h = {found[1]}, "
            f"where feature_dim = {wanted[0]}, nhid = {wanted[1]} is needed; use weights trained for that, or set "
            f"model.kwargs.feature_dim={found[0]} model.kwargs.nhid={found[1]}"
        )
    model = StarFCModel(*found)
    for part, name in FILES.items():
        _load_part(getattr(model, part), states[part], folder / name)
    return model.eval()


def save_thresholds(folder: str | Path, tau1: float, tau2: float, how: dict[str, object]) -> None:
    """Write ``thresholds.json``: the pair, and how it was chosen."""
    write_json(Path(folder) / THRESHOLDS, {"tau1": tau1, "tau2": tau2, **how})


def load_thresholds(folder: str | Path) -> tuple[float, float]:
    """τ1 and τ2 as training chose them, from ``thresholds.json`` beside the weights."""
    path = Path(folder) / THRESHOLDS
    if not path.is_file():
        raise MissingFileError(
            f"{path}: no such file, and tau1, tau2 are None; set both (such as --cfg-options tau1=0.7 tau2=0.72), or "
            "train with validation.source='holdout', which writes it"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        pair = float(content["tau1"]), float(content["tau2"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: numbers tau1 and tau2 needed; {type(error).__name__}: {error}") from None
    if not all(0 <= t <= 1 for t in pair):
        raise InputError(f"{path}: tau1 and tau2 between 0 and 1 needed; found {pair}")
    return pair


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise MissingFileError(f"{path}: no such checkpoint; a model folder holds {' and '.join(FILES.values())}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, UnpicklingError) as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: not a readable checkpoint, truncated or of another kind ({reason}); copy it again"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"{path}: a plain state dict (name -> tensor) needed; found {type(state).__name__}")
    return {key.removeprefix("module."): value for key, value in state.items()}  # DataParallel's prefix


def _load_part(module: torch.nn.Module, state: dict[str, Tensor], path: Path) -> None:
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    problems = [
        f"{key} {wanted.get(key, 'not known')} needed, found {found.get(key, 'none')}"
        for key in sorted(wanted | found)
        if wanted.get(key) != found.get(key)
    ]
    if problems:
        raise InputError(
            f"{path}: tensors do not fit: {'; '.join(problems)}; use weights of this network and these widths"
        )
    if not all(torch.isfinite(value).all() for value in state.values()):
        raise InputError(f"{path}: weights that are NaN or infinite; use an earlier checkpoint")
    module.load_state_dict(state)
