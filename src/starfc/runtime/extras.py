"""Optional packages. Each is installed with an extra, and imported only where it is used."""

from __future__ import annotations

import importlib
import importlib.util

from starfc.errors import InputError

EXTRAS = {  # module: package, extra
    "h5py": ("h5py", "hdf5"),
    "PIL": ("pillow", "report"),
    "pillow_heif": ("pillow-heif", "heic"),
    "werkzeug": ("werkzeug", "review"),
    "fontTools": ("fonttools", "glyph"),
    "brotli": ("brotli", "glyph"),
    "matplotlib": ("matplotlib", "plots"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "igraph": ("igraph", "communities"),
    "infomap": ("infomap", "baselines"),
    "ray": ("ray", "ray"),
    "faiss": ("faiss-gpu", "faiss-gpu"),
}


def require(module: str, what: str, otherwise: str = "") -> None:
    """Import a module of :data:`EXTRAS`, or raise an error that says how to install it.

    Parameters
    ----------
    module : str
        Name of the module.
    what : str
        The feature that needs the module, for the message.
    otherwise : str
        An alternative for the user, for the message.

    Raises
    ------
    InputError
        The package is not installed, or cannot be imported.
    """
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise InputError(needs(module, what) + (otherwise and f", {otherwise}")) from error


def installed(module: str) -> bool:
    """Return whether a module is installed, without importing it."""
    return importlib.util.find_spec(module) is not None


def needs(module: str, what: str) -> str:
    """Return the message for a missing package that ``what`` needs."""
    package, extra = EXTRAS[module]
    return f"{what} needs the package {package}; pip install 'starfc[{extra}]'"
