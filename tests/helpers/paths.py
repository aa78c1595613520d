"""Paths of the repository and of the shared data."""

from __future__ import annotations

import os
from pathlib import Path

from starfc.models.checkpoint import PRETRAINED

ROOT = Path(__file__).resolve().parent.parent.parent
SHARED = Path(os.environ.get("STARFC_SHARED", ROOT.parent / "shared"))
STRUCTURAL = PRETRAINED.parent / "structural"  # weights that see no context
