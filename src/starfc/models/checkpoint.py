"""Weights on disk: the published files, a plain state dict for each part, and checkpoints that hold all in one."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor

from starfc.errors import InputError, MissingFileError
from starfc.models.contextual import ContextualModel
from starfc.models.gcn import EdgeHead, StarFCModel
from starfc.models.hierarchical import HierarchicalModel
from starfc.models.kinds import ANY, GCN, HIERARCHICAL, STRUCTURAL, ModelKind
from starfc.models.structural import StructuralModel
from starfc.runtime.defaults import MOST_NEIGHBOURS, OFFSETS, SCALES
from starfc.runtime.words import advice
from starfc.storage.atomic import write_bytes
from starfc.storage.opened import OpenedFolder, opened
from starfc.storage.records import CheckpointKind, ScalesOf
from starfc.storage.safe import first_line, open_regular

THRESHOLDS = "thresholds.json"
PRETRAINED = Path(__file__).parent.parent / "pretrained" / "any"  # comes with the package
FORMAT = "starfc checkpoint 1"
_MOST_MEMBERS = 16  # scorers of a round

Model = StarFCModel | HierarchicalModel | StructuralModel
_Structural = TypeVar("_Structural", bound=StructuralModel)


def save_model(model: Model, folder: str | Path) -> None:
    """Write the state dict of every part into ``folder``, under the published names, each atomically."""
    for part, name in model.kind.files.items():
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
        model = _from_checkpoint(path, feature_dim, nhid, scales)
    else:
        model = _from_folder(opened(path), feature_dim, nhid, scales)
    model.folder = path
    return model


def run_folder(model: Model) -> OpenedFolder | None:
    """The folder that a model was loaded from, that of its run where this was a checkpoint; None for one made here.

    Raises
    ------
    MissingFileError
        It is no longer there.
    """
    if model.folder is None:
        return None
    if not model.folder.exists():
        raise MissingFileError(
            f"{model.folder}: no longer there, and the model was loaded from it; load the model from where it is now"
        )
    return opened(model.folder.parent.parent if model.folder.is_file() else model.folder)


def _from_folder(
    folder: OpenedFolder, feature_dim: int | None, nhid: int | None, scales: tuple[int, ...] | None
) -> Model:
    kind, names = _stored_names(folder)
    if kind is ANY:
        return _contextual(*_stored(folder, names[""]), nhid)
    if kind is STRUCTURAL:
        return _structural(*_stored(folder, names[""]), nhid, StructuralModel)
    states, places = {}, {}
    for part, name in names.items():
        states[part], places[part] = _stored(folder, name)
    heads = [part for part in states if part == "head" or part.startswith("heads.")]
    widths = _checked_widths(states["backbone"].get("conv1.weight"), places["backbone"], feature_dim, nhid)
    for head in heads:
        _require_head(states[head], widths[1], places[head])
    if kind is HIERARCHICAL:
        stored = states.get("offset_learner", {}).get("offsets", torch.tensor(OFFSETS))
        offsets = _offsets(stored, places.get("offset_learner", folder.folder))
        model: Model = HierarchicalModel(*widths, offsets=offsets, scales=scales or _stored_scales(folder))
    else:
        model = StarFCModel(*widths)
    for part, state in states.items():
        _load_part(model.get_submodule(part), state, places[part])
    return model.eval()


def _stored_names(folder: OpenedFolder) -> tuple[ModelKind, dict[str, str]]:
    """The kind of the model in a folder, and the names that its files have there, by the part of the model."""
    kind = next((kind for kind in (ANY, GCN, STRUCTURAL, HIERARCHICAL) if folder.has(kind.first_file)), None)
    if kind is None:
        kind = HIERARCHICAL if folder.has(_newest(folder, HIERARCHICAL.first_file)) else GCN
    names = {part: _newest(folder, name) for part, name in kind.files.items()}
    return kind, {part: name for part, name in names.items() if folder.has(name) or part not in kind.training_only}


def copied_files(path: str | Path) -> dict[str, Path]:
    """What makes a model of a folder besides its thresholds, weights and config: new names, and where they lie now."""
    path = Path(path)
    if path.is_file():
        return {}
    folder = opened(path)
    kind, names = _stored_names(folder)
    files = {kind.files[part]: folder.verified(name) for part, name in names.items()}
    return files | ({"config.json": folder.verified("config.json")} if folder.has("config.json") else {})


def describe(model: Model) -> dict[str, object]:
    """What :func:`load_model` needs to make a model of this kind again."""
    kind: dict[str, object] = {"feature_dim": model.feature_dim, "nhid": model.nhid}
    if isinstance(model, HierarchicalModel):
        kind |= {"offsets": model.offset_learner.offsets.tolist(), "scales": list(model.scales)}
    if model.kind.structural:
        kind["structural"] = True
    return kind


def _contextual(state: dict[str, Tensor], path: Path, nhid: int | None) -> ContextualModel:
    shape = state.get("shape")
    if shape is not None and shape.shape == (4,) and shape.dtype == torch.int64:
        state = ContextualModel.of_one_scorer(state)
    return _structural(state, path, nhid, ContextualModel, "first.members.0.layers.1.weight", _MOST_MEMBERS)


def _structural(
    state: dict[str, Tensor],
    path: Path,
    nhid: int | None,
    cls: type[_Structural],
    inner: str = "first.layers.1.weight",
    most: int = 2,
) -> _Structural:
    """A model of the shape that its weights tell; the last number, its rounds or members, is from 1 to ``most``."""
    shape = state.get("shape")
    if shape is None or shape.shape != (5,) or shape.dtype != torch.int64:
        raise InputError(f"{path}: no shape of 5 numbers in it, so no weights of a {cls.__name__}")
    units, columns, candidates, smoothing, parts = shape.tolist()
    if nhid not in (None, units):
        raise InputError(
            f"{path}: nhid = {units} where {nhid} is needed; use weights trained for that"
            f"{advice('; or set {} to ' + str(units), 'model.kwargs.nhid')}"
        )
    # the weights that all others follow from, before any are made
    hidden = state.get(inner)
    lists = min(columns, candidates) >= 1 and smoothing >= 0 and max(columns, candidates, smoothing) <= MOST_NEIGHBOURS
    within = lists and 1 <= parts <= most
    if hidden is None or units < 1 or hidden.shape != (units, units) or not within:
        found = None if hidden is None else tuple(hidden.shape)
        raise InputError(
            f"{path}: a shape of {shape.tolist()} beside a {inner} of {found} is that of no "
            f"{cls.__name__}; copy the file again"
        )
    model = cls.of_shape(shape)
    assert isinstance(model, cls)
    _load_part(model, state, path)
    model.eval()
    return model


def _from_checkpoint(path: Path, feature_dim: int | None, nhid: int | None, scales: tuple[int, ...] | None) -> Model:
    content = read_checkpoint(path)
    state = _require_state(content["model"], path)
    try:
        kind = CheckpointKind.model_validate(content["kind"])
    except ValidationError as error:
        raise InputError(f"{path}: kind: not that of a model ({first_line(error)})") from None
    if kind.structural:
        return _structural(state, path, nhid, StructuralModel)
    widths = _checked_widths(state.get("backbone.conv1.weight"), path, feature_dim, nhid)
    head = "head." if kind.scales is None else "heads.fused."
    stored = {key.removeprefix(head): value for key, value in state.items() if key.startswith(head)}
    _require_head(stored, widths[1], path)
    if kind.scales is None:
        model: Model = StarFCModel(*widths)
    else:
        offsets = _offsets(torch.tensor(kind.offsets), path)
        model = HierarchicalModel(*widths, offsets=offsets, scales=scales or tuple(kind.scales))
    _load_part(model, state, path)
    model.eval()
    return model


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
    if not all(isinstance(content.get(name), dict) for name in ("kind", "model", "training")):
        raise InputError(f"{path}: a training checkpoint without kind, model and training; use an earlier one")
    return content


def _stored_scales(folder: OpenedFolder) -> tuple[int, ...]:
    """The scales that a training run's folder names, else the published ones."""
    if not folder.has("config.json"):
        return SCALES
    return tuple(folder.json("config.json", ScalesOf).hierarchical.scales)


def _newest(folder: OpenedFolder, name: str) -> str:
    """``name``, or where there is no such file, the last ``NAME_Epoch_E_batch_B.pth`` in the folder."""
    stem, suffix = name.split(".")
    numbered = [
        (int(match[1]), int(match[2]), file.name)
        for file in folder.folder.glob(f"{stem}_Epoch_*_batch_*.{suffix}")
        if (match := re.fullmatch(rf"{stem}_Epoch_(\d{{1,18}})_batch_(\d{{1,18}})\.{suffix}", file.name))
    ]
    return name if folder.has(name) or not numbered else max(numbered)[2]


def _checked_widths(weight: Tensor | None, path: Path, feature_dim: int | None, nhid: int | None) -> tuple[int, int]:
    if weight is None or weight.ndim != 2 or 0 in weight.shape or weight.shape[0] % 2:
        raise InputError(f"{path}: no conv1.weight of shape (2d, h) in it")
    found = (weight.shape[0] // 2, weight.shape[1])
    wanted = (found[0] if feature_dim is None else feature_dim, found[1] if nhid is None else nhid)
    if found != wanted:
        raise InputError(
            f"{path}: conv1.weight is {tuple(weight.shape)}, so d = {found[0]}, h = {found[1]}, "
            f"where feature_dim = {wanted[0]}, nhid = {wanted[1]} is needed; use weights trained for that"
            f"{advice(f', or set {{}}={found[0]} {{}}={found[1]}', 'model.kwargs.feature_dim', 'model.kwargs.nhid')}"
        )
    return found


def _require_head(state: Mapping[str, Tensor], nhid: int, path: Path) -> None:
    """A head as wide as the backbone, in the file itself: nothing is made by what another file says alone."""
    with torch.device("meta"):  # shapes without memory
        outline = EdgeHead(nhid)
    _require_shapes(outline, state, path)


def _offsets(stored: Tensor, path: Path) -> tuple[int, ...]:
    """The offsets of a hierarchical model: two or more different numbers of neighbours."""
    offsets = tuple(stored.tolist()) if stored.ndim == 1 else ()
    if len(set(offsets)) < 2 or not all(isinstance(offset, int) and 0 < offset < 2**20 for offset in offsets):
        raise InputError(f"{path}: offsets: two or more different numbers of neighbours needed; found {offsets[:5]}")
    return offsets


def _read(path: Path) -> object:
    if not path.is_file():
        alone = f"; beside its {THRESHOLDS} put the weights that it was chosen for"
        raise MissingFileError(
            f"{path}: no such checkpoint; a model folder holds Contextual.pth, Structural.pth, Backbone.pth and "
            f"Head.pth, or of the hierarchical model Backbone1.pth, Head4.pth and Attention.pth"
            f"{alone if path.with_name(THRESHOLDS).is_file() else ''}"
        )
    try:
        with open_regular(path, "checkpoint") as file:
            _require_whole(file)
            return torch.load(file, map_location="cpu", weights_only=True)
    except MissingFileError:
        raise
    except Exception as error:  # whatever the parsers of archives and weights raise
        raise InputError(
            f"{path}: not a readable checkpoint, truncated or of another kind ({first_line(error)}); copy it again"
        ) from None


def _require_whole(file: BinaryIO) -> None:
    """Compare the members of torch's archive with their checksums; they are stored as they are, so none can swell."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if any(member.compress_size != member.file_size for member in archive.infolist()):
                raise ValueError("its members are compressed, which torch does not write")
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} is not what its checksum says")
    file.seek(0)


def _stored(folder: OpenedFolder, name: str) -> tuple[dict[str, Tensor], Path]:
    """The state dict of a folder's file, and where that lies."""
    path = folder.verified(name)
    state = _read(path)
    return _require_state(state, path), path


def _require_state(state: object, path: Path) -> dict[str, Tensor]:
    """A plain state dict of tensors that lie in the file as large as they say; DataParallel's prefix goes."""
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise InputError(f"{path}: a plain state dict (name -> tensor) needed; found {type(state).__name__}")
    for key, value in state.items():
        plain = value.layout is torch.strided and value.device.type == "cpu" and not value.is_quantized
        if not plain or value.is_complex() or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise InputError(
                f"{path}: {key[:80]!r}: a dense tensor of real numbers, all of them in the file, needed; found "
                f"{tuple(value.shape)}, {value.dtype}; copy the file again"
            )
    return {key.removeprefix("module."): value for key, value in state.items()}


def _require_shapes(module: torch.nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    problems = [
        f"{key[:80]} {wanted.get(key, 'not known')} needed, found {found.get(key, 'none')}"
        for key in sorted(wanted | found)
        if wanted.get(key) != found.get(key)
    ]
    if problems:
        raise InputError(
            f"{path}: tensors do not fit: {'; '.join(problems[:8])}; use weights of this network and these widths"
        )


def _load_part(module: torch.nn.Module, state: dict[str, Tensor], path: Path) -> None:
    _require_shapes(module, state, path)
    if not all(torch.isfinite(value).all() for value in state.values()):
        raise InputError(f"{path}: weights that are NaN or infinite; use an earlier checkpoint")
    module.load_state_dict(state)
