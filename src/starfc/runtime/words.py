"""What parameters are called in the interface that is used: ``--k`` on the command line, ``k`` in Python, ``knn`` in a
config.

Inside the package a parameter has one name, its dotted config key, and a command its own ("starfc report"), for which
Python may have a method. A message that names one asks :func:`word` for what
its reader calls it, and :func:`advice` gives advice only where the reader has the parameter to follow it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Words:
    """An interface: the words of the parameters that it has, by config key, and what it calls any other.

    ``whole``: the interface has every parameter, each under the name that ``other`` gives it.
    """

    known: Mapping[str, str] = field(default_factory=dict)
    other: Callable[[str], str] = str
    whole: bool = False

    def has(self, key: str) -> bool:
        return self.whole or key in self.known

    def word(self, key: str) -> str:
        return self.known.get(key) or self.other(key)


CONFIG = Words({name: f"--{name}" for name in ("features", "labels", "overwrite")}, whole=True)  # scripts' arguments
_SAME = [
    "tau1",
    "tau2",
    "th_sim",
    "knn_method",
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
        "model.kwargs.feature_dim": "feature_dim",
        "partition.type": "partition",
        "seed": "random_state",
    },
    lambda key: key.rpartition(".")[2],
)
PARAMETERS = {  # of the command line's commands, where they are not called as the config's key
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
    """Messages in the words of an interface, while the block runs."""
    before = _used.set(words)
    try:
        yield
    finally:
        _used.reset(before)


def word(key: str) -> str:
    """What the interface in use calls the parameter of a dotted config key."""
    return _used.get().word(key)


def counted(count: int, one: str, many: str | None = None) -> str:
    """A number with its noun: ``1 split``, ``2 splits``; ``many`` where the plural is not ``one`` with an s."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def maker(command: str) -> str:
    """What the interface in use calls a command by its name in ``files.json``: that name, quoted, where it has none."""
    return (advice("{}", f"starfc {command}") if command.isidentifier() else "") or repr(command)


def anew(command: str) -> str:
    """What mends a folder that a command makes: that command again, where the interface in use has it."""
    return (advice("run {} again", f"starfc {command}") if command.isidentifier() else "") or "make it anew"


def advice(text: str, *keys: str) -> str:
    """``text`` with the words of ``keys`` for its ``{}``; nothing where the interface in use lacks one of them."""
    words = _used.get()
    return text.format(*map(words.word, keys)) if all(map(words.has, keys)) else ""
