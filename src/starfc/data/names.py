"""What arrays, datasets and columns are called that are found by themselves, in any case: the one list of them.

Nothing here imports NumPy: the help of the commands names them, too.
"""

from __future__ import annotations

FEATURE_NAMES = ("features", "embeddings", "X", "data")  # of an .npz or an HDF5 file
LABEL_NAMES = ("labels", "label", "identity", "y")  # of an .npz, which may hold both
LABEL_COLUMNS = ("label", "identity")  # of a .csv or Parquet table


def alternatives(names: tuple[str, ...]) -> str:
    """``features, embeddings, X or data``."""
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
