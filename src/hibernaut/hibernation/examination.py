# SPDX-License-Identifier: GPL-2.0-or-later
"""All that a report shows of a source: the map of its memory, its contents, its regions, its image, its machine.

What the source does not have is None, with a remark; an answer that costs a refusal of one question leaves the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from hibernaut.errors import ContradictoryMemory, CorruptImage, FormatError, HibernautError
from hibernaut.hibernation.audit import Audit, audit
from hibernaut.hibernation.copy_order import CopyOrder, copy_order
from hibernaut.hibernation.frame_map import FrameMap, frame_map
from hibernaut.hibernation.machine_in_source import machine_in
from hibernaut.kernel.identity import MachineIdentity, read_identity
from hibernaut.kernel.kernel import Kernel
from hibernaut.kernel.own_vmcoreinfo import with_own_vmcoreinfo
from hibernaut.kernel.reading import FactReader
from hibernaut.linux.source_tables import Paging, find_paging
from hibernaut.memory.compare import MemoryDifference, compare_memory
from hibernaut.memory.contents import PageContents, page_contents
from hibernaut.paging.changes import DifferentEntry, changed_entries

if TYPE_CHECKING:
    from hibernaut.sources import Source

__all__ = ["MAX_ENTRIES", "ChecksumState", "Examination", "SourceDifference", "difference_between", "examine"]

MAX_ENTRIES = 200
"""Changed entries of page tables that are listed."""

T = TypeVar("T")
Advance = Callable[[int], None]


@dataclass(frozen=True)
class ChecksumState:
    """The checksum of an image's pages.

    Attributes:
        stored: CRC-32 in the header; None if the image has none.
        computed: CRC-32 over the pages; None if they could not all be read, or need not be.
        damage: the first damage; None if there is none.
    """

    stored: int | None
    computed: int | None
    damage: str | None

    @property
    def ok(self) -> bool | None:
        """Whether the pages are as they were written; None if no checksum of all of them tells."""
        if self.damage is not None:
            return False
        return None if self.stored is None or self.computed is None else self.stored == self.computed


@dataclass(frozen=True, eq=False)
class Examination:
    """A source, examined.

    Attributes:
        source: the source, raw memory with its gaps put back.
        paging: its page tables; None if none were found.
        frames: the map of its memory.
        contents: contents of its pages; None if they cannot all be read.
        order: large entries that are not present, and tables that are missing, in the order of the copy.
        audit: outcome of hibernation on the machine; None if it cannot be predicted.
        checksum: checksum of the image; None for a dump.
        identity: the machine; None if its kernel is not read.
        remarks: what is not known, a sentence each.
    """

    source: Source
    paging: Paging | None
    frames: FrameMap
    contents: PageContents | None
    order: CopyOrder
    audit: Audit | None
    checksum: ChecksumState | None
    identity: MachineIdentity | None
    remarks: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class SourceDifference:
    """The difference between two sources.

    Attributes:
        memory: their frames.
        entries: entries that differ of page tables that either's root reaches and both have, at most `MAX_ENTRIES`.
        more_entries: number of further ones.
    """

    memory: MemoryDifference
    entries: tuple[DifferentEntry, ...]
    more_entries: int


def examine(
    source: Source, *, cr3: int | None = None, levels: int | None = None, progress: Advance | None = None
) -> Examination:
    """Return all that a report shows of a source. Its pages are read once, those of an image twice.

    Args:
        source: a dump or an image.
        cr3: physical address of the root of the page tables. Default: see `find_paging`.
        levels: levels of paging. Default: see `find_paging`.
        progress: called with the number of pages read since the last call.

    Raises:
        FormatError: the source is of another architecture, or its page tables are hostile; or `cr3` is not a root.
        ContradictoryMemory: see `find_paging`.
    """
    source.require_x86_64()
    remarks: list[str] = list(source.remarks)
    paging = find_paging(source, cr3, levels) if cr3 is not None else _asked(remarks, lambda: find_paging(source))
    if paging is not None:
        source = paging.source or source
        remarks += paging.remarks
    source = _with_its_vmcoreinfo(source, paging, remarks)
    checksum = _checksum(source, progress)
    contents = _contents(source, remarks, progress)
    frames = frame_map(source, paging, None if contents is None else contents.zero)
    return Examination(
        source=source,
        paging=paging,
        frames=frames,
        contents=contents,
        order=copy_order(frames),
        audit=_audited(source, paging, remarks),
        checksum=checksum,
        identity=_identity(source, remarks),
        remarks=tuple(dict.fromkeys([*remarks, *frames.remarks])),
    )


def difference_between(first: Examination, second: Examination, progress: Advance | None = None) -> SourceDifference:
    """Return the difference between two sources that were examined."""
    memory = compare_memory(first.source.memory, second.source.memory, progress)
    tables = sorted(
        {
            table
            for one in (first, second)
            if one.frames.direct_map is not None
            for table in one.frames.direct_map.tables.pfns().tolist()
        }
    )
    changed = [table for table in tables if memory.different.end_of(table)]
    entries, number = changed_entries(first.source.memory, second.source.memory, changed, MAX_ENTRIES)
    return SourceDifference(memory, entries, number - len(entries))


def _asked(remarks: list[str], read: Callable[[], T]) -> T | None:
    """Return an answer, or None with a remark if the source does not have it."""
    try:
        return read()
    except ContradictoryMemory:
        raise
    except HibernautError as error:
        remarks.append(error.complaint if isinstance(error, FormatError) else str(error))
        return None


def _with_its_vmcoreinfo(source: Source, paging: Paging | None, remarks: list[str]) -> Source:
    """Return a source with the VMCOREINFO of its kernel, for which all pages are read once, not for each question."""
    root = None if paging is None else paging.root_and_levels
    chosen = _asked(remarks, lambda: with_own_vmcoreinfo(source, root))
    if chosen is None:
        return source
    found, own = chosen
    remarks += filter(None, [own.remark])
    return found


def _audited(source: Source, paging: Paging | None, remarks: list[str]) -> Audit | None:
    if paging is None:
        return None
    return _asked(remarks, lambda: audit(machine_in(source, cr3=paging.cr3, levels=paging.levels).machine))


def _checksum(source: Source, progress: Advance | None) -> ChecksumState | None:
    """Return the checksum of an image; None for a dump. The pages of a damaged or used-up image are read already."""
    if source.salvaged is not None:
        return ChecksumState(source.salvaged.header.crc32, source.salvaged.computed_crc, None)
    image = source.image
    if image is None:
        return None
    stored = image.header.crc32
    try:
        return ChecksumState(stored, image.computed_crc(progress), None)
    except CorruptImage as error:
        return ChecksumState(stored, None, str(error))


def _contents(source: Source, remarks: list[str], progress: Advance | None) -> PageContents | None:
    return _asked(remarks, lambda: page_contents(source.memory, progress))


def _identity(source: Source, remarks: list[str]) -> MachineIdentity | None:
    def read() -> MachineIdentity:
        return read_identity(FactReader(Kernel.of(source)))

    return _asked(remarks, read)
