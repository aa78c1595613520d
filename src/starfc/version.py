"""The version of the package. It is written only here; pyproject.toml reads it from this file."""

__version__ = "0.1.0"
