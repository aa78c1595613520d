"""Read and write weights: the published files (one state dict per part of a model), and single-file checkpoints."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import torch
import xxhash
from pydantic import ValidationError
from torch import Tensor

from starfc.errors import InputError, MissingFileError
from starfc.models.contextual import CONTEXT_FIRST, CONTEXT_SECOND, MOST_MEMBERS, ContextualModel
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
PRETRAINED = Path(__file__).parent.parent / "pretrained" / "any"  # the weights that come with the package
FORMAT = "starfc checkpoint 1"

Model = StarFCModel | HierarchicalModel | StructuralModel
_Structural = TypeVar("_Structural", bound=StructuralModel)


def save_model(model: Model, folder: str | Path) -> None:
    """Write the state dict of each part into ``folder``, under the published names. Each file is written atomically."""
    for part, name in model.kind.files.items():
        state = {key: value.detach().cpu().clone() for key, value in model.get_submodule(part).state_dict().items()}
        _save(Path(folder) / name, state)


def weights_digest(model: Model) -> str:
    """Return a digest of the names and values of a model's weights."""
    state = xxhash.xxh3_64()
    for name, value in sorted(model.state_dict().items()):
        state.update(name.encode())
        state.update(np.ascontiguousarray(value.cpu().numpy()).view(np.uint8).data)
    return state.hexdigest()


def load_model(
    path: str | Path,
    feature_dim: int | None = None,
    nhid: int | None = None,
    scales: tuple[int, ...] | None = None,
) -> Model:
    """Read a model. Its kind and its widths are determined by the files.

    Parameters
    ----------
    path : path
        A checkpoint file of a training run, or a folder with one of these sets of files: ``Contextual.pth``;
        ``Structural.pth``; ``Backbone.pth`` and ``Head.pth``; or ``Backbone1.pth``, ``Head4.pth`` and
        ``Attention.pth`` (to continue training, also ``Head1.pth`` to ``Head3.pth`` and ``Distance.pth``). Names may
        have the published suffix ``_Epoch_E_batch_B``; the latest file is then read.
    feature_dim, nhid : int, optional
        Widths that the weights must have. Default: any.
    scales : tuple of int, optional
        Numbers of neighbours of a hierarchical model's three graphs. Default: those of the checkpoint file, or of
        ``config.json`` in the folder, or the published ones.

    Raises
    ------
    MissingFileError
        If a file is missing.
    InputError
        If a file is truncated or not a state dict, lacks a tensor, or has other widths.
    """
    path = Path(path)
    if path.is_file():
        model = _from_checkpoint(path, feature_dim, nhid, scales)
    else:
        model = _from_folder(opened(path), feature_dim, nhid, scales)
    model.folder = path
    return model


def run_folder(model: Model) -> OpenedFolder | None:
    """Return the folder from which a model was loaded; for a checkpoint file, the folder of its training run.

    The result is None for a model that was not loaded from disk.

    Raises
    ------
    MissingFileError
        If the folder no longer exists.
    """
    if model.folder is None:
        return None
    if not model.folder.exists():
        raise MissingFileError(
            f"{model.folder}: the model was loaded from there, but it no longer exists; load the model from its new "
            "place"
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
    """Return the kind of the model in a folder, and the names of its files by part of the model."""
    kind = next((kind for kind in (ANY, GCN, STRUCTURAL, HIERARCHICAL) if folder.has(kind.first_file)), None)
    if kind is None:
        kind = HIERARCHICAL if folder.has(_newest(folder, HIERARCHICAL.first_file)) else GCN
    names = {part: _newest(folder, name) for part, name in kind.files.items()}
    return kind, {part: name for part, name in names.items() if folder.has(name) or part not in kind.training_only}


def copied_files(path: str | Path) -> dict[str, Path]:
    """Return the files to copy when a model is copied: weights and ``config.json``, as a map of new name to path.

    The result is empty if ``path`` is a checkpoint file.
    """
    path = Path(path)
    if path.is_file():
        return {}
    folder = opened(path)
    kind, names = _stored_names(folder)
    files = {kind.files[part]: folder.verified(name) for part, name in names.items()}
    return files | ({"config.json": folder.verified("config.json")} if folder.has("config.json") else {})


def describe(model: Model) -> dict[str, object]:
    """Return the description of a model's kind and widths, which a checkpoint stores for :func:`load_model`."""
    kind: dict[str, object] = {"feature_dim": model.feature_dim, "nhid": model.nhid}
    if isinstance(model, HierarchicalModel):
        kind |= {"offsets": model.offset_learner.offsets.tolist(), "scales": list(model.scales)}
    if model.kind.structural:
        kind["structural"] = True
    return kind


def _contextual(state: dict[str, Tensor], path: Path, nhid: int | None) -> ContextualModel:
    seen = next((value for name, value in state.items() if name.endswith("context.0.weight")), None)
    if seen is not None and seen.ndim == 2 and seen.shape[1] not in (CONTEXT_FIRST, CONTEXT_SECOND):
        raise InputError(
            f"{path}: weights for contexts of {CONTEXT_FIRST} numbers needed; found {seen.shape[1]}; they were trained "
            "by another version of starfc: train them again, or use that version"
        )
    return _structural(state, path, nhid, ContextualModel, "first.members.0.layers.1.weight", MOST_MEMBERS)


def _structural(
    state: dict[str, Tensor],
    path: Path,
    nhid: int | None,
    cls: type[_Structural],
    inner: str = "first.layers.1.weight",
    most: int = 2,
) -> _Structural:
    """Return a structural or contextual model with the weights ``state``.

    Parameters
    ----------
    state : dict
        The weights. Its tensor ``shape`` has five numbers: units, columns, candidates, smoothing, and the number of
        rounds or members.
    path : path
        The file, for messages.
    nhid : int, optional
        The number of units that the weights must have.
    cls : type
        The class of the model.
    inner : str
        A weight of shape (units, units), by which ``shape`` is checked.
    most : int
        The maximum number of rounds or members.
    """
    shape = state.get("shape")
    if shape is None or shape.shape != (5,) or shape.dtype != torch.int64:
        raise InputError(f"{path}: weights of a {cls.__name__} with a 'shape' of 5 numbers needed; found no such shape")
    units, columns, candidates, smoothing, parts = shape.tolist()
    if nhid not in (None, units):
        raise InputError(
            f"{path}: nhid = {nhid} needed; found {units}; use weights trained with that"
            f"{advice(', or set {} to ' + str(units), 'model.kwargs.nhid')}"
        )
    # Check the sizes before the model is created: a damaged file could ask for any amount of memory.
    hidden = state.get(inner)
    lists = min(columns, candidates) >= 1 and smoothing >= 0 and max(columns, candidates, smoothing) <= MOST_NEIGHBOURS
    within = lists and 1 <= parts <= most
    if hidden is None or units < 1 or hidden.shape != (units, units) or not within:
        found = None if hidden is None else tuple(hidden.shape)
        raise InputError(
            f"{path}: the shape {shape.tolist()} and {inner} {found} do not fit a {cls.__name__}; copy the file again"
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
        raise InputError(f"{path}: kind: not the description of a model ({first_line(error)})") from None
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
    """Write a model and the state of its training to one file, atomically."""
    content = {
        "format": FORMAT,
        "kind": describe(model),
        "model": {key: value.detach().cpu() for key, value in model.state_dict().items()},
        "training": training,
    }
    _save(path, content)


def _save(path: Path, content: object) -> None:
    """Write ``content`` atomically. Equal content gives equal bytes.

    ``torch.save`` writes the name of its file into the file, here that of the temporary file. A buffer has no name.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getbuffer())


def read_checkpoint(path: str | Path) -> dict[str, object]:
    """Return the content that :func:`write_checkpoint` wrote.

    Raises
    ------
    MissingFileError
        If the file is missing.
    InputError
        If the file is truncated or not a training checkpoint.
    """
    content = _read(Path(path))
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = sorted(map(str, content))[:5] if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{path}: not a training checkpoint of this package ({FORMAT}); found {found}")
    if not all(isinstance(content.get(name), dict) for name in ("kind", "model", "training")):
        raise InputError(f"{path}: a training checkpoint without kind, model and training; use an earlier one")
    return content


def _stored_scales(folder: OpenedFolder) -> tuple[int, ...]:
    """Return the scales in ``config.json`` of a training run's folder; without this file, the published ones."""
    if not folder.has("config.json"):
        return SCALES
    return tuple(folder.json("config.json", ScalesOf).hierarchical.scales)


def _newest(folder: OpenedFolder, name: str) -> str:
    """Return ``name`` if the file exists, otherwise the latest ``NAME_Epoch_E_batch_B.pth`` in the folder."""
    stem, suffix = name.split(".")
    numbered = [
        (int(match[1]), int(match[2]), file.name)
        for file in folder.folder.glob(f"{stem}_Epoch_*_batch_*.{suffix}")
        if (match := re.fullmatch(rf"{stem}_Epoch_(\d{{1,18}})_batch_(\d{{1,18}})\.{suffix}", file.name))
    ]
    return name if folder.has(name) or not numbered else max(numbered)[2]


def _checked_widths(weight: Tensor | None, path: Path, feature_dim: int | None, nhid: int | None) -> tuple[int, int]:
    """Return d and h of a backbone weight (2d, h). Raise InputError unless they are as requested."""
    if weight is None or weight.ndim != 2 or 0 in weight.shape or weight.shape[0] % 2:
        raise InputError(f"{path}: a tensor conv1.weight of shape (2d, h) needed; found none")
    found = (weight.shape[0] // 2, weight.shape[1])
    wanted = (found[0] if feature_dim is None else feature_dim, found[1] if nhid is None else nhid)
    if found != wanted:
        raise InputError(
            f"{path}: feature_dim = {wanted[0]}, nhid = {wanted[1]} needed; found d = {found[0]}, h = {found[1]} "
            f"(conv1.weight is {tuple(weight.shape)}); use weights trained with these widths"
            f"{advice(f', or set {{}}={found[0]} {{}}={found[1]}', 'model.kwargs.feature_dim', 'model.kwargs.nhid')}"
        )
    return found


def _require_head(state: Mapping[str, Tensor], nhid: int, path: Path) -> None:
    """Raise unless the head's tensors have the width of the backbone.

    The check comes before the model is created, so that one wrong file cannot make it allocate too much memory.
    """
    with torch.device("meta"):  # shapes without memory
        outline = EdgeHead(nhid)
    _require_shapes(outline, state, path)


def _offsets(stored: Tensor, path: Path) -> tuple[int, ...]:
    """Return the offsets of a hierarchical model. Raise unless they are at least two different positive numbers."""
    offsets = tuple(stored.tolist()) if stored.ndim == 1 else ()
    if len(set(offsets)) < 2 or not all(isinstance(offset, int) and 0 < offset < 2**20 for offset in offsets):
        raise InputError(f"{path}: offsets: two or more different numbers of neighbours needed; found {offsets[:5]}")
    return offsets


def _read(path: Path) -> object:
    if not path.is_file():
        alone = f"; the folder has a {THRESHOLDS}: put the weights there for which these thresholds were chosen"
        raise MissingFileError(
            f"{path}: no such checkpoint; a model folder has Contextual.pth, or Structural.pth, or Backbone.pth and "
            f"Head.pth, or (hierarchical model) Backbone1.pth, Head4.pth and Attention.pth"
            f"{alone if path.with_name(THRESHOLDS).is_file() else ''}"
        )
    try:
        with open_regular(path, "checkpoint") as file:
            _require_whole(file)
            return torch.load(file, map_location="cpu", weights_only=True)
    except MissingFileError:
        raise
    except Exception as error:  # the parsers of archives and weights can raise any exception
        raise InputError(
            f"{path}: not a readable checkpoint: truncated or another kind of file ({first_line(error)}); copy it again"
        ) from None


def _require_whole(file: BinaryIO) -> None:
    """Raise unless the members of torch's archive match their checksums.

    Members must be uncompressed, as torch writes them. A compressed member could expand to any size.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if any(member.compress_size != member.file_size for member in archive.infolist()):
                raise ValueError("its members are compressed, which torch does not write")
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} does not match its checksum")
    file.seek(0)


def _stored(folder: OpenedFolder, name: str) -> tuple[dict[str, Tensor], Path]:
    """Return the state dict of a file in a folder, and the file's path."""
    path = folder.verified(name)
    state = _read(path)
    return _require_state(state, path), path


def _require_state(state: object, path: Path) -> dict[str, Tensor]:
    """Return a state dict without the prefix of DataParallel.

    Raise unless it is a plain state dict of dense real CPU tensors, and the file has all data of each tensor.
    """
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise InputError(f"{path}: a plain state dict (name -> tensor) needed; found {type(state).__name__}")
    for key, value in state.items():
        plain = value.layout is torch.strided and value.device.type == "cpu" and not value.is_quantized
        if not plain or value.is_complex() or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise InputError(
                f"{path}: {key[:80]!r}: a dense tensor of real numbers with all its data in the file needed; found "
                f"{tuple(value.shape)}, {value.dtype}; copy the file again"
            )
    return {key.removeprefix("module."): value for key, value in state.items()}


def _require_shapes(module: torch.nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Raise unless ``state`` has the tensors of ``module``, in the same shapes."""
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    problems = [
        f"{key[:80]} {wanted.get(key, 'not known')} needed, found {found.get(key, 'none')}"
        for key in sorted(wanted | found)
        if wanted.get(key) != found.get(key)
    ]
    if problems:
        raise InputError(
            f"{path}: wrong tensors: {'; '.join(problems[:8])}; use weights of this network and these widths"
        )


def _load_part(module: torch.nn.Module, state: dict[str, Tensor], path: Path) -> None:
    _require_shapes(module, state, path)
    if not all(torch.isfinite(value).all() for value in state.values()):
        raise InputError(f"{path}: finite weights needed; found NaN or infinite values; use an earlier checkpoint")
    module.load_state_dict(state)
