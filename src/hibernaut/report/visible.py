# SPDX-License-Identifier: GPL-2.0-or-later
"""Text from files, guests and memory, made safe to show: a terminal interprets control characters."""

from __future__ import annotations

import re

__all__ = ["visible", "visible_line"]

_NOT_PLAIN = re.compile(r"[^ -~\n\t]")
_NOT_PLAIN_IN_A_LINE = re.compile(r"[^ -~]")


def visible(text: str) -> str:
    r"""Return text in which every character that does not print is an escape such as `\x1b`; lines and tabs stay.

    Escaped are control characters, those that change the direction of text, unusual spaces, and bytes of a file name
    that are not UTF-8.
    """
    return _NOT_PLAIN.sub(_escaped, text)


def visible_line(text: str) -> str:
    r"""Return the same for a text that must stay one line: line ends and tabs are escaped, too."""
    return _NOT_PLAIN_IN_A_LINE.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    return match[0] if match[0].isprintable() else repr(match[0])[1:-1]
