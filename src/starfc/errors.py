"""Errors for mistakes in the input. The command line prints them without a traceback; any other error is a bug."""

from __future__ import annotations


class InputError(ValueError):
    """A parameter or a file breaks a rule. The message names it, the rule, what was found and what to do."""


class MissingFileError(InputError, FileNotFoundError):
    """A file that is needed does not exist."""

    def __str__(self) -> str:
        return str(self.args[0])
