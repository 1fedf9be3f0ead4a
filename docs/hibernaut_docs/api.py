# SPDX-License-Identifier: GPL-2.0-or-later
"""The reference of the library: the directive `hibernaut-api`, and what cross-references may stay unresolved."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, ClassVar

from docutils import nodes
from sphinx import addnodes
from sphinx.util.docutils import SphinxDirective

import hibernaut

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

__all__ = ["setup"]


class Api(SphinxDirective):
    """The public names that the argument lists, from their docstrings."""

    has_content: ClassVar[bool] = True

    def run(self) -> list[nodes.Node]:
        """Return the entries."""
        text = "\n".join(_entry(name) for line in self.content for name in line.split())
        return self.parse_text_to_nodes(f"```{{eval-rst}}\n{text}```")


def _entry(name: str) -> str:
    found = getattr(hibernaut, name)
    if not inspect.isclass(found):
        return f".. autofunction:: hibernaut.{name}\n"
    if issubclass(found, BaseException):
        return f".. autoexception:: hibernaut.{name}\n   :show-inheritance:\n   :members:\n"
    return f".. autoclass:: hibernaut.{name}\n   :members:\n"


def _plain_where_private(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, text: nodes.Element
) -> nodes.Node | None:
    """Leave the name of a type as plain text if it is not a public name, or one of another project.

    Nothing is fetched from the documentation of other projects, so that the site builds without a network.
    """
    del app, env
    if node.get("refdomain") != "py":
        return None
    target: str = node["reftarget"]
    public = target.removeprefix("hibernaut.") in hibernaut.__all__
    return None if public else text


def _whole_docstrings(app: Sphinx, what: str, name: str, found: object, options: object, lines: list[str]) -> None:
    """Keep the first line of a property's docstring whole: Napoleon takes what stands before a colon for a type."""
    del app, name, found, options
    if what in ("attribute", "data", "property"):
        lines.insert(0, "")


def setup(app: Sphinx) -> None:
    """Register directive and handlers."""
    app.add_directive("hibernaut-api", Api)
    app.connect("missing-reference", _plain_where_private)
    app.connect("autodoc-process-docstring", _whole_docstrings, priority=400)
