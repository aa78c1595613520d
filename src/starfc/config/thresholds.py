"""Store thresholds with the weights (``thresholds.json``), and determine the thresholds of a clustering."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starfc.errors import InputError, MissingFileError
from starfc.models.checkpoint import THRESHOLDS, Model, run_folder
from starfc.models.kinds import PUBLISHED
from starfc.runtime.words import advice, word
from starfc.storage.atomic import write_json
from starfc.storage.opened import opened
from starfc.storage.records import Whatever

if TYPE_CHECKING:
    from starfc.config.config import Config

log = logging.getLogger("starfc")

GIVEN, DATA, PUBLISHED_VALUE = "given", "the data", "the published value"  # sources of a threshold


def save_thresholds(folder: str | Path, pairs: Mapping[str, Mapping[str, object]], chosen_on: str) -> None:
    """Write ``thresholds.json``: a pair of thresholds for each refinement.

    Parameters
    ----------
    folder : path
        Folder of the weights.
    pairs : mapping
        The entries 'fixed' and 'dynamic', each with tau1, tau2 and further information. Both pairs were chosen for
        components. A model that makes communities by default does not use them for communities.
    chosen_on : str
        Description of the data that they were chosen on.
    """
    write_json(Path(folder) / THRESHOLDS, {**pairs, "chosen_on": chosen_on})


def load_thresholds(folder: str | Path, refinement: str = "fixed") -> tuple[float, float]:
    """Read τ1 and τ2 of a refinement, 'fixed' or 'dynamic', from ``thresholds.json`` in the folder of the weights.

    If ``folder`` is a checkpoint file, the thresholds of its training run are read.

    Raises
    ------
    MissingFileError, InputError
        There is no such file, or it lacks the pair.
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
    values: list[Any] = [pair.get(name) for name in ("tau1", "tau2")] if isinstance(pair, dict) else []
    if not values or not all(isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v <= 1 for v in values):
        found = f"only {', '.join(content) or 'nothing'}" if pair is None and isinstance(content, dict) else pair
        raise InputError(
            f"{path}: needs an object {refinement!r} with numbers tau1 and tau2 between 0 and 1; found {found}; "
            f"{remedy}"
        )
    return float(values[0]), float(values[1])


@dataclass(frozen=True)
class Thresholds:
    """The thresholds of a clustering.

    Attributes
    ----------
    tau1, tau2 : float or None
        None: the threshold is chosen from the data.
    sources : tuple of str
        The source of each threshold.
    """

    tau1: float | None
    tau2: float | None
    sources: tuple[str, str] = (DATA, DATA)

    @property
    def source(self) -> str:
        """Return the sources of both thresholds as text."""
        first, second = self.sources
        return first if first == second else f"tau1: {first}; tau2: {second}"

    @property
    def reason(self) -> str | None:
        """Return the source of τ1. None if the user gave it or it is chosen from the data."""
        return None if self.sources[0] in (GIVEN, DATA) else self.sources[0]


def resolve(
    explicit: tuple[float | None, float | None], config: Config, model: Model, refinement: str = "fixed"
) -> Thresholds:
    """Determine the thresholds of a clustering, in the same way for the command line, scripts and Python.

    Each threshold is the first of these values that is not None:

    1. the value that the user gave;
    2. the value of this refinement in ``thresholds.json`` in the folder of the weights. It was chosen for components,
       so it is not used for communities of a contextual model;
    3. the value of the config;
    4. the default of the kind of model.

    For communities τ2 is 0.

    Parameters
    ----------
    explicit : tuple of float or None
        τ1 and τ2 that the user gave for this clustering.
    config : Config
        Config of the clustering. Its partition sets whether there are components or communities.
    model : Model
        The model. A loaded model knows the folder of its weights.
    refinement : {'fixed', 'dynamic'}
        Method that sets the threshold of node intimacy.

    Raises
    ------
    MissingFileError, InputError
        ``thresholds.json`` is damaged or lacks the refinement, or the folder of the weights is gone.
    """
    communities = refinement == "fixed" and config.partition.type != "components"
    if communities:
        if explicit[1] is not None:
            log.warning(
                "%s: %s communities do not use it%s", word("tau2"), config.partition.type,
                advice("; set {} to components", "partition.type"),
            )  # fmt: skip
        explicit = (explicit[0], 0.0)
    of_config = config.dynamic if refinement == "dynamic" else config
    ranked = [(GIVEN, explicit), ("the config's", (of_config.tau1, of_config.tau2))]
    weights = run_folder(model) if None in explicit else None
    own = not (communities and model.kind.contextual)
    if weights is not None and own and weights.has(THRESHOLDS):
        stored = load_thresholds(weights.folder, refinement)
        ranked.insert(1, (f"stored in {weights.folder}, chosen on labels for components", stored))
    default = model.kind.thresholds[refinement]
    ranked.append((PUBLISHED_VALUE if default == PUBLISHED[refinement] else "the default of the model", default))
    found = [
        next(((pair[i], source) for source, pair in ranked if pair[i] is not None), (None, DATA)) for i in range(2)
    ]
    (tau1, first), (tau2, second) = found
    decided = Thresholds(tau1, tau2, (first, first if communities else second))
    ignored = [
        f"{name} {value:g}"
        for name, value, used, given in zip(
            ("tau1", "tau2"), (of_config.tau1, of_config.tau2), (tau1, tau2), explicit, strict=True
        )
        if value is not None and given is None and used is not None and value != used
    ]
    if ignored and not communities:
        log.warning(
            "the config's %s: no effect, because thresholds stored beside the weights are used first; to use the "
            "config's values, %s", ", ".join(ignored), _how_to_give(refinement),
        )  # fmt: skip
    if weights is not None and PUBLISHED_VALUE in decided.sources:
        log.warning(
            "%s: no %s, so the weights have no thresholds of their own: tau1 %g, tau2 %g (%s); choose them on labelled "
            "data with starfc tune", weights.folder, THRESHOLDS, tau1, tau2, decided.source,
        )  # fmt: skip
    elif None in explicit and tau1 is not None and tau2 is not None:
        log.info("thresholds, %s: tau1 %g, tau2 %g: %s", refinement, tau1, tau2, decided.source)
    return decided


def _how_to_give(refinement: str) -> str:
    """Return how to give thresholds that go before those stored beside the weights."""
    prefix = "dynamic." if refinement == "dynamic" else ""
    return advice("give {} and {}", f"{prefix}tau1", f"{prefix}tau2") or f"delete {THRESHOLDS} from the model's folder"
