# SPDX-License-Identifier: GPL-2.0-or-later
"""Layouts of a kernel's structures as its own BTF has them."""

from __future__ import annotations

from collections.abc import Callable

from hibernaut.errors import FormatError
from hibernaut.kernel.btf import Btf, BtfKind
from hibernaut.kernel.layouts import StructureLayout, StructureLayouts

__all__ = ["BtfLayouts", "member_offsets"]

MAX_MEMBERS = 1 << 14
"""Bound for the members of one structure, with those of anonymous ones in it."""
MAX_STRUCTURE_BYTES = 1 << 22
"""Bound for a structure: `struct pglist_data` has 170 KB."""


class BtfLayouts:
    """Structure layouts out of BTF, and out of other layouts for a structure that it lacks.

    Args:
        btf: returns the kernel's types, None if it has none; called when a structure is asked for.
        fallback: asked for structures that are not in `btf`, or there without a member that `fallback` has.
    """

    def __init__(self, btf: Callable[[], Btf | None], fallback: StructureLayouts) -> None:
        self._btf = btf
        self._fallback = fallback

    def structure(self, name: str) -> StructureLayout:
        """Return the layout of `struct name`. Raises KeyError if neither has it, FormatError if the BTF is damaged."""
        try:
            known: StructureLayout | None = self._fallback.structure(name)
        except KeyError:
            known = None
        btf = self._btf()
        found = next(btf.find_each(name, BtfKind.STRUCT), None) if btf is not None else None
        if btf is not None and found is not None and btf.size_bytes(found) <= MAX_STRUCTURE_BYTES:
            offsets = member_offsets(btf, found)
            if known is None or known.offsets.keys() <= offsets.keys():
                return StructureLayout(name, btf.size_bytes(found), offsets, "the kernel's BTF")
        if known is None:
            raise KeyError(name)
        return known


def member_offsets(btf: Btf, number: int) -> dict[str, int]:
    """Return the byte offset of each member of a structure or union, those of anonymous members included.

    Raises:
        FormatError: the BTF is damaged.
    """
    offsets: dict[str, int] = {}
    waiting = [(number, 0)]
    visited = 0
    while waiting:
        inner, start = waiting.pop()
        for member in btf.members(inner):
            visited += 1
            if visited > MAX_MEMBERS:
                raise FormatError(f"BTF: {btf.name(number)!r} has more than {MAX_MEMBERS} members")
            at = start + member.bit_offset // 8
            if member.name:
                offsets.setdefault(member.name, at)
            elif btf.kind(anonymous := btf.stripped(member.type)) in (BtfKind.STRUCT, BtfKind.UNION):
                waiting.append((anonymous, at))
    return offsets
