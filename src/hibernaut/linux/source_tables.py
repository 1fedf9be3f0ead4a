# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables of a source: as the caller says, as its file says, or found in its memory."""

from __future__ import annotations

from hibernaut.errors import FormatError
from hibernaut.linux.direct_map import DirectMap
from hibernaut.linux.roots import find_root
from hibernaut.paging.tables import PageTables
from hibernaut.sources import Source

__all__ = ["direct_map_of", "page_tables_of", "paging_of"]


def paging_of(source: Source, cr3: int | None = None, levels: int | None = None) -> tuple[int, int | None]:
    """Return CR3 and, if known, the number of levels.

    Args:
        source: the memory.
        cr3: physical address of the root; None for the one that the file names, or else the one in memory.
        levels: 4 or 5; None as for `cr3`.

    Raises:
        FormatError: the file names no root, and none, or more than one, was found.
    """
    if cr3 is not None:
        return cr3, levels if levels is not None else source.levels
    if source.cr3 is not None:
        return source.cr3, levels if levels is not None else source.levels
    try:
        root = find_root(source.memory)
    except FormatError as error:
        raise FormatError(
            f"{source.name} does not say where its page tables are, and {error}",
            advice="give the physical address of the root as --cr3",
        ) from error
    return root.cr3, root.levels


def direct_map_of(source: Source, cr3: int | None = None, levels: int | None = None) -> DirectMap:
    """Return the direct map of a source. Arguments as for `paging_of`.

    Raises:
        FormatError: no root, or no direct map below it, was found.
    """
    root, known_levels = paging_of(source, cr3, levels)
    try:
        return DirectMap.find(source.memory, root, known_levels)
    except FormatError as error:
        if error.source is not None:
            raise
        raise error.with_facts(source=source.name) from error


def page_tables_of(source: Source, cr3: int | None = None, levels: int | None = None) -> PageTables:
    """Return the page tables of a source. Arguments as for `paging_of`.

    The number of levels, if neither the caller nor the file says it, is that with which a direct map is found.

    Raises:
        FormatError: no root was found, or no direct map where the number of levels hangs on it.
    """
    root, known_levels = paging_of(source, cr3, levels)
    if known_levels is None:
        known_levels = direct_map_of(source, root).levels
    return PageTables(source.memory, root, known_levels)
