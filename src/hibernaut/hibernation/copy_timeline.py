# SPDX-License-Identifier: GPL-2.0-or-later
"""The timeline of a recorded copy loop: its calls in order as steps, and the page tables that they change.

Everything is counted from the calls of the trace alone. A step is the copy of some runs of frames with no other call,
or one page, or neighbouring pages, with the same calls around the copy of each.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from hibernaut.errors import ContradictoryMemory, FormatError
from hibernaut.hibernation.trace import Trace, trace_memory
from hibernaut.kernel.suspend import pages_to_save
from hibernaut.linux.direct_map import DirectMap
from hibernaut.memory.page import PAGE_SHIFT
from hibernaut.memory.painting import union
from hibernaut.memory.ranges import FrameRanges
from hibernaut.paging.entries import FRAME_MASK, Level
from hibernaut.swsusp.declarations import MAX_PFN

if TYPE_CHECKING:
    from hibernaut.hibernation.examination import Examination
    from hibernaut.linux.calls import Call

__all__ = ["CopyTimeline", "LoopSplit", "TimelineStep", "TraceTable", "copy_timeline", "match_trace"]

COPY = "copy"
CHANGES = ("set_direct_map_default_noflush", "set_direct_map_invalid_noflush")
MOST_CALLS, MORE = 32, "..."
"""Calls of one page that are named, and the sign of further ones."""
MATCHING = "give the dump or the image of the run that was recorded"


@dataclass(frozen=True)
class TimelineStep:
    """Neighbouring calls of a loop.

    Attributes:
        first_call: number of the first call, from 1 on.
        last_call: number of the last one. A call that copies a run of frames is part of two steps if other calls
            follow the copy of its last frame.
        calls: names of the calls of each page, in order; `copy` alone for plain copies.
        start_pfn: first frame; None if the loop copies nothing before these calls.
        end_pfn: one past the last frame.
        pages: pages whose copy begins in it.
        runs: number of runs of neighbouring frames.
        error: error of a call that fails; 0 if none does.
        table: whether its one frame is a page table that the loop changes, or allocates.
    """

    first_call: int
    last_call: int
    calls: tuple[str, ...]
    start_pfn: int | None
    end_pfn: int | None
    pages: int
    runs: int
    error: int = 0
    table: bool = False

    @property
    def plain(self) -> bool:
        """Whether the pages are copied with no other call."""
        return self.calls == (COPY,)


@dataclass(frozen=True)
class TraceTable:
    """A page table that the loop changes, or a page that it allocates.

    Attributes:
        pfn: its frame.
        allocated_by: number of the call that allocates it; None of a table that was there before.
        listed: whether it is on the list of pages to save.
        copied_by: number of the call that copies it; None if none does.
        changes_before: calls that change an entry of it before its copy, or at all if it is not copied.
        changes_after: calls that change one after it.
    """

    pfn: int
    allocated_by: int | None
    listed: bool
    copied_by: int | None
    changes_before: int
    changes_after: int


@dataclass(frozen=True)
class LoopSplit:
    """A split of a large entry in the loop.

    Attributes:
        call: its number.
        copied_pfn: frame whose copy has begun; None if none has.
        level: level of the entry.
        paddr: physical address of the entry.
        before, after: the entry.
        table: table that holds the entry.
        new: table that the entry names after the split.
    """

    call: int
    copied_pfn: int | None
    level: Level
    paddr: int
    before: int
    after: int
    table: TraceTable
    new: TraceTable


@dataclass(frozen=True, eq=False)
class CopyTimeline:
    """A recorded copy loop as a timeline.

    Attributes:
        trace: the trace.
        steps: its calls in order.
        tables: the page tables that it changes or allocates, ascending.
        splits: its splits.
        pages: pages whose copy begins.
        mapped: calls of `set_direct_map_default_noflush` that change an entry.
        unmapped: calls of `set_direct_map_invalid_noflush` that change an entry.
        failed: numbers of the calls that allocate no page.
        crash: number of the call that faults, and the address; None if the loop ends.
    """

    trace: Trace
    steps: tuple[TimelineStep, ...]
    tables: tuple[TraceTable, ...]
    splits: tuple[LoopSplit, ...]
    pages: int
    mapped: int
    unmapped: int
    failed: tuple[int, ...]
    crash: tuple[int, int] | None


def copy_timeline(trace: Trace, name: str) -> CopyTimeline:
    """Return the timeline of a trace.

    Args:
        trace: the trace.
        name: name of its file.

    Raises:
        FormatError: a fact of a call is not one of its kind.
    """
    number = 0
    try:
        loop = _Loop()
        for number, call in enumerate(trace.calls, 1):
            loop.add(number, call)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise FormatError(
            f"damaged trace: the facts of event {number} are not those of {trace.calls[number - 1].name}",
            source=name,
            advice="give a file that `hibernaut lab trace` wrote",
        ) from None
    tables = loop.tables(trace.frames)
    return CopyTimeline(
        trace=trace,
        steps=tuple(_joined(_at_tables(loop.visits, sorted(tables)))),
        tables=tuple(tables[pfn] for pfn in sorted(tables)),
        splits=tuple(
            LoopSplit(*facts, table=tables[facts[3] >> PAGE_SHIFT], new=tables[_frame_of(facts[5])])
            for facts in loop.splits
        ),
        pages=sum(visit.pages for visit in loop.visits),
        mapped=loop.effective[CHANGES[0]],
        unmapped=loop.effective[CHANGES[1]],
        failed=tuple(loop.failed),
        crash=loop.crash,
    )


@dataclass
class _Loop:
    """The calls of a loop so far.

    Attributes:
        visits: pages, or runs of plain ones, with the calls at each.
        changed: by frame of a table, the numbers of the calls that change an entry of it.
        allocated: by frame, the number of the call that allocates it.
        splits: (call, frame that is copied, level, address of the entry, entry before, after).
        effective: by name, the number of calls that change the entry of a page.
        failed, crash: see `CopyTimeline`.
    """

    visits: list[TimelineStep] = field(default_factory=list)
    changed: dict[int, list[int]] = field(default_factory=dict)
    allocated: dict[int, int] = field(default_factory=dict)
    splits: list[tuple[int, int | None, Level, int, int, int]] = field(default_factory=list)
    effective: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CHANGES, 0))
    failed: list[int] = field(default_factory=list)
    crash: tuple[int, int] | None = None

    def add(self, number: int, call: Call) -> None:
        """Add a call. Raises KeyError, TypeError or ValueError if its facts are not those of its kind."""
        facts = dict(call.facts)
        if call.name == COPY:
            pfn, pages = _frame(facts["pfn"]), facts["pages"]
            if type(pages) is not int or not 1 <= pages <= MAX_PFN:
                raise ValueError
            self.visits.append(TimelineStep(number, number, (COPY,), pfn, pfn + pages, pages, 1))
            return
        error = 0
        name = call.name
        if call.name in CHANGES:
            before, after = _entry(facts["before"]), _entry(facts["after"])
            if after is not None and before != after:
                self.changed.setdefault(after[1] >> PAGE_SHIFT, []).append(number)
                self.effective[call.name] += 1
            if type(facts["error"]) is not int:
                raise ValueError
            error = facts["error"]
            pfn = _frame(facts["pfn"])
            if self.copied_pfn not in (None, pfn):
                name += f" of frame {pfn:#x}"
        elif call.name == "alloc_page":
            if facts["pfn"] is None:
                self.failed.append(number)
                name += " fails"
            else:
                self.allocated.setdefault(_frame(facts["pfn"]), number)
        elif call.name == "split_large_page":
            self._split(number, facts)
        elif call.name == "flush_tlb_kernel_range":
            _number(facts["start"]), _number(facts["end"])
        elif call.name == "crash":
            self.crash = number, _number(facts["address"])
        self._at_page(number, name, error)

    @property
    def copied_pfn(self) -> int | None:
        """Frame whose copy began last."""
        end = self.visits[-1].end_pfn if self.visits else None
        return None if end is None else end - 1

    def _split(self, number: int, facts: dict[str, str | int | None]) -> None:
        level, paddr, *rest = str(facts["entry"]).split()
        if rest:
            raise ValueError
        at, after = _number(paddr), _number(facts["after"])
        self.splits.append((number, self.copied_pfn, Level[level], at, _number(facts["before"]), after))
        for table in (at >> PAGE_SHIFT, _frame_of(after)):
            self.changed.setdefault(table, [])
        self.changed[at >> PAGE_SHIFT].append(number)

    def _at_page(self, number: int, name: str, error: int) -> None:
        """Add a call at the page whose copy began last: of a run, the last one becomes a visit of its own."""
        last = self.visits.pop() if self.visits else TimelineStep(number, number, (), None, None, 0, 0)
        if last.plain and last.pages > 1 and last.end_pfn is not None:
            self.visits.append(replace(last, end_pfn=last.end_pfn - 1, pages=last.pages - 1))
            last = replace(last, start_pfn=last.end_pfn - 1, pages=1)
        calls = (*last.calls, name if len(last.calls) < MOST_CALLS else MORE)[: MOST_CALLS + 1]
        self.visits.append(replace(last, last_call=number, calls=calls, error=last.error or error))

    def tables(self, listed: FrameRanges) -> dict[int, TraceTable]:
        """Return the tables that the loop changes or allocates, by frame."""
        frames = sorted({*self.changed, *self.allocated})
        copied: dict[int, int] = {}
        for visit in self.visits:
            for pfn in _inside(frames, visit):
                copied.setdefault(pfn, visit.first_call)
        on_list = listed.contains(np.array(frames, dtype=np.int64))
        found = {}
        for pfn, is_listed in zip(frames, on_list.tolist(), strict=True):
            changes, at = self.changed.get(pfn, []), copied.get(pfn)
            before = len(changes) if at is None else bisect.bisect_left(changes, at)
            found[pfn] = TraceTable(pfn, self.allocated.get(pfn), is_listed, at, before, len(changes) - before)
        return found


def _at_tables(visits: Iterable[TimelineStep], tables: Sequence[int]) -> Iterator[TimelineStep]:
    """Yield visits with each table as one of its own."""
    for visit in visits:
        start, end = visit.start_pfn, visit.end_pfn
        if start is None or end is None or not visit.plain:
            yield replace(visit, table=visit.pages == 1 and start in _inside(tables, visit))
            continue
        for pfn in _inside(tables, visit):
            if start < pfn:
                yield replace(visit, start_pfn=start, end_pfn=pfn, pages=pfn - start)
            yield replace(visit, start_pfn=pfn, end_pfn=pfn + 1, pages=1, table=True)
            start = pfn + 1
        if start < end:
            yield replace(visit, start_pfn=start, pages=end - start)


def _joined(visits: Iterable[TimelineStep]) -> Iterator[TimelineStep]:
    """Yield visits, those that follow one another with the same calls as one step."""
    step: TimelineStep | None = None
    for visit in visits:
        if step is not None and _continues(step, visit):
            runs = step.runs + (visit.start_pfn != step.end_pfn)
            step = replace(
                step, last_call=visit.last_call, end_pfn=visit.end_pfn, pages=step.pages + visit.pages, runs=runs
            )
            continue
        if step is not None:
            yield step
        step = visit
    if step is not None:
        yield step


def _continues(step: TimelineStep, visit: TimelineStep) -> bool:
    """Return whether a visit is more of the same: plain copies of frames above, or the same calls at the next frame."""
    if step.calls != visit.calls or step.error != visit.error or step.table or visit.table:
        return False
    if step.end_pfn is None or visit.start_pfn is None:
        return False
    return visit.start_pfn >= step.end_pfn if step.plain else visit.start_pfn == step.end_pfn


def _inside(frames: Sequence[int], visit: TimelineStep) -> Sequence[int]:
    """Return those of ascending frames that a visit copies."""
    if visit.start_pfn is None or visit.end_pfn is None:
        return ()
    return frames[bisect.bisect_left(frames, visit.start_pfn) : bisect.bisect_left(frames, visit.end_pfn)]


def _number(value: str | int | None) -> int:
    """Return a number in hex, at most 64 bits. Raises ValueError if it is none."""
    found = int(value, 16) if isinstance(value, str) else -1
    if not 0 <= found < 1 << 64:
        raise ValueError(f"{value!r} is not a number")
    return found


def _frame(value: str | int | None) -> int:
    """Return the number of a frame. Raises ValueError if there is no such frame."""
    found = _number(value)
    if found > MAX_PFN:
        raise ValueError(f"{value!r} is not a frame")
    return found


def _entry(value: str | int | None) -> tuple[Level, int, int] | None:
    """Return level, address and value of an entry; None if there is no table. Raises KeyError or ValueError."""
    if value is None:
        return None
    level, paddr, entry = str(value).split()
    return Level[level], _number(paddr), _number(entry)


def _frame_of(entry: int) -> int:
    return (entry & FRAME_MASK) >> PAGE_SHIFT


# ---- whose trace it is ----


def match_trace(trace: Trace, name: str, found: Examination) -> str | None:
    """Compare the machine of a trace with that of a source.

    The list of pages to save, root and release together tell one hibernation from another. A source without such a list
    can only be refuted: by release, levels, memory, or base of the direct map, which differs from boot to boot if the
    kernel randomizes it.

    Args:
        trace: the trace.
        name: name of its file.
        found: the source, examined.

    Returns:
        None if it is the same hibernation, else a sentence: why that is not known.

    Raises:
        FormatError: it is another kernel, machine or hibernation.
    """
    release = None if found.identity is None else found.identity.release
    levels = found.paging.levels if found.paging else None
    _refuse_different("kernel", name, trace.release, release)
    _refuse_different("machine", name, f"{trace.levels} levels", f"{levels} levels" if levels else None)
    saved = pages_to_save(found.source)
    if saved.pfns is None:
        _refuse_impossible(trace, name, found)
        known = f"its kernel is {release} as well" if release else "its kernel is not read"
        return (
            "Whether the trace is of this machine is not known: the file has no list of the pages that hibernation"
            f" saves, which identifies a hibernation; {known}."
        )
    uncertain = found.frames.uncertain
    listed = union([FrameRanges.of_pfns(np.unique(saved.pfns)), found.frames.lost])
    other = listed.without(trace.frames), trace.frames.without(listed).without(uncertain)
    if other[0] or other[1]:
        first = min(int(some.starts[0]) for some in other if some)
        _refuse_different(
            "hibernation",
            name,
            f"a list of {trace.frames.total_pages} pages",
            f"a list of {listed.total_pages} pages, which differs from frame {first:#x} on",
        )
    if saved.info is not None and saved.info.root is not None:
        _refuse_different("hibernation", name, f"CR3 {trace.cr3:#x}", f"CR3 {saved.info.root:#x}")
    if len(uncertain):
        return "The trace has what is left of this image's list of pages to save; the other part of it is lost."
    if release is None:
        return "The trace has this machine's list of pages to save; its kernel is not read, to be compared as well."
    return None


def _refuse_impossible(trace: Trace, name: str, found: Examination) -> None:
    """Refuse a trace of memory that the machine of a source does not have, or at other addresses."""
    direct_map = found.frames.direct_map
    if direct_map is None:
        return
    if trace.frames.end > direct_map.end_pfn:
        _refuse_different(
            "machine",
            name,
            f"memory up to frame {trace.frames.end - 1:#x}",
            f"memory up to frame {direct_map.end_pfn - 1:#x}",
        )
    try:
        base = DirectMap.find(trace_memory(trace), trace.cr3, trace.levels).base
    except (FormatError, ContradictoryMemory):
        return
    _refuse_different("boot", name, f"a direct map from {base:#x}", f"a direct map from {direct_map.base:#x}")


def _refuse_different(what: str, name: str, traced: str, sourced: str | None) -> None:
    """Raise FormatError if a fact of the trace is another one than the source's, which is None if it is not known."""
    if sourced is not None and traced != sourced:
        raise FormatError(
            f"trace of another {what} than SOURCE's",
            source=name,
            expected=sourced,
            found=traced,
            advice=MATCHING,
        )
