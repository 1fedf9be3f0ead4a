# SPDX-License-Identifier: GPL-2.0-or-later
"""Declarations of C as `GLOBALS` has them, taken apart: `struct pglist_data *[]`."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["Declaration", "parse_declaration"]

_DECLARATION = re.compile(r"(?:(struct|union|enum) )?(\w+(?: \w+)*) ?(\**)((?:\[\d*\])*)")
_BOUND = re.compile(r"\[(\d*)\]")


class Declaration(NamedTuple):
    """A type in C.

    Attributes:
        tag: struct, union or enum; None for a typedef or a base type.
        name: name after the tag.
        pointers: number of pointers around it.
        bounds: lengths of the arrays around these, the outermost first; None for one that is not declared.
    """

    tag: str | None
    name: str
    pointers: int
    bounds: tuple[int | None, ...]


def parse_declaration(text: str) -> Declaration:
    """Return a declaration, as `char *[]` or `unsigned long [65][]`. Raises ValueError if it is none."""
    found = _DECLARATION.fullmatch(text)
    if found is None:
        raise ValueError(f"not a declaration: {text!r}")
    bounds = tuple(int(bound) if bound else None for bound in _BOUND.findall(found[4]))
    return Declaration(found[1], found[2], len(found[3]), bounds)
