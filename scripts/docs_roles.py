"""Prepare docstrings for mkdocs: a role such as :func:`~starfc.graph.knn.build_knn` becomes a link if it has a page.

mkdocs.yml names this file as an extension of griffe, which reads the sources.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_ROLE = re.compile(r":(?:func|class|meth|mod|data|attr|exc):`(~?)([\w.]+)`")


class Roles(Extension):
    """A griffe extension that rewrites the roles of every docstring."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(_link, obj.docstring.value)


def _link(role: re.Match[str]) -> str:
    short, target = role.groups()
    shown = target.rsplit(".", 1)[-1] if short else target
    return f'<autoref optional identifier="{target}">`{shown}`</autoref>'
