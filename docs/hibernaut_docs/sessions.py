# SPDX-License-Identifier: GPL-2.0-or-later
"""Sessions, highlighted as what they are: a line after a prompt is typed, every other line is printed.

Pygments' own lexer for `console` takes a kernel's `#PF:` for the prompt of root.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pygments.lexer import RegexLexer
from pygments.token import Generic, Text

if TYPE_CHECKING:
    from sphinx.application import Sphinx

__all__ = ["Session", "setup"]


class Session(RegexLexer):
    """Lexer for `console` blocks."""

    name = "session"
    tokens: ClassVar = {
        "root": [
            (r"^\$ ", Generic.Prompt, "typed"),
            (r".*\n", Generic.Output),
        ],
        "typed": [(r".*\n", Text, "#pop")],
    }


def setup(app: Sphinx) -> None:
    """Register the lexer in place of Pygments' own."""
    app.add_lexer("console", Session)
