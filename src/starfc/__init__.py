"""STAR-FC: structure-aware clustering of faces, and of any other embeddings, on large graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starfc.errors import InputError, MissingFileError
from starfc.version import __version__

if TYPE_CHECKING:
    from starfc.answers.marks import Marks
    from starfc.estimator import StarFC

__all__ = ["InputError", "Marks", "MissingFileError", "StarFC", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the estimator and its marks at their first use: they need packages that most commands do not."""
    if name == "Marks":
        from starfc.answers.marks import Marks

        return Marks
    if name == "StarFC":
        from starfc.estimator import StarFC

        return StarFC
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
