# SPDX-License-Identifier: GPL-2.0-or-later
"""Traces: the calls that a real kernel made in its copy loop, and all that the model needs to make them again.

A trace holds the tables of the direct map and the list of pages to save as they were right before the loop, the frames
that the allocator gave, and the calls. The model starts in the same state, gets the same answers, and must make the
same calls, step by step. Contents of other pages are left out: the calls do not depend on them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from hibernaut.errors import FormatError, HibernationRefused, HibernautError, MachineFault
from hibernaut.hibernation.source_machine import machine_from_memory
from hibernaut.hibernation.swsusp_save import hibernate
from hibernaut.hibernation.ways.base import Way
from hibernaut.hibernation.ways.remap import Remap
from hibernaut.linux.calls import Call, crashed, merged
from hibernaut.linux.direct_map import DirectMap
from hibernaut.linux.environment import Environment, Kind, Question
from hibernaut.linux.machine import Machine
from hibernaut.linux.rules import KernelRules, rules_named
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.ranges import FrameRanges
from hibernaut.memory.segments import Segment, SegmentMemory
from hibernaut.paging.entries import ENTRIES, FRAME_MASK, Entries, Entry, Level, is_leaf
from hibernaut.volumes.files import read_at_most
from hibernaut.volumes.output import write_file

__all__ = [
    "Checked",
    "Trace",
    "check_trace",
    "compare_calls",
    "direct_map_tables",
    "model_calls",
    "read_trace",
    "trace_memory",
    "trace_of",
    "write_trace",
]

FORMAT, VERSION = "hibernaut trace", 1
MOST_BYTES = 1 << 28
MOST_TABLES = 1 << 16
MOST_PAGES = 1 << 26
FIXMAP_START = 0xFFFFFFFFFF000000
"""The last 16 MiB of addresses have the fixmap."""
SAVED_BY = "give a file that `hibernaut lab trace` wrote"


@dataclass(frozen=True, eq=False)
class Trace:
    """A recorded copy loop.

    Attributes:
        release: release of the kernel.
        rules: name of its rules, as `rules_named` reads it.
        guest: kind of guest, for the reader.
        outcome: hibernated or died.
        dump: name of the dump from which the state is taken, in the folder of the trace; None if there is none.
        cr3: physical address of the root of the page tables.
        levels: levels of paging, 4 or 5.
        frames: the list of page frames to save.
        tables: entries of each table of the direct map, uint64, by its frame.
        allocations: frame of each page that the loop allocated, None for an allocation that failed.
        calls: the calls, in order.
    """

    release: str
    rules: str
    guest: str
    outcome: str
    dump: str | None
    cr3: int
    levels: int
    frames: FrameRanges
    tables: dict[int, Entries]
    allocations: tuple[int | None, ...]
    calls: tuple[Call, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Number of calls of each kind that was made, by name."""
        return dict(sorted(Counter(call.name for call in self.calls).items()))


@dataclass(frozen=True)
class Checked:
    """A trace compared with the model.

    Attributes:
        same: number of calls that are the same, from the first on.
        difference: the first difference, one line with both sides; None if there is none.
    """

    same: int
    difference: str | None


def check_trace(trace: Trace, way: Way | None = None, rules: KernelRules | None = None) -> Checked:
    """Let the model run the copy loop of a trace, and compare the calls, step by step.

    Args:
        trace: the trace.
        way: way of the model; that of mainline if None.
        rules: rules of the model; those of the trace's kernel if None.

    Raises:
        HibernautError: the machine of the trace is unusable.
    """
    return compare_calls(trace.calls, model_calls(trace, way, rules))


def compare_calls(kernels: Sequence[Call], models: Sequence[Call]) -> Checked:
    """Compare the calls of a kernel and of the model, step by step."""
    for number, (one, other) in enumerate(zip_longest(kernels, models)):
        if one != other:
            return Checked(number, f"step {number + 1}: the kernel: {_side(one)}; the model: {_side(other)}")
    return Checked(len(kernels), None)


def model_calls(trace: Trace, way: Way | None = None, rules: KernelRules | None = None) -> tuple[Call, ...]:
    """Return the calls that the model makes in the state and with the choices of a trace. See `check_trace`."""
    machine = _machine(trace, rules or rules_named(trace.rules))
    calls = machine.calls = []
    try:
        hibernate(machine, way or Remap())
    except MachineFault as fault:
        calls.append(crashed(fault.address))
    except HibernationRefused:
        pass  # the calls end here
    return merged(calls)


class _SameChoices(Environment):
    """Environment that gives the allocations of a trace; a stale translation is still cached."""

    def __init__(self, allocations: Sequence[int | None]) -> None:
        super().__init__()
        self._allocations = tuple(allocations)

    def decide(self, question: Question) -> int:
        """See `Environment.decide`."""
        if question.kind not in (Kind.ALLOCATION_FAILS, Kind.FREE_FRAME) or question.subject > len(self._allocations):
            return 0
        pfn = self._allocations[question.subject - 1]
        if question.kind == Kind.ALLOCATION_FAILS:
            return int(pfn is None)
        return question.options.index(pfn) if pfn in question.options else 0


def _machine(trace: Trace, rules: KernelRules) -> Machine:
    given = sorted({pfn for pfn in trace.allocations if pfn is not None})
    environment = _SameChoices(trace.allocations)
    return machine_from_memory(trace_memory(trace), trace.cr3, trace.levels, trace.frames, environment, given, rules)


def trace_memory(trace: Trace) -> PhysicalMemory:
    """Return memory with the tables of a trace; its other pages are zero."""
    pages = [Segment(pfn, entries.view(np.uint8).reshape(1, PAGE_SIZE)) for pfn, entries in trace.tables.items()]
    zero = np.zeros((1, PAGE_SIZE), dtype=np.uint8)
    zero.flags.writeable = False
    return SegmentMemory(
        [*pages, *(Segment(start, np.broadcast_to(zero, (count, PAGE_SIZE))) for start, count in trace.frames)]
    )


def direct_map_tables(memory: PhysicalMemory, direct_map: DirectMap) -> dict[int, Entries]:
    """Return the tables of a direct map and of the fixmap, by frame, without entries of other addresses.

    Args:
        memory: memory with the tables.
        direct_map: the direct map in it.
    """
    tables: dict[int, Entries] = {}
    kept = ((direct_map.base, direct_map.vaddr(direct_map.end_pfn - 1)), (FIXMAP_START, (1 << 64) - 1))
    waiting = [(direct_map.tables.root_pfn, direct_map.tables.root_level, 0)]
    while waiting:
        pfn, level, start = waiting.pop()
        page = memory.page(pfn)
        if page is None or pfn in tables:
            continue
        entries = np.array(page.view("<u8"), dtype=np.uint64)
        tables[pfn] = entries
        sign = (1 << 64) - (1 << Level(direct_map.levels).shift + 9)
        for index in range(ENTRIES):
            vaddr = start + (index << level.shift)
            if level == direct_map.tables.root_level and index >= ENTRIES // 2:
                vaddr |= sign
            entry = int(entries[index])
            if not any(vaddr <= last and first < vaddr + (1 << level.shift) for first, last in kept):
                entries[index] = 0
            elif level > Level.PTE and entry & Entry.PRESENT and not is_leaf(entry, level):
                waiting.append(((entry & FRAME_MASK) >> 12, Level(level - 1), vaddr))
    return tables


def _side(call: Call | None) -> str:
    return "nothing, its loop has ended" if call is None else str(call)


# ---- the file ----


def trace_text(trace: Trace) -> str:
    """Return the text of a trace's file: JSON, a line for each key, table and call."""
    document: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "release": trace.release,
        "rules": trace.rules,
        "guest": trace.guest,
        "outcome": trace.outcome,
        "dump": trace.dump,
        "cr3": hex(trace.cr3),
        "levels": trace.levels,
        "pages": [[start, count] for start, count in trace.frames],
        "allocations": [None if pfn is None else hex(pfn) for pfn in trace.allocations],
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in document.items()]
    tables = [f"{json.dumps(hex(pfn))}: {json.dumps(_runs(entries))}" for pfn, entries in sorted(trace.tables.items())]
    lines.append('"tables": {\n  ' + ",\n  ".join(tables) + "\n }")
    events = [json.dumps(call.as_json()) for call in trace.calls]
    lines.append('"events": [\n  ' + ",\n  ".join(events) + "\n ]")
    return "{\n " + ",\n ".join(lines) + "\n}\n"


def write_trace(path: Path, trace: Trace) -> None:
    """Write a trace to a file. An existing file is replaced as a whole."""
    write_file(path, trace_text(trace).encode(), public=True)


def read_trace(path: Path) -> Trace:
    """Return the trace in a file.

    Raises:
        FormatError: the file is not a trace, is of another version, or is damaged.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        content = read_at_most(file, MOST_BYTES + 1)
    return trace_of(content, str(path))


def trace_of(content: bytes, name: str) -> Trace:
    """Return the trace in the contents of a file. See `read_trace`."""
    try:
        if len(content) > MOST_BYTES:
            raise ValueError("it is larger than 256 MiB")
        found = json.loads(content.decode("utf-8"))
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not a trace: {error}", source=name, advice=SAVED_BY) from None
    if found.get("version") != VERSION:
        raise FormatError(
            "trace",
            source=name,
            expected=f"version {VERSION}",
            found=repr(found.get("version"))[:40],
            advice="replay it with the hibernaut that recorded it",
        )
    try:
        return _trace(found)
    except (KeyError, TypeError, ValueError, OverflowError, HibernautError) as error:
        what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise FormatError(f"damaged trace: {what}", source=name, advice=SAVED_BY) from None


def _trace(found: dict[str, Any]) -> Trace:
    rules_named(str(found["rules"]))
    if found["levels"] not in (4, 5):
        raise ValueError(f"{found['levels']!r} levels of paging; expected 4 or 5")
    if not isinstance(found["tables"], dict) or len(found["tables"]) > MOST_TABLES:
        raise ValueError(f"the tables are not an object with at most {MOST_TABLES}")
    pages = [(int(start), int(count)) for start, count in found["pages"]]
    if any(start < 0 or count < 1 for start, count in pages) or sum(count for _, count in pages) > MOST_PAGES:
        raise ValueError("the pages are not runs of frames")
    return Trace(
        release=str(found["release"]),
        rules=str(found["rules"]),
        guest=str(found["guest"]),
        outcome=str(found["outcome"]),
        dump=None if found["dump"] is None else str(found["dump"]),
        cr3=int(found["cr3"], 16),
        levels=found["levels"],
        frames=FrameRanges.of(pages),
        tables={int(pfn, 16): _entries(runs) for pfn, runs in found["tables"].items()},
        allocations=tuple(None if pfn is None else int(pfn, 16) for pfn in found["allocations"]),
        calls=tuple(Call.from_json(one) for one in found["events"]),
    )


def _runs(entries: Entries) -> list[list[str | int]]:
    """Return a table as runs of entries that grow by the same step: [index, count, entry, step]; zero ones left out."""
    values = entries.tolist()
    runs: list[list[str | int]] = []
    at = 0
    while at < len(values):
        end, step = at + 1, values[at + 1] - values[at] if at + 1 < len(values) else 0
        while end < len(values) and values[end] - values[end - 1] == step:
            end += 1
        if end - at == 2:  # two entries are a run only if they are equal
            end = at + 1 if step else end
        step = step if end - at > 1 else 0
        if values[at] or step:
            runs.append([at, end - at, hex(values[at]), step])
        at = end
    return runs


def _entries(runs: list[list[Any]]) -> Entries:
    values = [0] * ENTRIES
    for first, count, entry, step in runs:
        if not 0 <= first <= first + count <= ENTRIES:
            raise ValueError(f"entries {first} to {first + count} of a table")
        for number in range(count):
            values[first + number] = int(entry, 16) + number * step
    return np.array(values, dtype=np.uint64)
