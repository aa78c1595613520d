"""Thresholds beside weights: ``thresholds.json``, and which thresholds a clustering has."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from starfc.errors import InputError, MissingFileError
from starfc.models.checkpoint import THRESHOLDS, Model
from starfc.records import Whatever
from starfc.runtime.atomic import write_json
from starfc.runtime.opened import opened
from starfc.words import advice

log = logging.getLogger("starfc")


def save_thresholds(folder: str | Path, pairs: Mapping[str, Mapping[str, object]], chosen_on: str) -> None:
    """Write ``thresholds.json``: a pair for either refinement, and what they were chosen on.

    ``pairs`` has an entry 'fixed' and one 'dynamic', each with tau1, tau2 and whatever else is known of the pair. Both
    are of components, and used for these alone where the model has another way.
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
    tune = advice(" with {} --model ", "starfc tune")
    remedy = (
        f"choose them on labelled data{tune and tune + str(folder)}"
        f"{advice(', or give {} and {}', prefix + 'tau1', prefix + 'tau2')}"
    )
    at = opened(folder)
    if not at.has(THRESHOLDS):
        raise MissingFileError(f"{path}: no such file, so the weights have no thresholds of their own; {remedy}")
    try:
        content = at.json(THRESHOLDS, Whatever).root
    except InputError as error:
        raise InputError(f"{error}; {remedy}") from None
    pair = content.get(refinement) if isinstance(content, dict) else None
    values = [pair.get(name) for name in ("tau1", "tau2")] if isinstance(pair, dict) else []
    if not values or not all(isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v <= 1 for v in values):
        found = f"only {', '.join(content) or 'nothing'}" if pair is None and isinstance(content, dict) else pair
        raise InputError(
            f"{path}: an object {refinement!r} with numbers tau1 and tau2 between 0 and 1 needed; found {found}; "
            f"{remedy}"
        )
    return float(values[0]), float(values[1])


@dataclass(frozen=True)
class Thresholds:
    """τ1 and τ2 of a clustering, None where the data decide; ``reason`` says where a τ1 is from that was not given."""

    tau1: float | None
    tau2: float | None
    reason: str | None = None


def thresholds_for(
    model: Model,
    folder: str | Path | None,
    refinement: str,
    partition: str,
    tau1: float | None = None,
    tau2: float | None = None,
) -> Thresholds:
    """The thresholds of a clustering: those given, and of these that are None what belongs to the weights.

    That is what is stored beside them, which was chosen for components, or the published pair of weights that are of no
    folder. With a contextual model it is None for communities, where the data decide, and where nothing is stored;
    there the dynamic refinement takes edges that are rather right than wrong, and the published ceiling.

    Parameters
    ----------
    folder : path or None
        Of the weights.
    refinement : {'fixed', 'dynamic'}
    partition : {'components', 'infomap', 'leiden'}
    tau1, tau2 : float, optional
        Those given.
    """
    pair, stored = (tau1, tau2), None
    if tau1 is None or tau2 is None:
        found = folder is not None and (not model.kind.contextual or opened(folder).has(THRESHOLDS))
        if model.kind.contextual and (partition != "components" or not found):
            pair = model.kind.thresholds[refinement]
        elif folder is None:
            pair, stored = model.kind.thresholds[refinement], "the published value"
        else:
            pair, stored = load_thresholds(folder, refinement), f"stored in {folder}, chosen on labels for components"
            log.info("thresholds of %s, %s: tau1 %.3f, tau2 %.3f", folder, refinement, *pair)
    first, second = (own if given is None else given for own, given in zip(pair, (tau1, tau2), strict=True))
    return Thresholds(first, second, stored if tau1 is None else None)
