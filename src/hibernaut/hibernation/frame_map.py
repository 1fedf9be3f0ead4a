# SPDX-License-Identifier: GPL-2.0-or-later
"""The map of physical memory: each page frame by its entry in the direct map, its fate, and its use.

All three are codes of runs of frames. A fact that the source does not have is a code of its own, never a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from hibernaut.errors import FormatError, HibernautError
from hibernaut.kernel.own_vmcoreinfo import with_own_vmcoreinfo
from hibernaut.kernel.page_uses import PageUses, kernel_image_frames, page_uses
from hibernaut.kernel.suspend import PagesToSave, bitmap_pfns, pages_to_save
from hibernaut.kernel.symbols import SymbolicKernel
from hibernaut.linux.direct_map import NAMES_ITS_FRAME, DirectMap, FrameState, frame_states, frames_in_state
from hibernaut.linux.source_tables import Paging, direct_map_under
from hibernaut.memory.page import PAGE_SHIFT
from hibernaut.memory.painting import Layer, paint, union
from hibernaut.memory.ranges import FrameRanges
from hibernaut.paging.entries import Level
from hibernaut.paging.spans import Stop

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hibernaut.memory.page import Pfns
    from hibernaut.paging.spans import Codes
    from hibernaut.sources import Source

__all__ = ["Fate", "FrameMap", "FrameUse", "MappedBy", "frame_map", "missing_tables"]

T = TypeVar("T")


class MappedBy(IntEnum):
    """The entry of the direct map for a frame."""

    NO_ENTRY = 0
    PRESENT_4K = 1
    PRESENT_2M = 2
    PRESENT_1G = 3
    NOT_PRESENT_4K = 4
    NOT_PRESENT_2M = 5
    NOT_PRESENT_1G = 6
    TABLE_MISSING = 7
    """The table that decides is not in the source."""
    WRONG = 8
    """An entry that names another frame, has reserved bits set, or is neither a leaf nor a table."""
    UNKNOWN = 9
    """No direct map was found."""


class Fate(IntEnum):
    """The outcome of a frame: in the image, on the list of pages to save, or why not."""

    NO_MEMORY = 0
    """Neither in the source, nor named by an entry of the direct map."""
    SAVED = 1
    """In the image; of a dump, on its kernel's list of pages to save."""
    ZERO = 2
    """The same, and all zeroes."""
    FREE = 3
    """Free by the page allocator, so not saved."""
    SET_ASIDE = 4
    """Set aside by hibernation for the copy of another page, so not saved."""
    LEFT_OUT = 5
    """Not saved, for a reason that the source does not have: nosave, reserved, set aside for a copy, or free in a list
    of a CPU."""
    LOST = 6
    """Named as a page table by tables in the source, which lacks it."""
    IN_FILE = 7
    """In a dump whose kernel has no list of pages to save."""
    ZERO_IN_FILE = 8
    """The same, and all zeroes."""
    MISSING = 9
    """In no range of a dump; the direct map has an entry for it."""
    LOST_PAGE = 10
    """On the list of a damaged or used-up image, whose data for it cannot be read."""
    UNCERTAIN = 11
    """In such an image if it is on the part of the list that is lost; else not saved."""


class FrameUse(IntEnum):
    """Use of a frame."""

    UNKNOWN = 0
    """Not known, or none of the others."""
    PAGE_TABLE = 1
    """Page table that the root of the source reaches."""
    KERNEL_TEXT = 2
    KERNEL_RODATA = 3
    KERNEL_DATA = 4
    """Data and bss of the kernel image."""
    MEM_MAP = 5
    """`struct page`s."""
    SLAB = 6
    ANONYMOUS = 7
    """Anonymous memory on the lists of reclaim."""
    PAGE_CACHE = 8
    """Files on the lists of reclaim."""


_IMAGE_PARTS = {
    "text": FrameUse.KERNEL_TEXT,
    "rodata": FrameUse.KERNEL_RODATA,
    "data": FrameUse.KERNEL_DATA,
}

_BY_LEVEL = {
    Level.PTE: MappedBy.PRESENT_4K,
    Level.PMD: MappedBy.PRESENT_2M,
    Level.PUD: MappedBy.PRESENT_1G,
}
_NOT_BY_LEVEL = {
    Level.PTE: MappedBy.NOT_PRESENT_4K,
    Level.PMD: MappedBy.NOT_PRESENT_2M,
    Level.PUD: MappedBy.NOT_PRESENT_1G,
}
_MAPPED: dict[FrameState, dict[Level, MappedBy]] = {
    FrameState.PRESENT: _BY_LEVEL,
    FrameState.NOT_PRESENT_4K: _NOT_BY_LEVEL,
    FrameState.NOT_PRESENT_PLAIN: _NOT_BY_LEVEL,
    FrameState.NOT_PRESENT_LARGE: _NOT_BY_LEVEL,
    FrameState.NOT_PRESENT_LARGE_PLAIN: _NOT_BY_LEVEL,
    FrameState.NONE_IN_TABLE: dict.fromkeys(Level, MappedBy.NO_ENTRY),
    FrameState.NONE_ABOVE: dict.fromkeys(Level, MappedBy.NO_ENTRY),
    FrameState.TABLE_MISSING: dict.fromkeys(Level, MappedBy.TABLE_MISSING),
}
"""By state and level; every other state is `MappedBy.WRONG`."""

_CODES = np.full((len(FrameState), max(Level) + 1), MappedBy.WRONG, dtype=np.uint8)
for _state, _levels in _MAPPED.items():
    for _level, _code in _levels.items():
        _CODES[_state, _level] = _code


@dataclass(frozen=True, eq=False)
class FrameMap:
    """All frames of a machine by class, from frame 0 up without gaps; arrays of shape (n,), one value a run.

    Attributes:
        start_pfn: first frame of each run, int64.
        pages: number of its frames, int64.
        mapped: `MappedBy` of each run, uint8.
        fate: `Fate`, uint8.
        use: `FrameUse`, uint8.
        end_pfn: one past the last frame.
        pages_from: origin of the list of pages to save: `image`, `kernel`, or `direct-map` if there is none.
        zeroes_known: whether all zero pages are known; else only those that an image marks.
        remarks: what is not known, a sentence each.
        direct_map: the direct map; None if none was found.
        lost: frames on the list of a damaged or used-up image whose data cannot be read; none of any other source.
        uncertain: frames that may be on the part of its list that is lost, those beyond `end_pfn` among them.
        described: frames whose `struct page` was read; of others it is not known whether they are free.
    """

    start_pfn: Pfns
    pages: NDArray[np.int64]
    mapped: Codes
    fate: Codes
    use: Codes
    end_pfn: int
    pages_from: str
    zeroes_known: bool
    remarks: tuple[str, ...]
    direct_map: DirectMap | None
    lost: FrameRanges = field(default_factory=lambda: FrameRanges.of([]))
    uncertain: FrameRanges = field(default_factory=lambda: FrameRanges.of([]))
    described: FrameRanges = field(default_factory=lambda: FrameRanges.of([]))

    def totals(self, codes: Codes) -> dict[int, int]:
        """Return the number of frames of each code of `mapped`, `fate` or `use` that occurs, by code."""
        counts = np.bincount(codes, weights=self.pages)
        return {code: int(count) for code, count in enumerate(counts.tolist()) if count}

    def frames(self, codes: Codes, code: int) -> FrameRanges:
        """Return the frames of a code of `mapped`, `fate` or `use`."""
        which = codes == code
        return union([FrameRanges(self.start_pfn[which], self.pages[which])])

    def at(self, pfn: int) -> tuple[MappedBy, Fate, FrameUse]:
        """Return the three classes of a frame below `end_pfn`."""
        run = int(np.searchsorted(self.start_pfn, pfn, side="right")) - 1
        return MappedBy(int(self.mapped[run])), Fate(int(self.fate[run])), FrameUse(int(self.use[run]))


def frame_map(source: Source, paging: Paging | None, zero: FrameRanges | None = None) -> FrameMap:
    """Return the map of a source's memory. Cost follows the number of runs, and `struct page`s where they are found.

    Args:
        source: a dump or an image.
        paging: its page tables (`find_paging`), or None if there are none.
        zero: all frames with zero pages, see `page_contents`; None to use only those that an image marks as zero.

    Raises:
        FormatError: the source is of another architecture, or its page tables are hostile.
    """
    source.require_x86_64()
    remarks: list[str] = []
    direct_map = None if paging is None else direct_map_under(source, paging)
    ranges, salvaged = source.memory.ranges, source.salvaged
    nothing = FrameRanges.of([])
    lost, uncertain = (salvaged.missing, salvaged.uncertain) if salvaged else (nothing, nothing)
    end = max(ranges.end if direct_map is None else direct_map.end_pfn, lost.end)
    beyond = ranges.without(FrameRanges.of([(0, end)])).total_pages
    if beyond:
        remarks.append(f"{beyond} frames of the file lie beyond the direct map (a device's memory): they are left out")
    saved = pages_to_save(source)
    kernel = _kernel_of(source, paging, remarks)
    uses = _asked(remarks, lambda: page_uses(kernel, end)) if kernel else None
    if uses is None:
        remarks.append("free frames and the uses of others are not known: the kernel's struct pages are not read")
    start, (mapped, fate, use) = paint(
        end,
        list(_mapped_layers(direct_map, end)),
        list(_fate_layers(source, saved, direct_map, end, uses, kernel, zero, lost, uncertain)),
        list(_use_layers(kernel, uses, direct_map, remarks)),
    )
    return FrameMap(
        start_pfn=start,
        pages=np.diff(start, append=end),
        mapped=mapped,
        fate=fate,
        use=use,
        end_pfn=end,
        pages_from=saved.pages_from,
        zeroes_known=zero is not None,
        remarks=tuple(dict.fromkeys(remarks)),
        direct_map=direct_map,
        lost=lost,
        uncertain=uncertain,
        described=nothing if uses is None else uses.described,
    )


def _kernel_of(source: Source, paging: Paging | None, remarks: list[str]) -> SymbolicKernel | None:
    """Return the kernel in a source, or None with a remark if there is none that can be read."""
    root = None if paging is None else paging.root_and_levels
    chosen = _asked(remarks, lambda: with_own_vmcoreinfo(source, root))
    if chosen is None:
        return None
    own, found = chosen
    if not found.text:
        remarks.append(found.remark or "no VMCOREINFO in memory")
        return None
    return _asked(remarks, lambda: SymbolicKernel(own.memory, found.text, source.name))


def _asked(remarks: list[str], read: Callable[[], T]) -> T | None:
    """Return an answer of the kernel, or None with a remark if its memory does not have it."""
    try:
        return read()
    except HibernautError as error:
        remarks.append(error.statement if isinstance(error, FormatError) else str(error))
        return None


def _mapped_layers(direct_map: DirectMap | None, end: int) -> Iterator[Layer]:
    """Yield frames by their entry in the direct map; where nothing is painted there is none."""
    if direct_map is None:
        yield FrameRanges.of([(0, end)]), MappedBy.UNKNOWN
        return
    spans = direct_map.everything
    codes = _CODES[frame_states(spans, direct_map.base, direct_map.tables.encryption), spans.level]
    starts = (spans.vaddr >> np.uint64(PAGE_SHIFT)).astype(np.int64) - (direct_map.base >> PAGE_SHIFT)
    for code in np.unique(codes).tolist():
        which = (codes == code) & (starts < end)
        yield FrameRanges(starts[which], spans.pages[which]), code


def _fate_layers(
    source: Source,
    saved: PagesToSave,
    direct_map: DirectMap | None,
    end: int,
    uses: PageUses | None,
    kernel: SymbolicKernel | None,
    zero: FrameRanges | None,
    lost: FrameRanges,
    uncertain: FrameRanges,
) -> Iterator[Layer]:
    """Yield frames by their fate, the later over the earlier."""
    held = source.memory.ranges.within(FrameRanges.of([(0, end)]))
    named = FrameRanges.of([])
    if direct_map is not None:
        named = frames_in_state(direct_map, *NAMES_ITS_FRAME).within(FrameRanges.of([(0, end)]))
    image = source.any_image
    listed = None if saved.pfns is None else FrameRanges.of_pfns(saved.pfns)
    zeroes = FrameRanges.of([]) if zero is None else zero
    if image is not None:
        yield named.without(held), Fate.LEFT_OUT
        yield _may_be_listed(uncertain, named, direct_map), Fate.UNCERTAIN
        listed = held
        zeroes = union([zeroes, image.zero_frames])
    else:
        yield named.without(held), Fate.MISSING
        yield held, Fate.IN_FILE if listed is None else Fate.LEFT_OUT
        if listed is None:
            yield zeroes.within(held), Fate.ZERO_IN_FILE
    if uses is not None:
        yield uses.free.within(union([named, held])), Fate.FREE
    if saved.pages_from == "kernel" and kernel is not None:
        yield _set_aside(kernel), Fate.SET_ASIDE
    if listed is not None:
        yield listed, Fate.SAVED
        yield listed.within(zeroes), Fate.ZERO
    if direct_map is not None:
        tables = missing_tables(direct_map)
        yield tables, Fate.LOST
        yield tables.within(uncertain), Fate.UNCERTAIN
    yield lost, Fate.LOST_PAGE


def _may_be_listed(uncertain: FrameRanges, named: FrameRanges, direct_map: DirectMap | None) -> FrameRanges:
    """Return those of uncertain frames that are memory, as far as the direct map tells: others are not saved.

    Args:
        uncertain: frames that the lost part of a list does not exclude.
        named: frames that the direct map has an entry for.
        direct_map: the direct map; None if none was found.
    """
    if direct_map is None:
        return uncertain
    return uncertain.within(union([named, frames_in_state(direct_map, FrameState.TABLE_MISSING)]))


def _set_aside(kernel: SymbolicKernel) -> FrameRanges:
    """Return the frames that the kernel set aside for the copies (`copy_bm`, kernel/power/snapshot.c)."""
    return union([FrameRanges.of_pfns(pfns) for pfns in bitmap_pfns(kernel, "copy_bm")])


def missing_tables(direct_map: DirectMap) -> FrameRanges:
    """Return the frames that tables under the root of a direct map name as tables, and that the source lacks."""
    spans = direct_map.tables.scan().of_state(Stop.TABLE_MISSING)
    return FrameRanges.of_pfns(np.unique(spans.pfn))


def _use_layers(
    kernel: SymbolicKernel | None, uses: PageUses | None, direct_map: DirectMap | None, remarks: list[str]
) -> Iterator[Layer]:
    """Yield frames by their use, the later over the earlier."""
    if uses is not None:
        yield uses.slab, FrameUse.SLAB
        yield uses.anonymous, FrameUse.ANONYMOUS
        yield uses.cache, FrameUse.PAGE_CACHE
    if kernel is not None:
        parts = _asked(remarks, lambda: kernel_image_frames(kernel)) or {}
        for part, code in _IMAGE_PARTS.items():
            yield parts.get(part, FrameRanges.of([])), code
    if uses is not None:
        yield uses.mem_map, FrameUse.MEM_MAP
    if direct_map is not None:
        yield FrameRanges.of_pfns(direct_map.tables.pfns()), FrameUse.PAGE_TABLE
