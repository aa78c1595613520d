"""Packages that only some uses need: they come with an extra, and are imported where they are used."""

from __future__ import annotations

import importlib
import importlib.util

from starfc.errors import InputError

EXTRAS = {  # module: package, extra
    "h5py": ("h5py", "hdf5"),
    "PIL": ("pillow", "report"),
    "matplotlib": ("matplotlib", "plots"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "igraph": ("igraph", "communities"),
    "infomap": ("infomap", "baselines"),
    "faiss": ("faiss-gpu", "faiss-gpu"),
}


def require(module: str, what: str, otherwise: str = "") -> None:
    """Import a module of :data:`EXTRAS`; for the message, what needs it, and what else can be done.

    Raises
    ------
    InputError
        Its package is not installed, or cannot be imported.
    """
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise InputError(needs(module, what) + (otherwise and f", {otherwise}")) from error


def installed(module: str) -> bool:
    """Whether a module is there; it is not imported."""
    return importlib.util.find_spec(module) is not None


def needs(module: str, what: str) -> str:
    """What is said where ``what`` needs a package that is missing."""
    package, extra = EXTRAS[module]
    return f"{what} needs the package {package}; pip install 'starfc[{extra}]'"
