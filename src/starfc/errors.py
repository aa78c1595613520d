"""What a user can get wrong. The command line prints these without a traceback; anything else is a bug."""

from __future__ import annotations


class InputError(ValueError):
    """A parameter or file that breaks a rule: the message names it, the rule, what was found and what to do."""


class MissingFileError(InputError, FileNotFoundError):
    """A file that has to exist and does not."""

    def __str__(self) -> str:
        return str(self.args[0])
