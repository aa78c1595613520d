"""The table of model kinds: all settings that depend only on the kind of a model.

The class of a model names its kind (``model.kind``). This module does not import torch, so that configs and commands
can read the table quickly.
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
        The value of ``model.type`` in a config.
    recipe : str
        The name in ``starfc train --type`` (:mod:`starfc.recipes`).
    config : str
        The example config file in configs/.
    files : mapping
        The names of the weight files, by part of the model. The first file identifies the kind.
    training_only : tuple of str
        Parts that inference does not need.
    structural : bool
        Edges are scored by structural features of the neighbour lists, for any embedding. Lists may be shorter than in
        training, and copies (rows of the same direction) are clustered as one row.
    contextual : bool
        p is calibrated for each set, so that τ1 of communities can be chosen from the data.
    on_shards : bool
        The stages of runs on shards score its edges (:mod:`starfc.shards`).
    partition : str
        The default partition of the fixed refinement.
    thresholds : mapping
        The default (τ1, τ2) of each refinement, if user, weights and config have none. None lets the data decide.
    """

    name: str
    recipe: str
    config: str
    files: Mapping[str, str]
    training_only: tuple[str, ...] = ()
    structural: bool = False
    contextual: bool = False
    on_shards: bool = True
    partition: str = "components"
    thresholds: Mapping[str, tuple[float | None, float | None]] = field(default_factory=lambda: PUBLISHED)

    @property
    def first_file(self) -> str:
        """The name of the first weight file, which identifies the kind."""
        return next(iter(self.files.values()))


ANY = ModelKind(
    "gcn_structural_any",
    "any",
    "cfg_gcn_structural_any.py",
    {"": "Contextual.pth"},
    structural=True,
    contextual=True,
    partition="infomap",
    # dynamic: τ1 = 0.5, because above it an edge is more likely right than wrong; τ2 is the published ceiling
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
    on_shards=False,
)
KINDS = {kind.name: kind for kind in (ANY, STRUCTURAL, GCN, HIERARCHICAL)}
