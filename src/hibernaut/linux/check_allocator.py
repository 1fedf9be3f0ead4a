# SPDX-License-Identifier: GPL-2.0-or-later
"""Consistency check of a page allocator's state in a machine's memory."""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hibernaut.linux.allocator import AllocatorMachine
from hibernaut.linux.mmzone import (
    BUDDY_TYPE,
    FREE_AREA_NR_FREE,
    IN_USE_TYPE,
    LIST_POISON1,
    LIST_POISON2,
    NR_PAGE_ORDERS,
    PAGE_LIST,
    PAGE_STATE,
    PAGE_TYPE_BASE,
    PAGE_TYPE_MASK,
    PAGEBLOCK_ORDER,
    PAGES_PER_MAP_PAGE,
    PCP_COUNT,
    PCP_LIST,
    SIZEOF_FREE_AREA,
    SIZEOF_STRUCT_PAGE,
    ZONE_FREE_AREA,
    ZONE_NR_FREE_PAGES,
    AllocatorPlaces,
)
from hibernaut.memory.memo import Memo
from hibernaut.memory.page import CHUNK_PAGES, PAGE_SHIFT, PAGE_SIZE, BoolArray, Bytes
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.ranges import FrameRanges

__all__ = ["LEAKED", "AllocatorProblem", "check_allocator"]

LEAKED = "in use by its _refcount, but its bytes were not saved: leaked"
"""`AllocatorProblem.what` of a page that is never freed: a loss of memory, not of data."""

_STRUCT_PAGE = struct.Struct("<6QIiQ")
"""`mmzone.STRUCT_PAGE`, for reading one at a time quickly."""


@dataclass(frozen=True)
class AllocatorProblem:
    """A contradiction between the allocator's structures.

    Attributes:
        what: the contradiction, a clause; if it concerns a list, it begins with the name of the list.
        pfn: the first frame concerned: its `struct page` is wrong, or it holds the zone or a CPU's list.
        pages: number of frames.
    """

    what: str
    pfn: int
    pages: int

    def __str__(self) -> str:
        where = f"frame {self.pfn:#x}" if self.pages == 1 else f"frames {self.pfn:#x}-{self.pfn + self.pages - 1:#x}"
        return f"{where}: {self.what}"


def check_allocator(
    machine: AllocatorMachine,
    places: AllocatorPlaces,
    *,
    tables: Collection[int] = frozenset(),
    unsaved: FrameRanges | None = None,
    mapped: FrameRanges | None = None,
    memo: Memo | None = None,
) -> list[AllocatorProblem]:
    """Return everything that is wrong with an allocator at rest.

    The check only reads. It ends for any bytes, and raises for none. Every list is walked and counted, and every
    `struct page` is read once, in arrays. Where `mem_map` is one page repeated (an array of stride 0), that page is
    read once: cost follows the number of blocks on lists and of pages of `mem_map` that are stored separately.

    Args:
        machine: machine whose memory is read.
        places: addresses of the allocator's state.
        tables: frames that hold page tables of the machine; none may be free.
        unsaved: frames of RAM whose bytes an image did not bring back (RAM less the saved frames, less those that the
            image itself occupied in the machine that wrote it); none may be in use, else it is lost for good.
        mapped: frames that are present in the direct map, where the allocator has a list of unmapped pageblocks: those
            on it must not be, those on all other lists must be.
        memo: keeps results by the bytes of the allocator's own pages.

    Returns:
        The problems: malformed lists; pages on free lists that do not belong there; blocks that overlap, pages on two
        lists; counts that differ from the lists; page tables that are free; pages in use that are on a list, or free
        pages on none; `unsaved` pages in use. Empty if there are none.
    """
    held = sorted(pfn for pfn in set(tables) if 0 <= pfn < places.end_pfn)
    key = None if memo is None else _state_key(machine, places)
    if memo is None or key is None:
        return _judged(_read(machine, places), held, unsaved, mapped)
    states, verdicts = memo.of("allocator's state"), memo.of("check_allocator")
    found: list[AllocatorProblem] | None = verdicts.get((key, tuple(held), unsaved, mapped))
    if found is None:
        state: _State | None = states.get(key)
        if state is None:
            state = states[key] = _read(machine, places)
        found = _judged(state, held, unsaved, mapped)
        verdicts[key, tuple(held), unsaved, mapped] = found
    return found


def _state_key(machine: AllocatorMachine, places: AllocatorPlaces) -> Hashable | None:
    """Return a value that decides what `_read` finds; None if only the bytes do."""
    memory = machine.memory
    mem_map = places.mem_map >> PAGE_SHIFT
    content = memory.content_key(mem_map, mem_map + places.mem_map_pages)
    if content is None:
        return None
    heads = tuple(memory.page_digest(paddr >> PAGE_SHIFT) for paddr in (places.zone, *places.pcps))
    return content, heads, places, machine.base


@dataclass(frozen=True, eq=False)
class _State:
    """The state that the bytes of the allocator's own pages hold.

    Attributes:
        problems: malformed lists, counts that differ from them, frames that are free twice.
        used: frames in use by their `_refcount`.
        idle: frames that are not.
        listed: frames on lists.
        hidden: those of them on the list of unmapped pageblocks.
        unheaded: frames marked as a free block that are the first of none on a free list.
        unknown: frames whose `struct page` does not exist.
    """

    problems: list[AllocatorProblem]
    used: FrameRanges
    idle: FrameRanges
    listed: FrameRanges
    hidden: FrameRanges
    unheaded: FrameRanges
    unknown: FrameRanges


def _read(machine: AllocatorMachine, places: AllocatorPlaces) -> _State:
    """Walk all lists, and read every `struct page`."""
    read_frame = functools.cache(machine.memory.page)  # neighbours on a list are often neighbours in mem_map
    lists = [_walk(found, machine, places, read_frame) for found in _lists(places)]
    idle, marked, unknown = _scan_mem_map(machine.memory, places)
    every = FrameRanges.of([(0, places.end_pfn)])
    heads = FrameRanges.of_pfns(sorted({pfn for found in lists if found.buddy for pfn in found.pfns}))
    problems = [problem for found in lists for problem in found.problems]
    problems += _wrong_counts(machine.memory, places, lists)
    problems += _overlaps(lists)
    return _State(
        problems,
        used=every.without(idle).without(unknown),
        idle=idle,
        listed=FrameRanges.of([(pfn, 1 << found.order) for found in lists for pfn in found.pfns]),
        hidden=FrameRanges.of([(pfn, 1 << found.order) for found in lists if found.unmapped for pfn in found.pfns]),
        unheaded=marked.without(heads),
        unknown=unknown,
    )


def _judged(
    state: _State, tables: Sequence[int], unsaved: FrameRanges | None, mapped: FrameRanges | None
) -> list[AllocatorProblem]:
    """Return all problems; `tables` are the frames with a `struct page` that hold page tables, ascending."""
    held = FrameRanges.of_pfns(tables)
    astray = state.idle.without(state.listed)
    lost = FrameRanges.of([]) if unsaved is None else unsaved
    nothing = FrameRanges.of([])
    not_shown = nothing if mapped is None else state.listed.without(state.hidden).without(mapped)
    still_shown = nothing if mapped is None else state.hidden.within(mapped)
    problems = list(state.problems)
    for what, ranges in (
        ("its struct page is in a page of mem_map that does not exist", state.unknown),
        ("marked as a free block (PageBuddy), on no free list", state.unheaded),
        ("on a list of free pages, but in use by its _refcount", state.listed.within(state.used)),
        ("a page table, but on a list of free pages", held.within(state.listed)),
        ("a page table, but free by its _refcount", held.within(astray)),
        ("free by its _refcount, but on no list: lost", astray.without(held)),
        ("on a list of mapped pages, but not present in the direct map", not_shown),
        ("on the list of unmapped pageblocks, but present in the direct map", still_shown),
        (LEAKED, lost.within(state.used)),
    ):
        problems += [AllocatorProblem(what, pfn, pages) for pfn, pages in ranges]
    return problems


@dataclass
class _List:
    """A list as the walk finds it.

    Attributes:
        name: name for messages.
        head: physical address of its list_head.
        order: order of the blocks on it.
        buddy: True for a free list, False for a CPU's.
        unmapped: whether it is the list of unmapped pageblocks, which NR_FREE_PAGES does not count.
        pfns: the frames on it, in order, up to the end or the first broken link.
        complete: whether the walk returned to the head.
        problems: problems of the list itself.
    """

    name: str
    head: int
    order: int
    buddy: bool
    unmapped: bool = False
    pfns: list[int] = field(default_factory=list)
    complete: bool = False
    problems: list[AllocatorProblem] = field(default_factory=list)

    @property
    def holder(self) -> int:
        """Frame of the head."""
        return self.head >> PAGE_SHIFT

    def wrong(self, what: str, pfn: int) -> None:
        """Add a problem."""
        self.problems.append(AllocatorProblem(f"{self.name}: {what}", pfn, 1))


def _lists(places: AllocatorPlaces) -> Iterator[_List]:
    for order in range(NR_PAGE_ORDERS):
        head = places.zone + ZONE_FREE_AREA + order * SIZEOF_FREE_AREA
        yield _List(f"free_area[{order}]", head, order, buddy=True)
    if places.unmapped:
        yield _List("list of unmapped pageblocks", places.unmapped, PAGEBLOCK_ORDER, buddy=True, unmapped=True)
    for cpu, pcp in enumerate(places.pcps):
        yield _List(f"pcp list of CPU {cpu}", pcp + PCP_LIST, 0, buddy=False)


def _walk(
    found: _List, machine: AllocatorMachine, places: AllocatorPlaces, read_frame: Callable[[int], Bytes | None]
) -> _List:
    """Follow a list from its head until it returns there or breaks."""
    head = machine.base + found.head
    first, last = machine.memory.read_u64(found.head), machine.memory.read_u64(found.head + 8)
    if first is None or last is None:
        found.wrong("the page of its head does not exist", found.holder)
        return found
    seen: set[int] = set()
    at, owner, link = head, found.holder, first
    while link != head:
        pfn, within = divmod(link - machine.base - places.mem_map - PAGE_LIST, SIZEOF_STRUCT_PAGE)
        page = None if within or not 0 <= pfn < places.end_pfn else _struct_page(read_frame, places, pfn)
        if page is None:
            found.wrong(f"next is {_named(link)}", owner)
            return found
        if pfn in seen:
            found.wrong(f"next leads back to frame {pfn:#x}, not to its head: a circle", owner)
            return found
        seen.add(pfn)
        found.pfns.append(pfn)
        _, after, before, _, _, private, page_type, _, _ = page
        if before != at:
            found.wrong(f"prev is {_named(before)}, not {at:#x}", pfn)
        _check_entry(found, pfn, private, page_type, places.end_pfn)
        at, owner, link = link, pfn, after
    if last != at:
        found.wrong(f"prev of its head is {_named(last)}, not {at:#x}", found.holder)
    found.complete = True
    return found


def _struct_page(
    read_frame: Callable[[int], Bytes | None], places: AllocatorPlaces, pfn: int
) -> tuple[int, ...] | None:
    """Return the fields of a `struct page` in order; None if it lies in a page that does not exist."""
    paddr = places.mem_map + pfn * SIZEOF_STRUCT_PAGE
    page = read_frame(paddr >> PAGE_SHIFT)
    return None if page is None else _STRUCT_PAGE.unpack_from(page.data, paddr % PAGE_SIZE)


def _named(link: int) -> str:
    names = {0: "NULL", LIST_POISON1: f"{link:#x} (LIST_POISON1)", LIST_POISON2: f"{link:#x} (LIST_POISON2)"}
    return names.get(link, f"{link:#x}")


def _check_entry(found: _List, pfn: int, private: int, page_type: int, end_pfn: int) -> None:
    if page_type != (BUDDY_TYPE if found.buddy else IN_USE_TYPE):
        found.wrong(f"page_type is {page_type:#x}", pfn)
    if found.buddy and private != found.order:
        found.wrong(f"order (private) is {private}", pfn)
    if pfn % (1 << found.order):
        found.wrong("misaligned", pfn)
    if pfn + (1 << found.order) > end_pfn:
        found.wrong("reaches beyond the last struct page", pfn)


def _wrong_counts(memory: PhysicalMemory, places: AllocatorPlaces, lists: Iterable[_List]) -> list[AllocatorProblem]:
    """Return the counts that differ from lists that are complete."""
    problems = []
    free = [found for found in lists if found.buddy]
    for found in lists:
        where = found.head + FREE_AREA_NR_FREE if found.buddy else found.head - PCP_LIST + PCP_COUNT
        word = memory.read_u64(where)
        if word is None or not found.complete:
            continue
        name, count = ("nr_free", word) if found.buddy else ("count", _upper_int(word))
        if count != len(found.pfns):
            what = f"{found.name}: {name} is {count}, on the list are {len(found.pfns)}"
            problems.append(AllocatorProblem(what, found.holder, 1))
    free = [found for found in free if not found.unmapped]
    pages = sum(len(found.pfns) << found.order for found in free)
    counted = memory.read_u64(places.zone + ZONE_NR_FREE_PAGES)
    if all(found.complete for found in free) and counted != pages:
        what = f"NR_FREE_PAGES is {counted}, on the free lists are {pages}"
        problems.append(AllocatorProblem(what, places.zone >> PAGE_SHIFT, 1))
    return problems


def _upper_int(word: int) -> int:
    """Return the upper 32 bits of a word as an `int` of C."""
    return (word >> 32 ^ 0x8000_0000) - 0x8000_0000


def _overlaps(lists: Iterable[_List]) -> list[AllocatorProblem]:
    """Return the frames that are free twice."""
    problems = []
    end, before = 0, ""
    for pfn, pages, name in sorted((pfn, 1 << found.order, found.name) for found in lists for pfn in found.pfns):
        if pfn < end:
            what = f"free twice: {before} and {name}"
            problems.append(AllocatorProblem(what, pfn, min(end, pfn + pages) - pfn))
        if pfn + pages > end:
            end, before = pfn + pages, name
    return problems


def _scan_mem_map(memory: PhysicalMemory, places: AllocatorPlaces) -> tuple[FrameRanges, FrameRanges, FrameRanges]:
    """Read every `struct page`.

    Returns:
        The frames whose `_refcount` is 0, those marked as free blocks, and those whose `struct page` does not exist.
    """
    first = places.mem_map >> PAGE_SHIFT
    array = FrameRanges.of([(first, places.mem_map_pages)])
    idle: list[tuple[int, int]] = []
    marked: list[tuple[int, int]] = []
    for start, length in array.within(memory.ranges):
        at, end = start, start + length
        while at < end:
            states, pages = _states(memory.run(at, end - at))
            pfn, times = (at - first) * PAGES_PER_MAP_PAGE, pages * PAGES_PER_MAP_PAGE // len(states)
            idle += _frames_where(states >> np.uint64(32) == 0, pfn, times)
            marked += _frames_where(states & np.uint64(PAGE_TYPE_MASK) == np.uint64(PAGE_TYPE_BASE), pfn, times)
            at += pages
    every = FrameRanges.of([(0, places.end_pfn)])
    unknown = [
        ((start - first) * PAGES_PER_MAP_PAGE, length * PAGES_PER_MAP_PAGE)
        for start, length in array.without(memory.ranges)
    ]
    return (
        FrameRanges.of(idle).within(every),
        FrameRanges.of(marked).within(every),
        FrameRanges.of(unknown).within(every),
    )


def _states(run: Bytes) -> tuple[NDArray[np.uint64], int]:
    """Return the state words of some pages of `mem_map`, and the number of pages that they stand for.

    Of pages that are one and the same, with identical `struct page`s, one word stands for all.
    """
    if run.strides[0] == 0 and len(run) > 1:
        states = run[0].view("<u8")[PAGE_STATE // 8 :: SIZEOF_STRUCT_PAGE // 8]
        if (states == states[0]).all():
            return states[:1], len(run)
    run = run[:CHUNK_PAGES]
    words: NDArray[np.uint64] = run.view("<u8")[:, PAGE_STATE // 8 :: SIZEOF_STRUCT_PAGE // 8].reshape(-1)
    return words, len(run)


def _frames_where(mask: BoolArray, pfn: int, times: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of frames for which a mask is true; each of its elements stands for `times` frames."""
    if mask.any():
        for start, pages in FrameRanges.of_pfns(np.flatnonzero(mask)):
            yield pfn + start * times, pages * times
