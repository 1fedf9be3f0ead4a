# SPDX-License-Identifier: GPL-2.0-or-later
"""The directive `hibernaut-rooms`: the packages of the source as a table, each with the first line of its docstring."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, ClassVar

from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx

__all__ = ["setup"]


class Rooms(SphinxDirective):
    """The rooms that the content names, in its order."""

    has_content: ClassVar[bool] = True

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        rows = ["| room | contents |", "|---|---|"]
        for name in " ".join(self.content).split():
            docstring = inspect.getdoc(importlib.import_module(f"hibernaut.{name}")) or ""
            summary = " ".join(docstring.split("\n\n")[0].split())
            rows.append(f"| `{name}` | {summary} |")
        return self.parse_text_to_nodes("\n".join(rows))


def setup(app: Sphinx) -> None:
    """Register the directive."""
    app.add_directive("hibernaut-rooms", Rooms)
