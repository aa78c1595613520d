"""The kinds of models: what of a model's use follows from its kind alone, in one table.

A model's class names its kind (``model.kind``). Nothing here imports torch, so that configs and commands can read the
table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PUBLISHED = {"fixed": (0.7, 0.72), "dynamic": (0.85, 0.78)}  # tau1, tau2


@dataclass(frozen=True)
class ModelKind:
    """A kind of model.

    Parameters
    ----------
    name : str
        ``model.type`` of a config.
    recipe : str
        What ``starfc train --type`` calls it (:mod:`starfc.recipes`).
    config : str
        The config file in configs/ that is an example of it.
    files : mapping
        Names of its files of weights, by the part of the model that each holds; the first tells the kind.
    training_only : tuple of str
        Parts that inference does without.
    structural : bool
        Edges are judged by whole lists of neighbours (structural columns), whatever the embedding: lists may be shorter
        than in training, and rows of the same direction are clustered as one.
    contextual : bool
        p is calibrated for every set, so that τ1 of communities can be chosen from the data.
    partition : str
        Of the fixed refinement, where none is asked for.
    thresholds : mapping
        (τ1, τ2) of either refinement, where neither the user, the weights nor a config has any; None: the data decide.
    """

    name: str
    recipe: str
    config: str
    files: Mapping[str, str]
    training_only: tuple[str, ...] = ()
    structural: bool = False
    contextual: bool = False
    partition: str = "components"
    thresholds: Mapping[str, tuple[float | None, float | None]] = field(default_factory=lambda: PUBLISHED)

    @property
    def first_file(self) -> str:
        return next(iter(self.files.values()))


ANY = ModelKind(
    "gcn_structural_any",
    "any",
    "cfg_gcn_structural_any.py",
    {"": "Contextual.pth"},
    structural=True,
    contextual=True,
    partition="infomap",
    # dynamic: edges that are rather right than wrong, and the published ceiling
    thresholds={"fixed": (None, None), "dynamic": (0.5, PUBLISHED["dynamic"][1])},
)
STRUCTURAL = ModelKind(
    "gcn_structural", "structural", "cfg_gcn_structural_ms1m.py", {"": "Structural.pth"}, structural=True
)
GCN = ModelKind("gcn", "gcn", "cfg_gcn_ms1m.py", {"backbone": "Backbone.pth", "head": "Head.pth"})
HIERARCHICAL = ModelKind(
    "hierarchical",
    "hierarchical",
    "cfg_gcn_ms1m_hierarchical.py",
    {
        "backbone": "Backbone1.pth",
        "heads.small": "Head1.pth",
        "heads.mid": "Head2.pth",
        "heads.large": "Head3.pth",
        "heads.fused": "Head4.pth",
        "selector": "Attention.pth",
        "offset_learner": "Distance.pth",
    },
    training_only=("heads.small", "heads.mid", "heads.large", "offset_learner"),
)
KINDS = {kind.name: kind for kind in (ANY, STRUCTURAL, GCN, HIERARCHICAL)}
