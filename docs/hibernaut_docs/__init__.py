# SPDX-License-Identifier: GPL-2.0-or-later
"""Parts of the documentation site that are generated from the program: a Sphinx extension."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hibernaut_docs import api, commands, diagrams, documents, links, rooms, sessions, structures

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.util.typing import ExtensionMetadata

__all__ = ["setup"]


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the directives and checks with Sphinx."""
    for part in (api, commands, diagrams, documents, links, rooms, sessions, structures):
        part.setup(app)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
