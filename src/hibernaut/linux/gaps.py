# SPDX-License-Identifier: GPL-2.0-or-later
"""Gaps that a file of raw memory leaves out, found by what its page tables say of it.

In a file without the gap below 4 GiB all memory above that lies too low. The direct map then contradicts the file: it
maps frames beyond the end, full frames have no entry, and frames above 4 GiB that should be tables hold something else.
Put back, the right gap resolves all of that: no frame that is mapped is missing, and each table maps its own frames.

The kernel maps RAM by the firmware's memory map (`init_range_memory_mapping`, arch/x86/mm/init.c), and takes the frames
for these tables from the top of what is mapped already (`alloc_low_pages`), so most of them lie above 4 GiB.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from hibernaut.errors import ContradictoryMemory, FormatError
from hibernaut.linux.direct_map import NAMES_ITS_FRAME, DirectMap, FrameState, frame_states, frames_in_state
from hibernaut.linux.e820_tables import find_e820_ram
from hibernaut.linux.encryption import encryption_of_root, likely_encryption
from hibernaut.linux.roots import bases_of, plausible_roots
from hibernaut.linux.table_places import Places, places_of
from hibernaut.memory.gaps import MemoryGap, gaps_between
from hibernaut.memory.page import CHUNK_PAGES, PAGE_SHIFT, PAGE_SIZE
from hibernaut.memory.ranges import FrameRanges
from hibernaut.paging.entries import ENTRIES, Level
from hibernaut.paging.spans import Stop

if TYPE_CHECKING:
    from hibernaut.memory.page import Pfns
    from hibernaut.memory.raw import RawMemory

__all__ = ["Fit", "find_gaps"]

Gaps = tuple[MemoryGap, ...]

FOUR_GIB = 1 << 32
_FOUR_GIB_PFN = FOUR_GIB >> PAGE_SHIFT
LOWEST_START = 1 << 30
"""No machine is tried whose RAM ends below this: QEMU's `max-ram-below-4g` has it as an example."""
START_STEP = 1 << 27
"""RAM below 4 GiB ends at a multiple of this: 2 GiB (q35), 3 GiB (i440fx, VMware), 3.25 GiB (Firecracker), 3.5 GiB
(VirtualBox), 3.75 GiB (Xen), 4 GiB less 128 MiB (Hyper-V)."""
_KEPT_BACK_PFNS = 1 << 14
"""Frames below the gap that the firmware keeps for itself at most, without an entry: 64 MiB, half of `START_STEP`, so
that no more than one likely start follows the mapped memory."""
_ISA_END_PFN = 0x100
"""The kernel maps the first MiB whatever is there (`init_mem_mapping`)."""
_MOST_HALVES = 32
"""Most different kernel halves of roots that are tried with a gap: all roots of a kernel share one."""
_UNMAPPED_PAGES = 1 << 14
"""Full frames without an entry that a machine may have: firmware keeps some RAM for itself."""
_CONTRADICTION_PAGES = 1 << 8
"""Full frames without an entry in a file that ends too early, more than a file has that was merely cut."""
_SHOWN = 4

_WRONG = (
    FrameState.TABLE_MISSING,
    FrameState.OTHER_FRAME,
    FrameState.NOT_PRESENT_OTHER,
    FrameState.NOT_PRESENT_ABOVE,
    FrameState.RESERVED_BITS,
    FrameState.NOT_FOLLOWED,
)


@dataclass(frozen=True, eq=False)
class Fit:
    """Agreement of a direct map with the places that gaps give to a file's memory.

    Attributes:
        memory: the memory, with these gaps.
        direct_map: the direct map in it.
        by_firmware: whether a memory map of the firmware, kept in this memory, has the same end of RAM.
    """

    memory: RawMemory
    direct_map: DirectMap
    by_firmware: bool = False

    @property
    def gaps(self) -> Gaps:
        """The gaps."""
        return self.memory.gaps

    @cached_property
    def mapped(self) -> FrameRanges:
        """Frames that the direct map has an entry for, present or not."""
        return frames_in_state(self.direct_map, *NAMES_ITS_FRAME)

    @cached_property
    def missing_pages(self) -> int:
        """Pages that the direct map maps and the file does not hold."""
        low = FrameRanges.of([(0, _ISA_END_PFN)])
        return self.mapped.without(self.memory.ranges).without(low).total_pages

    @cached_property
    def wrong_pages(self) -> int:
        """Pages whose entry, or the table for it, is something else.

        So is a table without any entry: the kernel makes none for the direct map.
        """
        end = self.memory.ranges.end + _FOUR_GIB_PFN
        base = self.direct_map.base >> PAGE_SHIFT
        spans = self.direct_map.everything.clipped(base, base + end)
        wrong = np.isin(frame_states(spans, self.direct_map.base, self.direct_map.tables.encryption), _WRONG)
        first = (spans.vaddr >> np.uint64(PAGE_SHIFT)).astype(np.int64) - base
        for level in (Level.PMD, Level.PTE):
            whole = level.pages * ENTRIES
            begin = -(-first // whole) * whole
            empty = (spans.state == Stop.NONE.code) & (spans.level == level)
            wrong |= empty & (begin + whole <= first + spans.pages)
        return int(spans.pages[wrong].sum())

    @property
    def cut(self) -> bool:
        """Whether the tables above 4 GiB that the file has are where they should be: it was cut, and has no gap."""
        return self.places.held > 16 * self.places.other

    @property
    def clean(self) -> bool:
        """Whether nothing that the tables say contradicts the file."""
        return not self.missing_pages and not self.wrong_pages and self.places.fit

    @cached_property
    def places(self) -> Places:
        """Tables whose place in the file depends on the gaps; without gaps, those above 4 GiB."""
        start = self.gaps[0].end if self.gaps else FOUR_GIB
        return places_of(self.direct_map.tables, start >> PAGE_SHIFT)

    @cached_property
    def exact(self) -> bool:
        """Whether all ends meet: those of the memory, and of RAM on both sides of one gap below 4 GiB.

        Its start is one that hypervisors have, or what the firmware says.
        """
        if len(self.gaps) != 1 or self.gaps[0].end != FOUR_GIB:
            return False
        start = self.gaps[0].start
        below = self.mapped.within(FrameRanges.of([(0, start >> PAGE_SHIFT)])).end
        meets = self.end == self.memory.ranges.end and bool(self.mapped.end_of(_FOUR_GIB_PFN))
        likely = self.by_firmware or start % START_STEP == 0
        return meets and likely and (start >> PAGE_SHIFT) - below < _KEPT_BACK_PFNS

    @property
    def end(self) -> int:
        """One past the last frame that the direct map has an entry for."""
        return self.mapped.end

    def unmapped_pages(self, start: int = _ISA_END_PFN, at_most: int = _UNMAPPED_PAGES) -> int:
        """Return the number of frames from `start` on that hold something and have no entry. Reads them, up to a limit.

        Args:
            start: first frame to look at.
            at_most: the count ends above this.
        """
        beside = self.memory.stored.without(self.mapped).without(FrameRanges.of([(0, start)]))
        found = 0
        for pfns in beside.chunks(CHUNK_PAGES):
            found += int(self.memory.gather(pfns)[0].view(np.uint64).any(axis=1).sum())
            if found > at_most:
                break
        return found


def find_gaps(
    memory: RawMemory, cr3: int | None, levels: int | None, found: DirectMap | None, name: str
) -> Gaps | None:
    """Return the gaps that a file of raw memory leaves out, where its page tables prove them; None for no gap.

    Without a contradiction nothing but page tables is read.

    Args:
        memory: the memory, as it lies in the file.
        cr3: physical address of the root; None to search for it.
        levels: levels of paging, if known.
        found: the direct map that was found without a gap; None if there is none.
        name: name of the file, for messages.

    Raises:
        ContradictoryMemory: the tables fit the file with some gap only, and do not say with which.
    """
    plain = None if found is None else Fit(memory, found)
    if plain is not None and (plain.clean or plain.cut):
        return None
    root = found.cr3 if found is not None else cr3
    fits = list(_Search(memory, root, levels).fits(plain))
    if any(not fit.gaps for fit in fits):
        return None
    contradictory = plain is not None and _contradictory(plain)
    proven = _proven(fits, by_end=plain is None or contradictory)
    if proven is not None:
        return proven.gaps
    if contradictory or (plain is None and fits):
        raise _contradiction(plain, fits, name)
    return None


def _contradictory(plain: Fit) -> bool:
    """Tell whether the direct map of a file as it is maps frames beyond its end, and leaves out too many full frames.

    The former alone is said of a file that was cut.
    """
    unmapped = plain.unmapped_pages(LOWEST_START >> PAGE_SHIFT, _CONTRADICTION_PAGES)
    return bool(plain.missing_pages) and unmapped > _CONTRADICTION_PAGES


def _proven(fits: Sequence[Fit], *, by_end: bool) -> Fit | None:
    """Return the one fit that the tables prove.

    Args:
        fits: what nothing contradicts.
        by_end: whether the end of the direct map counts where no table has a place that depends on the gap.
    """
    placed = [fit for fit in fits if fit.places.held]
    exact = [fit for fit in fits if fit.exact]
    evidence = [fit for fit in placed if fit.exact] or placed or (exact if by_end else [])
    return evidence[0] if len(evidence) == 1 else None


def _contradiction(plain: Fit | None, fits: Sequence[Fit], name: str) -> ContradictoryMemory:
    if plain is None:
        what = "page tables fit this file only if it leaves out a gap in memory, and do not say which"
    else:
        what = (
            f"the direct map maps {plain.missing_pages} pages beyond the end of the file, and frames in it that hold "
            "something have no entry: it leaves out a gap in memory, or was cut"
        )
    likely = ", ".join(str(fit.gaps[0]) for fit in fits[:_SHOWN] if len(fit.gaps) == 1)
    return ContradictoryMemory(
        what,
        source=name,
        found=f"a fit with {likely}" if likely else None,
        advice="give the gap as --gap START+SIZE, or --gap none if there is none",
    )


class _Search:
    """A search for gaps under which a direct map is found that fits."""

    def __init__(self, memory: RawMemory, root: int | None, levels: int | None) -> None:
        self._memory = memory
        self._root = root
        self._levels = levels
        self._by_firmware: set[Gaps] = set()

    def fits(self, plain: Fit | None) -> Iterator[Fit]:
        """Yield the fits that nothing contradicts.

        Args:
            plain: the fit without a gap; None to try that too.
        """
        waiting: list[Gaps] = [*([()] if plain is None else []), *self._candidates()]
        tried: set[Gaps] = set() if plain is None else {()}
        if plain is not None:
            waiting[:0] = self._by_end(plain)
        while waiting:
            gaps = waiting.pop(0)
            if gaps in tried or not self._possible(gaps):
                continue
            tried.add(gaps)
            fit = self._fit(gaps)
            if fit is None:
                continue
            if fit.clean and fit.unmapped_pages() <= _UNMAPPED_PAGES:
                yield fit
            elif len(gaps) == 1:
                waiting += self._by_end(fit)

    def _candidates(self) -> Iterator[Gaps]:
        """Yield gaps: by memory maps of the firmware in this memory, then as hypervisors have them."""
        for ram in find_e820_ram(self._memory):
            if sum(end - start for start, end in ram) == self._memory.file_bytes:
                gaps = gaps_between(ram)
                if not any((gap.start | gap.end) % PAGE_SIZE for gap in gaps):
                    self._by_firmware.add(gaps)
            self._by_firmware.update(_below_4_gib(ram[-1][1] - self._memory.file_bytes))
        yield from sorted(self._by_firmware)
        for start in range(LOWEST_START, FOUR_GIB, START_STEP):
            yield (MemoryGap(start, FOUR_GIB - start),)

    def _by_end(self, fit: Fit) -> Iterator[Gaps]:
        """Yield the gap with which the memory ends where the direct map ends."""
        yield from _below_4_gib(fit.end * PAGE_SIZE - self._memory.file_bytes)

    def _possible(self, gaps: Gaps) -> bool:
        try:
            self._memory.with_gaps(gaps)
        except FormatError:
            return False
        return True

    def _fit(self, gaps: Gaps) -> Fit | None:
        """Return the best agreement of a root with the memory under these gaps; None if no root has a direct map."""
        memory = self._memory.with_gaps(gaps)
        best: Fit | None = None
        for pfn, levels, mask in self._roots(memory):
            direct_map = self._direct_map(memory, pfn << PAGE_SHIFT, levels, mask)
            if direct_map is None:
                continue
            fit = Fit(memory, direct_map, gaps in self._by_firmware)
            if fit.clean:
                return fit
            best = best or fit
        return best

    def _direct_map(self, memory: RawMemory, cr3: int, levels: int | None, mask: int) -> DirectMap | None:
        for ram in self._ram(memory):
            try:
                return DirectMap.find(memory, cr3, levels, ram, mask)
            except FormatError:
                continue
        return None

    def _ram(self, memory: RawMemory) -> Iterator[FrameRanges]:
        """Yield the frames that count as RAM, see `DirectMap.find`; the latter are read once for all gaps."""
        if self._root is not None:
            yield _moved_ranges(self._stored, memory.gaps)
        yield _moved_ranges(self._file_frames, memory.gaps)

    def _roots(self, memory: RawMemory) -> Iterator[tuple[int, int | None, int]]:
        """Yield roots to try: frame, levels, and mask of the bit of encrypted memory; those of no process first."""
        if self._root is not None:
            mask = encryption_of_root(memory, self._root)
            if memory.ranges.end_of((self._root & ~mask) >> PAGE_SHIFT):
                yield from (((self._root & ~mask) >> PAGE_SHIFT, self._levels, one) for one in {0, mask})
            return
        for mask, pfns in self._plausible.items():
            for pfn in _one_a_kernel(memory, _moved(pfns, memory.gaps)):
                for levels in (5, 4) if self._levels is None else (self._levels,):
                    if bases_of(memory, pfn, levels, mask):
                        yield pfn, levels, mask

    @cached_property
    def _stored(self) -> FrameRanges:
        """Frames of the file outside its holes."""
        return self._memory.stored

    @cached_property
    def _file_frames(self) -> FrameRanges:
        """Frames of the file that hold something."""
        return self._memory.occupied()

    @cached_property
    def _plausible(self) -> dict[int, Pfns]:
        """Frames of the file that could be roots, by the bit of encrypted memory."""
        end = self._memory.ranges.end + _FOUR_GIB_PFN
        found: dict[int, Pfns] = {}
        for mask in (0, *likely_encryption(self._memory, self._file_frames)):
            pfns = list(plausible_roots(self._memory, self._file_frames, mask, end))
            if pfns:
                found[mask] = np.array(pfns, dtype=np.int64)
        return found


def _below_4_gib(size_bytes: int) -> Iterator[Gaps]:
    if 0 < size_bytes <= FOUR_GIB - LOWEST_START:
        yield (MemoryGap(FOUR_GIB - size_bytes, size_bytes),)


def _one_a_kernel(memory: RawMemory, pfns: Pfns) -> Iterator[int]:
    """Yield one of the frames with the same upper half, those with an empty lower half first."""
    kernels: dict[bytes, int] = {}
    others: dict[bytes, int] = {}
    for pfn in pfns.tolist():
        table = memory.page(pfn)
        if table is not None and len(kernels) < _MOST_HALVES:
            half = table[PAGE_SIZE // 2 :].tobytes()
            (others if table[: PAGE_SIZE // 2].any() else kernels).setdefault(half, pfn)
    yield from kernels.values()
    yield from [pfn for half, pfn in others.items() if half not in kernels][:_MOST_HALVES]


def _moved(pfns: Pfns, gaps: Iterable[MemoryGap]) -> Pfns:
    """Return where frames of the file lie in memory; the gaps are whole pages."""
    moved = pfns.copy()
    for gap in gaps:
        moved[moved >= gap.start >> PAGE_SHIFT] += gap.size_bytes >> PAGE_SHIFT
    return moved


def _moved_ranges(ranges: FrameRanges, gaps: Iterable[MemoryGap]) -> FrameRanges:
    """Return where ranges of frames of the file lie in memory; the gaps are whole pages."""
    for gap in gaps:
        start = FrameRanges.of([(0, gap.start >> PAGE_SHIFT)])
        above = ranges.without(start)
        starts = np.concatenate((ranges.within(start).starts, above.starts + (gap.size_bytes >> PAGE_SHIFT)))
        ranges = FrameRanges(starts, np.concatenate((ranges.within(start).nr_pages, above.nr_pages)))
    return ranges
