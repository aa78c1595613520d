"""Weights on disk: the published files, a plain state dict for each part, and checkpoints that hold all in one."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from starfc.errors import InputError, MissingFileError
from starfc.models.contextual import ContextualModel
from starfc.models.gcn import StarFCModel
from starfc.models.hierarchical import OFFSETS, SCALES, HierarchicalModel
from starfc.models.structural import StructuralModel
from starfc.runtime.atomic import write_bytes, write_json

FILES = {"backbone": "Backbone.pth", "head": "Head.pth"}
HIERARCHICAL_FILES = {
    "backbone": "Backbone1.pth",
    "heads.small": "Head1.pth",
    "heads.mid": "Head2.pth",
    "heads.large": "Head3.pth",
    "heads.fused": "Head4.pth",
    "selector": "Attention.pth",
    "offset_learner": "Distance.pth",
}
_TRAINING_ONLY = ("heads.small", "heads.mid", "heads.large", "offset_learner")
THRESHOLDS = "thresholds.json"
PRETRAINED = Path(__file__).parent.parent / "pretrained" / "any"  # comes with the package
FORMAT = "starfc checkpoint 1"

STRUCTURAL_FILES = {"": "Structural.pth"}
CONTEXTUAL_FILES = {"": "Contextual.pth"}

Model = StarFCModel | HierarchicalModel | StructuralModel


def save_model(model: Model, folder: str | Path) -> None:
    """Write the state dict of every part into ``folder``, under the published names, each atomically."""
    for part, name in _files(model).items():
        state = {key: value.detach().cpu().clone() for key, value in model.get_submodule(part).state_dict().items()}
        _save(Path(folder) / name, state)


def load_model(
    path: str | Path,
    feature_dim: int | None = None,
    nhid: int | None = None,
    scales: tuple[int, ...] | None = None,
) -> Model:
    """Read a model: the widths, and whether it is hierarchical, are those of the weights.

    Parameters
    ----------
    path : path
        A folder of ``Backbone.pth`` and ``Head.pth``; one of ``Backbone1.pth``, ``Head4.pth`` and ``Attention.pth``
        (``Head1.pth`` to ``Head3.pth`` and ``Distance.pth`` too where training is to go on), each name with or without
        the published ``_Epoch_E_batch_B``, of which the last is taken; one of ``Structural.pth`` or ``Contextual.pth``;
        or one checkpoint file of a training run.
    feature_dim, nhid : int, optional
        Widths that the weights must have.
    scales : tuple of int, optional
        Neighbours of a hierarchical model's three graphs; otherwise a checkpoint file's own, those of ``config.json``
        in a training run's folder, or the published ones.

    Raises
    ------
    MissingFileError, InputError
        A file is missing, truncated or no state dict, lacks a tensor, or has other widths.
    """
    path = Path(path)
    if path.is_file():
        return _from_checkpoint(path, feature_dim, nhid, scales)
    structural = path / STRUCTURAL_FILES[""]
    contextual = path / CONTEXTUAL_FILES[""]
    if contextual.is_file():
        return _structural(_read_state(contextual), contextual, nhid, ContextualModel, 4)
    if structural.is_file() and not (path / FILES["backbone"]).is_file():
        return _structural(_read_state(structural), structural, nhid)
    hierarchical = _newest(path, HIERARCHICAL_FILES["backbone"]).is_file() and not (path / FILES["backbone"]).is_file()
    names = HIERARCHICAL_FILES if hierarchical else FILES
    places = {part: _newest(path, name) for part, name in names.items()}
    places = {part: place for part, place in places.items() if place.is_file() or part not in _TRAINING_ONLY}
    states = {part: _read_state(place) for part, place in places.items()}
    widths = _checked_widths(states["backbone"].get("conv1.weight"), places["backbone"], feature_dim, nhid)
    if hierarchical:
        offsets = tuple(states.get("offset_learner", {}).get("offsets", torch.tensor(OFFSETS)).tolist())
        model: Model = HierarchicalModel(*widths, offsets=offsets, scales=scales or _stored_scales(path))
    else:
        model = StarFCModel(*widths)
    for part, state in states.items():
        _load_part(model.get_submodule(part), state, places[part])
    return model.eval()


def describe(model: Model) -> dict[str, object]:
    """What :func:`load_model` needs to make a model of this kind again."""
    kind = {"feature_dim": model.feature_dim, "nhid": model.nhid}
    if isinstance(model, HierarchicalModel):
        kind |= {"offsets": model.offset_learner.offsets.tolist(), "scales": list(model.scales)}
    if isinstance(model, StructuralModel):
        kind["structural"] = True
    return kind


def _files(model: Model) -> dict[str, str]:
    if isinstance(model, ContextualModel):
        return CONTEXTUAL_FILES
    if isinstance(model, StructuralModel):
        return STRUCTURAL_FILES
    return HIERARCHICAL_FILES if isinstance(model, HierarchicalModel) else FILES


def _structural(
    state: dict[str, Tensor],
    path: Path,
    nhid: int | None,
    cls: type[StructuralModel] = StructuralModel,
    numbers: int = 5,
) -> StructuralModel:
    shape = state.get("shape")
    if shape is None or shape.shape != (numbers,):
        raise InputError(f"{path}: no shape of {numbers} numbers in it, so no weights of a {cls.__name__}")
    if nhid not in (None, shape[0].item()):
        raise InputError(
            f"{path}: nhid = {shape[0]} where {nhid} is needed; use weights trained for that, or set "
            f"model.kwargs.nhid={shape[0]}"
        )
    model = cls.of_shape(shape)
    _load_part(model, state, path)
    return model.eval()


def _from_checkpoint(path: Path, feature_dim: int | None, nhid: int | None, scales: tuple[int, ...] | None) -> Model:
    content = read_checkpoint(path)
    kind = dict(content["kind"])
    if kind.get("structural"):
        return _structural(content["model"], path, nhid)
    _checked_widths(content["model"].get("backbone.conv1.weight"), path, feature_dim, nhid)
    if "scales" in kind:
        chosen = scales or tuple(kind["scales"])
        model: Model = HierarchicalModel(
            kind["feature_dim"], kind["nhid"], offsets=tuple(kind["offsets"]), scales=chosen
        )
    else:
        model = StarFCModel(kind["feature_dim"], kind["nhid"])
    _load_part(model, content["model"], path)
    return model.eval()


def write_checkpoint(path: Path, model: Model, training: dict[str, object]) -> None:
    """Write one file, atomically: all parts of a model, and what training needs to go on from there."""
    content = {
        "format": FORMAT,
        "kind": describe(model),
        "model": {key: value.detach().cpu() for key, value in model.state_dict().items()},
        "training": training,
    }
    _save(path, content)


def _save(path: Path, content: object) -> None:
    """Write atomically; equal content makes equal bytes, for torch would put the temporary file's name into it."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getbuffer())


def read_checkpoint(path: str | Path) -> dict[str, object]:
    """What :func:`write_checkpoint` wrote.

    Raises
    ------
    MissingFileError, InputError
        The file is missing, truncated, or not such a checkpoint.
    """
    content = _read(Path(path))
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = sorted(map(str, content))[:5] if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{path}: not a training checkpoint of this package ({FORMAT}); found {found}")
    return content


def _stored_scales(folder: Path) -> tuple[int, ...]:
    """The scales that a training run's folder names, else the published ones."""
    config = folder / "config.json"
    if not config.is_file():
        return SCALES
    return tuple(json.loads(config.read_text(encoding="utf-8"))["hierarchical"]["scales"])


def _newest(folder: Path, name: str) -> Path:
    """``folder / name``, or where there is no such file, the last ``NAME_Epoch_E_batch_B.pth`` in it."""
    stem, suffix = name.split(".")
    numbered = [
        (int(match[1]), int(match[2]), file)
        for file in folder.glob(f"{stem}_Epoch_*_batch_*.{suffix}")
        if (match := re.fullmatch(rf"{stem}_Epoch_(\d+)_batch_(\d+)\.{suffix}", file.name))
    ]
    return folder / name if (folder / name).is_file() or not numbered else max(numbered)[2]


def _checked_widths(weight: Tensor | None, path: Path, feature_dim: int | None, nhid: int | None) -> tuple[int, int]:
    if weight is None or weight.ndim != 2:
        raise InputError(f"{path}: no conv1.weight of shape (2d, h) in it")
    found = (weight.shape[0] // 2, weight.shape[1])
    wanted = (found[0] if feature_dim is None else feature_dim, found[1] if nhid is None else nhid)
    if found != wanted:
        raise InputError(
            f"{path}: conv1.weight is {tuple(weight.shape)}, so d = {found[0]}, h = {found[1]}, "
            f"where feature_dim = {wanted[0]}, nhid = {wanted[1]} is needed; use weights trained for that, or set "
            f"model.kwargs.feature_dim={found[0]} model.kwargs.nhid={found[1]}"
        )
    return found


def save_thresholds(folder: str | Path, pairs: Mapping[str, Mapping[str, object]], chosen_on: str) -> None:
    """Write ``thresholds.json``: a pair for either refinement, and what they were chosen on.

    ``pairs`` has an entry 'fixed' and one 'dynamic', each with tau1, tau2 and whatever else is known of the pair.
    """
    write_json(Path(folder) / THRESHOLDS, {**pairs, "chosen_on": chosen_on})


def load_thresholds(folder: str | Path, refinement: str = "fixed") -> tuple[float, float]:
    """τ1 and τ2 of a refinement, 'fixed' or 'dynamic', from ``thresholds.json`` beside the weights.

    Those of a checkpoint file are its run's.

    Raises
    ------
    MissingFileError, InputError
        There is no such file, or no such pair in it.
    """
    folder, prefix = Path(folder), {"fixed": "", "dynamic": "dynamic."}[refinement]
    folder = folder.parent.parent if folder.is_file() else folder  # DIR/checkpoints/NAME.pt
    path = folder / THRESHOLDS
    remedy = (
        f"choose them with starfc tune or scripts/choose_thresholds.py --model {folder}, or set both, such as "
        f"--cfg-options {prefix}tau1=0.7 {prefix}tau2=0.72"
    )
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file, and {prefix}tau1, {prefix}tau2 are None; {remedy}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: JSON needed; {error}; {remedy}") from None
    pair = content.get(refinement) if isinstance(content, dict) else None
    values = [pair.get(name) for name in ("tau1", "tau2")] if isinstance(pair, dict) else []
    if not values or not all(isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v <= 1 for v in values):
        found = pair if pair is not None or not isinstance(content, dict) else f"only {', '.join(content) or 'nothing'}"
        raise InputError(
            f"{path}: an object {refinement!r} with numbers tau1 and tau2 between 0 and 1 needed; found {found}; "
            f"{remedy}"
        )
    return float(values[0]), float(values[1])


def stored_thresholds(
    folder: str | Path | None, model: Model, refinement: str = "fixed"
) -> tuple[float, float] | tuple[None, None]:
    """:func:`load_thresholds`, or of a contextual model without ``thresholds.json`` what its calibration allows.

    That is None and None for fixed refinement, where the data decide, and for dynamic refinement edges that are rather
    right than wrong, with the published ceiling. ``folder`` None: the model is of no folder.
    """
    alone = folder is None or not (Path(folder) / THRESHOLDS).is_file()
    if isinstance(model, ContextualModel) and alone:
        return (None, None) if refinement == "fixed" else (0.5, 0.78)
    return load_thresholds(folder, refinement)


def _read(path: Path) -> object:
    if not path.is_file():
        raise MissingFileError(
            f"{path}: no such checkpoint; a model folder holds {' and '.join(FILES.values())}, or of the hierarchical "
            "model Backbone1.pth, Head4.pth and Attention.pth"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, UnpicklingError) as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: not a readable checkpoint, truncated or of another kind ({reason}); copy it again"
        ) from None


def _read_state(path: Path) -> dict[str, Tensor]:
    state = _read(path)
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
