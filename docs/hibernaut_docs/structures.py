# SPDX-License-Identifier: GPL-2.0-or-later
"""The directives `hibernaut-structure` and `hibernaut-flags`: what lies on disk as tables, from its declaration."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from hibernaut.swsusp import declarations

if TYPE_CHECKING:
    from sphinx.application import Sphinx

__all__ = ["setup"]


class Structure(SphinxDirective):
    """The fields of a NumPy structure in `hibernaut.swsusp.declarations`: place, type, name."""

    required_arguments: ClassVar[int] = 1

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        declared = getattr(declarations, self.arguments[0])
        assert isinstance(declared, np.dtype)
        assert declared.fields is not None
        rows = ["| byte | type | field |", "|---:|---|---|"]
        for name, (kind, offset, *_) in sorted(declared.fields.items(), key=lambda item: item[1][1]):
            rows.append(f"| {offset} | {_type_name(kind)} | `{name}` |")
        return self.parse_text_to_nodes("\n".join(rows))


class FlagBits(SphinxDirective):
    """The bits of the header's `flags`: value, name."""

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        rows = ["| bit | name |", "|---:|---|", *(f"| {flag.value} | `{flag.name}` |" for flag in declarations.Flags)]
        return self.parse_text_to_nodes("\n".join(rows))


def _type_name(kind: np.dtype[np.generic]) -> str:
    """As the kernel's headers spell it."""
    if kind.kind in "ui":
        return f"{'u' if kind.kind == 'u' else 's'}{8 * kind.itemsize}"
    return f"{kind.itemsize} bytes"


def setup(app: Sphinx) -> None:
    """Register the directives."""
    app.add_directive("hibernaut-structure", Structure)
    app.add_directive("hibernaut-flags", FlagBits)
