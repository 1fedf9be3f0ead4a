# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables of a source: as the caller says, as its file says, or found in its memory.

What a file says is a hint: a CPU can have been in user mode, in firmware or in a nested guest, a VMCOREINFO can be that
of another kernel. The first root that maps a direct map is taken; if none does, memory is searched as if the file had
said nothing. Where that finds several, a VMCOREINFO in memory decides.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hibernaut.errors import ContradictoryMemory, FormatError
from hibernaut.linux.direct_map import DirectMap
from hibernaut.linux.encryption import encryption_of_root
from hibernaut.linux.gaps import Fit, find_gaps
from hibernaut.linux.roots import find_root
from hibernaut.memory.dump import RootHint
from hibernaut.memory.raw import RawMemory
from hibernaut.memory.vmcoreinfo import find_vmcoreinfos, page_table_root, parse_vmcoreinfo, sme_mask
from hibernaut.paging.entries import FRAME_MASK
from hibernaut.paging.tables import PageTables
from hibernaut.sources import Source

if TYPE_CHECKING:
    from hibernaut.memory.physical import PhysicalMemory
    from hibernaut.memory.ranges import FrameRanges

__all__ = [
    "Paging",
    "direct_map_of",
    "direct_map_under",
    "find_paging",
    "page_tables_of",
    "page_tables_under",
    "paging_of",
    "paging_of_raw",
    "with_gaps",
]

MOST_HINTS = 32
"""Most roots that are tried because a file names them; memory is searched after that."""
_SHOWN = 4
ROOT_ADVICE = "give the physical address of the root as --cr3"
RAW_ADVICE = f"{ROOT_ADVICE}, or --gap START+SIZE if the file leaves out a gap in memory"


@dataclass(frozen=True, eq=False)
class Paging:
    """The page tables of a source.

    Attributes:
        cr3: physical address of the root.
        levels: levels of paging; None only for a root that the caller names.
        origin: the origin of the root: "--cr3", "CPU 0", "VMCOREINFO", "the image", "the search of memory".
        rejected: roots that the file names before it and that map no direct map.
        direct_map: the direct map under it; None for a root that the caller names.
        encryption: mask of the bit of encrypted memory in its entries, see `PageTables`; 0 without it.
        encryption_from: origin of that mask: "VMCOREINFO", or "the page tables" where it was found by plausibility.
        source: the source that they are in: that which was given, or, if it is raw memory whose page tables prove gaps,
            the same file's memory with the gaps put back.
        missing_pages: pages that the direct map maps and a file of raw memory does not hold.
    """

    cr3: int
    levels: int | None
    origin: str
    rejected: tuple[RootHint, ...] = ()
    direct_map: DirectMap | None = None
    encryption: int = 0
    encryption_from: str | None = None
    source: Source | None = None
    missing_pages: int = 0

    @property
    def root_and_levels(self) -> tuple[int, int] | None:
        """Physical address of the root, without other bits of CR3, and levels; None if these are unknown."""
        return None if self.levels is None else (self.cr3 & FRAME_MASK & ~self.encryption, self.levels)

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences on gaps that were put back, missing pages, roots that were not taken, and encrypted memory."""
        told = [self._gaps, self._missing, self._rejected, None]
        if self.encryption:
            bit = self.encryption.bit_length() - 1
            told[-1] = f"memory is encrypted (SME or SEV): bit {bit} of page-table entries, by {self.encryption_from}"
        return tuple(filter(None, told))

    @property
    def _gaps(self) -> str | None:
        if self.source is None or self.source.gaps_from in (None, "--gap"):
            return None
        shown = " ".join(f"--gap {gap}" for gap in self.source.gaps)
        return f"raw memory without its gaps: put back as by {shown}, which the page tables prove"

    @property
    def _missing(self) -> str | None:
        if not self.missing_pages:
            return None
        return f"the file is incomplete: it lacks {self.missing_pages} pages that the direct map has an entry for"

    @property
    def _rejected(self) -> str | None:
        if not self.rejected:
            return None
        others = ", ".join(f"{one.cr3:#x} ({one.origin})" for one in self.rejected[:_SHOWN])
        if len(self.rejected) > _SHOWN:
            others += f" and {len(self.rejected) - _SHOWN} more"
        verb = "maps" if len(self.rejected) == 1 else "map"
        return f"page tables: CR3 {self.cr3:#x}, by {self.origin}; {others} {verb} no direct map"


def find_paging(source: Source, cr3: int | None = None, levels: int | None = None, *, any_root: bool = False) -> Paging:
    """Return the page tables of a source. Where those of raw memory prove that its file leaves out gaps, put them back.

    Args:
        source: the memory.
        cr3: physical address of the root; None for the first that the file names and that maps a direct map, or else
            the one in memory.
        levels: 4 or 5; None as for `cr3`.
        any_root: whether, where no root is found that maps a direct map, the first that the file names will do.

    Returns:
        The page tables; memory with the gaps is that of `Paging.source`.

    Raises:
        ContradictoryMemory: raw memory leaves out a gap, and its page tables do not say which.
        FormatError: no root that the file names maps a direct map, and none, or more than one, was found; or the memory
            is that of a machine of another architecture.
    """
    source.require_x86_64()
    raw = source.undecided
    if raw is None:
        return _in_raw(source, _paging(source, cr3, levels, any_root=any_root))
    try:
        found = _in_raw(source, _paging(source, cr3, levels, any_root=any_root))
    except FormatError:
        gaps = find_gaps(raw, cr3, levels, None, source.name)
        if gaps is None:
            raise
    else:
        gaps = find_gaps(raw, found.cr3, found.levels, found.direct_map, source.name)
        if gaps is None:
            return found
    return find_paging(source.with_gaps(gaps, "the page tables"), cr3, levels, any_root=any_root)


def paging_of_raw(source: Source, levels: int | None = None) -> Paging | None:
    """Return the page tables of raw memory whose gaps are unknown.

    Returns:
        See `find_paging`; None if there are none, or if the source is other memory.

    Raises:
        ContradictoryMemory: see `find_paging`.
    """
    if source.undecided is None:
        return None
    try:
        return find_paging(source, levels=levels)
    except ContradictoryMemory:
        raise
    except FormatError:
        return None


def with_gaps(source: Source) -> Source:
    """Return a source, raw memory with the gaps put back that its page tables prove.

    Raises:
        ContradictoryMemory: see `find_paging`.
    """
    found = paging_of_raw(source)
    return source if found is None else found.source or source


def _in_raw(source: Source, found: Paging) -> Paging:
    """Return page tables with their source and, in raw memory, with their direct map, if there is one, and its gaps."""
    if not isinstance(source.memory, RawMemory):
        return replace(found, source=source)
    direct_map = found.direct_map
    if direct_map is None:
        with contextlib.suppress(FormatError):
            direct_map = DirectMap.find(source.memory, found.cr3, found.levels, encryption=found.encryption)
    missing = 0 if direct_map is None else Fit(source.memory, direct_map).missing_pages
    return replace(found, source=source, direct_map=direct_map, missing_pages=missing)


def _paging(source: Source, cr3: int | None, levels: int | None, *, any_root: bool) -> Paging:
    """Return the page tables of a source as it is. Arguments and errors as for `find_paging`."""
    if cr3 is not None:
        mask, mask_from = _encryption(source, cr3)
        number = levels if levels is not None else source.levels
        return Paging(cr3, number, "--cr3", encryption=mask, encryption_from=mask_from)
    by_root: dict[int, RootHint] = {}
    for hint in source.root_hints:
        by_root.setdefault(hint.cr3, hint)
    hints = list(by_root.values())[:MOST_HINTS]
    refusals: list[FormatError] = []
    for ram in _ram(source.memory) if hints else ():
        refusals = []
        for number, hint in enumerate(hints):
            found = _by_hint(source, hint, levels, ram, refusals)
            if found is not None:
                return replace(found, rejected=tuple(hints[:number]))
    rejected = tuple(hints)
    try:
        root = find_root(source.memory, levels)
    except FormatError as error:
        by_text = _by_text_in_memory(source, levels, rejected)
        if by_text is not None:
            return by_text
        if any_root and source.root_hints:
            first = source.root_hints[0]
            mask, mask_from = _encryption(source, first.cr3)
            number = first.levels if levels is None else levels
            return Paging(first.cr3, number, first.origin, encryption=mask, encryption_from=mask_from)
        what = "; ".join(map(_statement, refusals[:_SHOWN])) or f"{source.name} does not say where its page tables are"
        raise FormatError(
            f"{what}, and {error}",
            source=source.name if refusals else None,
            advice=ROOT_ADVICE if source.undecided is None else RAW_ADVICE,
        ) from error
    mask, mask_from = _encryption(source, root.cr3)
    origin = "the search of memory"
    return Paging(root.cr3, root.levels, origin, rejected, None, mask, mask_from)


def _ram(memory: PhysicalMemory) -> Iterator[FrameRanges]:
    """Yield the frames that count as RAM: all of the memory, then those that are not all zeroes, see `DirectMap.find`.

    The latter reads all memory, so that every root is tried with the former first.
    """
    yield memory.ranges
    occupied = memory.occupied()
    if 0 < occupied.total_pages < memory.ranges.total_pages:
        yield occupied


def _by_hint(
    source: Source, hint: RootHint, levels: int | None, ram: FrameRanges, refusals: list[FormatError]
) -> Paging | None:
    """Return the page tables that a hint names; None if they map no direct map, which is added to `refusals`."""
    mask, mask_from = _encryption(source, hint.cr3)
    for encryption in dict.fromkeys((0, mask)):
        for number in dict.fromkeys((levels,) if levels is not None else (hint.levels, None)):
            try:
                found = DirectMap.find(source.memory, hint.cr3, number, ram, encryption)
            except FormatError as refusal:
                refusals.append(refusal)
                continue
            told = mask_from if encryption else None
            return Paging(hint.cr3, found.levels, hint.origin, (), found, encryption, told)
    return None


def _by_text_in_memory(source: Source, levels: int | None, rejected: tuple[RootHint, ...]) -> Paging | None:
    """Return the page tables that VMCOREINFO in memory names; None if no text does, or those of several kernels do."""
    roots = {page_table_root(parse_vmcoreinfo(text)) for text in find_vmcoreinfos(source.memory)}
    found: list[Paging] = []
    for cr3, number in roots:
        if cr3 is None:
            continue
        mask, mask_from = _encryption(source, cr3)
        with contextlib.suppress(FormatError):
            direct_map = DirectMap.find(source.memory, cr3, levels or number, encryption=mask)
            origin = "VMCOREINFO in memory"
            found.append(Paging(cr3, direct_map.levels, origin, rejected, direct_map, mask, mask_from))
    return found[0] if len(found) == 1 else None


def _encryption(source: Source, cr3: int) -> tuple[int, str | None]:
    """Return the mask of the bit of encrypted memory under a root, and its origin; 0 and None without it.

    What VMCOREINFO says counts if the tables bear it out: the note may be another kernel's.
    """
    mask = encryption_of_root(source.memory, cr3)
    if not mask:
        return 0, None
    return mask, "VMCOREINFO" if sme_mask(source.notes) == mask else "the page tables"


def _statement(error: FormatError) -> str:
    return error.statement


def paging_of(source: Source, cr3: int | None = None, levels: int | None = None) -> tuple[int, int | None]:
    """Return CR3 and, if known, the number of levels. Arguments and errors as for `find_paging`."""
    found = find_paging(source, cr3, levels)
    return found.cr3, found.levels


def direct_map_of(source: Source, cr3: int | None = None, levels: int | None = None) -> DirectMap:
    """Return the direct map of a source. Arguments as for `find_paging`.

    Raises:
        FormatError: no root, or no direct map below it, was found.
    """
    return direct_map_under(source, find_paging(source, cr3, levels))


def direct_map_under(source: Source, paging: Paging) -> DirectMap:
    """Return the direct map of page tables of a source. Raise FormatError if there is none."""
    if paging.direct_map is not None:
        return paging.direct_map
    source = paging.source or source
    try:
        return DirectMap.find(source.memory, paging.cr3, paging.levels, encryption=paging.encryption)
    except FormatError as error:
        if error.source is not None:
            raise
        raise error.with_facts(source=source.name) from error


def page_tables_of(source: Source, cr3: int | None = None, levels: int | None = None) -> PageTables:
    """Return the page tables of a source. Arguments as for `find_paging`.

    The number of levels, if neither the caller nor the file says it, is that with which a direct map is found.

    Raises:
        FormatError: no root was found, or no direct map where the number of levels hangs on it.
    """
    return page_tables_under(source, find_paging(source, cr3, levels))


def page_tables_under(source: Source, paging: Paging) -> PageTables:
    """Return page tables of a source. Raise FormatError as `page_tables_of`."""
    levels = paging.levels if paging.levels is not None else direct_map_under(source, paging).levels
    return PageTables((paging.source or source).memory, paging.cr3, levels, paging.encryption)
