"""STAR-FC: structure-aware clustering of faces, and of any embeddings, on large graphs."""

from __future__ import annotations

from importlib.metadata import version

from starfc.errors import InputError, MissingFileError
from starfc.estimator import StarFC

__all__ = ["InputError", "MissingFileError", "StarFC"]
__version__ = version("starfc")
