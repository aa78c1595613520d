"""Names of parameters in messages. They depend on the interface: ``--k`` (shell), ``k`` (Python), ``knn`` (config).

Inside the package the name of a parameter is its dotted config key. The name of a command is "starfc report"; Python
may have a method instead. A message that names one of them gets the name from :func:`word`, so that the user knows it.
A message gives advice with :func:`advice`, only if the interface has the parameters that the advice needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Words:
    """The parameter names of one interface.

    Attributes
    ----------
    known : mapping
        Name of each parameter that the interface has, by config key.
    other : callable
        Function from the config key of any other parameter to its name.
    whole : bool
        Whether the interface has all parameters; those outside ``known`` are then named by ``other``.
    """

    known: Mapping[str, str] = field(default_factory=dict)
    other: Callable[[str], str] = str
    whole: bool = False

    def has(self, key: str) -> bool:
        return self.whole or key in self.known

    def word(self, key: str) -> str:
        return self.known.get(key) or self.other(key)


_OF_SCRIPTS = ("features", "labels", "overwrite", "engine", "workers", "address", "store", "shard_rows")
CONFIG = Words({name: f"--{name.replace('_', '-')}" for name in _OF_SCRIPTS}, whole=True)
_SAME = [
    "tau1",
    "tau2",
    "th_sim",
    "knn_method",
    "knn_recall",
    "memory_limit",
    "device_memory",
    "invalid_rows",
    "copies",
    "adapt",
    "reach",
    "device",
    "features",
    "labels",
    "key",
]
PYTHON = Words(
    {
        **{name: name for name in (*_SAME, "key")},
        "knn": "k",
        "overwrite": "overwrite=True",
        "starfc report": "StarFC.report",
        "starfc ask": "StarFC.questions",
        "model.kwargs.feature_dim": "feature_dim",
        "partition.type": "partition",
        "seed": "random_state",
    },
    lambda key: key.rpartition(".")[2],
)
PARAMETERS = {  # names of parameters in the functions of the commands, if they differ from the config key
    "knn": "k",
    "knn_method": "knn",
    "knn_recall": "recall",
    "knn_graph_path": "knn_graph",
    "memory_limit": "memory",
    "model.kwargs.feature_dim": "feature_dim",
    "partition.type": "partition",
    "dynamic.tau1": "tau1",
    "dynamic.tau2": "tau2",
    "pretrained": "model",
    "total_epochs": "epochs",
}

_used: ContextVar[Words] = ContextVar("words", default=PYTHON)


@contextmanager
def use(words: Words) -> Iterator[None]:
    """Use the parameter names of an interface in messages while the block runs."""
    before = _used.set(words)
    try:
        yield
    finally:
        _used.reset(before)


def word(key: str) -> str:
    """Return the name that the interface in use has for the parameter of a dotted config key."""
    return _used.get().word(key)


def counted(count: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun: ``1 split``, ``2 splits``. ``many`` is the plural if it is not ``one`` plus s."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def maker(command: str) -> str:
    """Return what the interface in use calls a command that ``files.json`` names, or else that name in quotes."""
    return (advice("{}", f"starfc {command}") if command.isidentifier() else "") or repr(command)


def anew(command: str) -> str:
    """Return advice to run the command again that wrote a damaged folder, in the words of the interface in use."""
    return (advice("run {} again", f"starfc {command}") if command.isidentifier() else "") or "create it again"


def advice(text: str, *keys: str) -> str:
    """Return ``text`` with the names of ``keys`` in place of its ``{}``, or "" if the interface in use lacks one."""
    words = _used.get()
    return text.format(*map(words.word, keys)) if all(map(words.has, keys)) else ""
