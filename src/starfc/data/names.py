"""Names of arrays, datasets and columns that are found without a key, in upper or lower case.

This module does not import NumPy, because the help of the commands lists these names.
"""

from __future__ import annotations

FEATURE_NAMES = ("features", "embeddings", "X", "data")  # in an .npz or an HDF5 file
LABEL_NAMES = ("labels", "label", "identity", "y")  # in an .npz, which may hold both
LABEL_COLUMNS = ("label", "identity")  # in a .csv or Parquet table
FILE_NAMES = ("file", "path", "filepath", "filename", "files", "paths")  # paths of instances, in .parquet and .npz


def alternatives(names: tuple[str, ...]) -> str:
    """Return names as text, such as ``features, embeddings, X or data``."""
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
