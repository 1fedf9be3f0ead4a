# SPDX-License-Identifier: GPL-2.0-or-later
"""The recording of a copy loop: a guest hibernates, and its module notes the calls (guest/region/hlab_trace.h).

The guest is stopped and dumped right before the loop, and stopped right after it. The buffer is read from the guest's
RAM, at the second stop or after a crash. Recorded is every page, in the order in which `kernel_page_present` is asked
for it; each `set_direct_map_default_noflush` and `set_direct_map_invalid_noflush`, with the page's entry before and
after, and the result; each page that is allocated for a split; each `flush_tlb_all` and `flush_tlb_kernel_range`. A
split is what changes the level of a page's entry between two of them. Not recorded: the copied bytes, and INVLPG
itself, which no function of its own carries out on every kernel.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from hibernaut.errors import HibernautError, LabError, LabUnavailable
from hibernaut.hibernation.real_kernel import rules_of_source
from hibernaut.hibernation.trace import Trace, direct_map_tables
from hibernaut.kernel.suspend import pages_to_save
from hibernaut.lab.guest_state import REPORT, RunningGuest
from hibernaut.lab.host.programs import need_module
from hibernaut.lab.laboratory import HIBERNATE, Lab, attach, outcome_of, reached_end_of_copy, wait_for_stop
from hibernaut.lab.record import IMAGE_NAME, GuestRecord
from hibernaut.lab.variants import Variant
from hibernaut.lab.vm.port import facts_of
from hibernaut.linux.calls import Call, allocated, copied, crashed, entry_text, merged, split
from hibernaut.linux.direct_map import DirectMap
from hibernaut.linux.pgtable import is_none
from hibernaut.memory.page import PAGE_SHIFT, PAGE_SIZE
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.ranges import FrameRanges
from hibernaut.paging.entries import Level
from hibernaut.paging.tables import PageTables
from hibernaut.sources import open_memory

__all__ = ["DUMP_NAME", "TRACE_NAME", "Recorded", "calls_of_hits", "record_trace"]

TRACE_NAME = "trace.json"
DUMP_NAME = "before.elf"
MAGIC = 0x65636172746C6268
HEADER = struct.Struct("<4Q")
HIT = struct.Struct("<2Qq5Q")
HITS_PER_MIB = 512
"""Room in the buffer: two calls for each page of memory."""
FAULT = re.compile(r"BUG: (?:unable to handle page fault for|kernel NULL pointer dereference,) address: ([0-9a-f]+)")


class HitKind(IntEnum):
    """Kinds of recorded calls, as the module numbers them."""

    PAGE_PRESENT = 1
    DEFAULT = 2
    DEFAULT_RETURNS = 3
    INVALID = 4
    INVALID_RETURNS = 5
    ALLOCATED = 6
    FLUSH_ALL = 7
    FLUSH_RANGE = 8
    CRASHED = 9


CALLED = {HitKind.DEFAULT: "set_direct_map_default_noflush", HitKind.INVALID: "set_direct_map_invalid_noflush"}
RETURNED = {HitKind.DEFAULT_RETURNS: HitKind.DEFAULT, HitKind.INVALID_RETURNS: HitKind.INVALID}


@dataclass(frozen=True)
class Hit:
    """A call as the module notes it, with the entry of the page that is being copied.

    Attributes:
        kind: kind of call.
        argument: its argument; see the module.
        result: its result, or second argument.
        level: level of the entry that maps the page, or would; None if it is not known.
        paddr: physical address of that entry.
        entry: the entry.
        above_paddr: physical address of the entry one level up, 0 if there is none.
        above: that entry.
    """

    kind: HitKind
    argument: int
    result: int
    level: Level | None
    paddr: int
    entry: int
    above_paddr: int
    above: int

    @property
    def fact(self) -> str | None:
        """The entry as a fact of a call; None if there is no table for the page."""
        missing = self.level is None or (self.level > Level.PTE and is_none(self.entry))
        return None if missing else entry_text(self.level, self.paddr, self.entry)


@dataclass(frozen=True, eq=False)
class Recorded:
    """A recorded hibernation.

    Attributes:
        trace: its copy loop.
        record: record of the guest.
        reason: why it crashed, in the kernel's words; empty if it did not.
        log: everything that the kernel printed.
    """

    trace: Trace
    record: GuestRecord
    reason: str
    log: str


def record_trace(lab: Lab, variant: Variant, folder: Path) -> Recorded:
    """Let a guest hibernate, record the calls of its copy loop, and dump its RAM right before it.

    Args:
        lab: laboratory with the kernel.
        variant: kind of guest.
        folder: existing folder for its disks, its record and the dump.

    Raises:
        LabUnavailable: the laboratory lacks something on this machine, or the kernel a function to probe.
        LabError: the guest fails, refuses to hibernate, or times out.
        HibernautError: the dump is unusable.
    """
    need_module("capstone")
    need_module("drgn")
    room = variant.memory_mib * HITS_PER_MIB
    with lab.prepared(variant, folder, gdb=True, shared_ram=True, traced=room) as (guest, record):
        record.save(folder)
        buffer = _buffer_address(guest)
        sequence, hits = _recorded_loop(guest, buffer, folder / DUMP_NAME)
        outcome, reason = outcome_of(guest, sequence, folder / IMAGE_NAME, record)
        log = guest.qemu.console()
    record = record.with_announced_pages(log)
    record.save(folder)
    return Recorded(_trace(folder, variant, outcome, hits), record, reason, log)


def _buffer_address(guest: RunningGuest) -> int:
    """Return the address of the module's buffer. Raises LabUnavailable if a function could not be probed."""
    for line in guest.port.run(f"cat {REPORT}"):
        if line.startswith("trace "):
            facts = facts_of(line)
            if facts["untraced"] != "nothing":
                raise LabUnavailable(f"the kernel has no function {facts['untraced']} that can be probed")
            return int(facts["buffer"], 16)
    raise LabError("the guest's module does not record calls")


def _recorded_loop(guest: RunningGuest, buffer: int, dump: Path) -> tuple[int, list[Hit]]:
    """Hibernate; return the number of the command, and the hits between the beginning of the loop and its end."""
    if guest.qemu.ram is None:
        raise LabError("the guest's RAM is not shared")
    memory = guest.qemu.ram.memory
    loop, debugger = attach(guest)
    for address in loop.before:
        debugger.add_breakpoint(address)
    debugger.resume()
    sequence = guest.port.send(HIBERNATE)
    refusal = wait_for_stop(guest, debugger, sequence)
    if refusal is not None:
        raise LabError(f"the guest refused to hibernate: {' / '.join(refusal.lines)}")
    tables = PageTables(memory, *guest.qemu.paging())
    earlier, _ = _read_header(tables, memory, buffer)
    guest.qemu.dump(dump)
    for address in loop.before:
        debugger.remove_breakpoint(address)
    debugger.add_breakpoint(loop.after)
    debugger.resume()
    if not reached_end_of_copy(guest, debugger):
        hits = _read_hits(tables, memory, buffer, earlier)
        return sequence, [*hits[:-1], _with_address(hits[-1], guest.qemu.console())] if hits else []
    hits = _read_hits(tables, memory, buffer, earlier)
    debugger.remove_breakpoint(loop.after)
    debugger.close()
    return sequence, hits


def _with_address(hit: Hit, log: str) -> Hit:
    """Return the hit of a crash with the address that the kernel printed; any other hit as it is."""
    printed = FAULT.search(log)
    if hit.kind != HitKind.CRASHED or not printed:
        return hit
    return dataclasses.replace(hit, argument=int(printed[1], 16))


def _read_header(tables: PageTables, memory: PhysicalMemory, buffer: int) -> tuple[int, int]:
    """Return the number of hits in a buffer, and its capacity. Raises LabError if there is none or it is too small."""
    magic, count, capacity, record_bytes = HEADER.unpack(_read(tables, memory, buffer, HEADER.size))
    if (magic, record_bytes) != (MAGIC, HIT.size):
        raise LabError(f"there is no buffer of recorded calls at {buffer:#x}")
    if count > capacity:
        raise LabError(f"the guest made {count} calls, its module has room for {capacity}")
    return count, capacity


def _read_hits(tables: PageTables, memory: PhysicalMemory, buffer: int, earlier: int) -> list[Hit]:
    """Return the hits of a buffer, without the earlier ones."""
    count, _ = _read_header(tables, memory, buffer)
    raw = _read(tables, memory, buffer + HEADER.size + earlier * HIT.size, (count - earlier) * HIT.size)
    return [_hit(fields) for fields in HIT.iter_unpack(raw)]


def _hit(fields: tuple[int, ...]) -> Hit:
    kind, argument, result, shift, *entries = fields
    level = Level((shift - PAGE_SHIFT) // 9 + 1) if shift else None
    return Hit(HitKind(kind), argument, result, level, *entries)


def _read(tables: PageTables, memory: PhysicalMemory, address: int, size_bytes: int) -> bytes:
    """Return bytes at an address of the kernel, from RAM."""
    data = b""
    while len(data) < size_bytes:
        at = address + len(data)
        paddr = tables.walk(at).paddr
        part = min(size_bytes - len(data), PAGE_SIZE - at % PAGE_SIZE)
        found = None if paddr is None else memory.read(paddr, part)
        if found is None:
            raise LabError(f"no memory at {at:#x} in the guest")
        data += found
    return data


def calls_of_hits(hits: Sequence[Hit]) -> tuple[Call, ...]:
    """Return the calls that hits stand for. Raises LabError if they do not fit together."""
    return merged(_calls(hits))


def _calls(hits: Sequence[Hit]) -> Iterator[Call]:
    begun: Hit | None = None
    last: Hit | None = None
    for hit in hits:
        if hit.kind == HitKind.PAGE_PRESENT:
            yield copied(hit.argument)
        elif last is not None:
            yield from _split(last, hit)
        last = hit
        if hit.kind in CALLED:
            begun = hit
        elif hit.kind in RETURNED:
            if begun is None or begun.kind != RETURNED[hit.kind]:
                raise LabError(f"{CALLED[RETURNED[hit.kind]]} returns, and was not called")
            yield Call.of(CALLED[begun.kind], hex(begun.argument), begun.fact, hit.fact, hit.result)
            begun = None
        elif hit.kind == HitKind.ALLOCATED:
            yield allocated(hit.result or None)
        elif hit.kind == HitKind.FLUSH_ALL:
            yield Call.of("flush_tlb_all")
        elif hit.kind == HitKind.FLUSH_RANGE:
            yield Call.of("flush_tlb_kernel_range", hex(hit.argument), hex(hit.result & (1 << 64) - 1))
        elif hit.kind == HitKind.CRASHED:
            yield crashed(hit.argument)


def _split(last: Hit, hit: Hit) -> Iterator[Call]:
    """Yield the split between two hits for the same page, if the level of its entry has changed."""
    if last.level is None or hit.level is None or hit.level >= last.level:
        return
    if hit.above_paddr != last.paddr:
        raise LabError(f"the entry at {last.paddr:#x} was split, and {hit.above_paddr:#x} names the table")
    yield split(last.level, last.paddr, last.entry, hit.above)


def _trace(folder: Path, variant: Variant, outcome: str, hits: Sequence[Hit]) -> Trace:
    """Return the trace: state and list of pages from the dump, calls from the hits."""
    with open_memory(folder / DUMP_NAME) as dump:
        pages = pages_to_save(dump)
        if pages.info is None or pages.kernel is None or pages.pfns is None:
            raise HibernautError(f"{dump.name}: {pages.reason}")
        direct_map = DirectMap.find(dump.memory, pages.info.cr3, pages.kernel.levels)
        rules = rules_of_source(dump).rules
        tables = direct_map_tables(dump.memory, direct_map)
    given = [hit.result or None for hit in hits if hit.kind == HitKind.ALLOCATED]
    return Trace(
        release=pages.kernel.release,
        rules=rules.line,
        guest=variant.name,
        outcome=outcome,
        dump=DUMP_NAME,
        cr3=pages.info.cr3,
        levels=pages.kernel.levels,
        frames=FrameRanges.of_pfns(pages.pfns),
        tables=tables,
        allocations=tuple(given),
        calls=calls_of_hits(hits),
    )
