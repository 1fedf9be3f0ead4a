# SPDX-License-Identifier: GPL-2.0-or-later
"""Diagrams inside the page, so that they take the page's colours, and their text is text to a screen reader.

A forge shows the same files as images; they carry colours of their own for that, light and dark.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

if TYPE_CHECKING:
    from sphinx.application import Sphinx

__all__ = ["setup"]


class InlineDiagrams(SphinxPostTransform):
    """Replace images from `diagrams/` by the SVG itself."""

    default_priority = 5
    formats = ("html",)

    def run(self, **_arguments: object) -> None:
        """Transform one page."""
        for image in list(self.document.findall(nodes.image)):
            path = Path(self.env.srcdir) / image["uri"]
            if path.suffix == ".svg" and path.parent.name == "diagrams":
                figure = f'<figure class="diagram">{path.read_text()}</figure>'
                image.parent.replace_self(nodes.raw("", figure, format="html"))


def setup(app: Sphinx) -> None:
    """Register the transform."""
    app.add_post_transform(InlineDiagrams)
