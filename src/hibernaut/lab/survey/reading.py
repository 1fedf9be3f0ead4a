# SPDX-License-Identifier: GPL-2.0-or-later
"""One reading of a guest's direct map: the frames of RAM that are out of it, their owners, whether they are saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hibernaut.errors import FormatError, LabError
from hibernaut.lab.guest_state import RunningGuest
from hibernaut.lab.vm.port import facts_of
from hibernaut.linux.direct_map import DirectMap, Hole
from hibernaut.memory.page import PAGE_SHIFT, PAGE_SIZE, Pfns
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.ranges import FrameRanges
from hibernaut.paging.entries import Level
from hibernaut.paging.spans import Stop

__all__ = ["Hidden", "Kind", "Owners", "Reading", "Saved", "address_of_pool", "hidden_in", "read_direct_map"]

Kind = Literal["not present", "zero", "no table"]
Saved = Literal["yes", "no", "refused", "unknown"]

KFENCE, SECRET = "KFENCE pool", "secret memory"
NO_PAGE, RESERVED, OFFLINE, FREE = "end of RAM, or the firmware's", "reserved", "offline", "free memory"
UNKNOWN = "unknown"

KPF_BUDDY, KPF_NOPAGE, KPF_OFFLINE, KPF_RESERVED = 1 << 10, 1 << 20, 1 << 23, 1 << 32
"""Flags of /proc/kpageflags (include/uapi/linux/kernel-page-flags.h)."""
KFENCE_PAGES = 2 * (255 + 1)
"""`KFENCE_POOL_SIZE` with the default of CONFIG_KFENCE_NUM_OBJECTS."""
AREAS = (
    (0xFFFF_FFFF_A000_0000, 1 << 64, "module or JIT text"),
    (0xFFFF_C900_0000_0000, 0xFFFF_E900_0000_0000, "vmalloc"),
)
"""Other addresses of a kernel without KASLR, 4 levels (Documentation/arch/x86/x86_64/mm.rst)."""
NEAR_PAGES = 64
"""Holes that are not further apart are asked for at once."""
STOPS = 5


@dataclass(frozen=True)
class Hidden:
    """Frames out of the direct map that are alike.

    Attributes:
        level: level of the entries that decide.
        kind: not present; zero, in an existing table of 4K entries; no table, the entry above being zero.
        owner: owner of the frames.
        saved: whether hibernation would save them; refused if the kernel does not hibernate while they are there.
        pages: number of frames.
        entries: number of entries.
    """

    level: Level
    kind: Kind
    owner: str
    saved: Saved
    pages: int
    entries: int

    @property
    def huge(self) -> bool:
        """Whether a large entry is not present, so that it has to be split to map one of its pages."""
        return self.kind == "not present" and self.level > Level.PTE


@dataclass(frozen=True)
class Reading:
    """The direct map at one instant.

    Attributes:
        present_mib: memory that is present, MiB, by size of entry: 4K, 2M, 1G.
        hidden: RAM that is not, by level, kind, owner.
    """

    present_mib: Mapping[str, float]
    hidden: tuple[Hidden, ...]


@dataclass(frozen=True)
class Owners:
    """Owners and flags of the frames of a guest.

    Attributes:
        named: frames by owner; the first owner counts.
        flags: (first frame, number of frames, flags of /proc/kpageflags) of runs; frames in none are unknown.
    """

    named: Sequence[tuple[str, FrameRanges]] = ()
    flags: Sequence[tuple[int, int, int]] = ()


def address_of_pool(guest: RunningGuest) -> int | None:
    """Return the address of the kernel's variable `__kfence_pool`; None if it has none."""
    listed = guest.port.run("grep ' __kfence_pool$' /proc/kallsyms || true")
    return int(listed[0].split()[0], 16) if listed else None


def read_direct_map(guest: RunningGuest, pool: int | None) -> Reading:
    """Stop a guest, read its direct map, let it continue, and ask it for the owners of what is missing.

    Args:
        guest: the guest.
        pool: `address_of_pool`.

    Raises:
        LabError: it has no direct map that can be read, or does not answer.
    """
    if guest.qemu.ram is None:
        raise LabError("the guest's RAM is not shared")
    found, named = _stopped(guest, guest.qemu.ram.memory, pool)
    secret = [facts_of(line) for line in guest.port.ask("!frames secret").lines if line.startswith("frames ")]
    frames = [(int(one["first"], 16), int(one["count"])) for one in secret if int(one["first"], 16)]
    if frames:
        named.insert(0, (SECRET, FrameRanges.of(sorted(frames))))
    flags = [one for first, pages in _near(_relevant(found)) for one in _flags(guest, first, pages)]
    present = {size: amount / (1 << 20) for size, amount in found.present_bytes.items()}
    return Reading(present, tuple(hidden_in(_relevant(found), Owners(named, flags))))


def _stopped(
    guest: RunningGuest, memory: PhysicalMemory, pool: int | None
) -> tuple[DirectMap, list[tuple[str, FrameRanges]]]:
    """Return the direct map of a guest that is stopped meanwhile, and the frames with an owner that its tables name."""
    for attempt in range(STOPS):
        guest.qemu.execute("stop")
        try:
            registers = guest.qemu.registers()
            found = DirectMap.find(memory, registers["CR3"] & ~(PAGE_SIZE - 1))
            _ = found.holes, found.present_bytes  # from tables that change when the guest continues
            return found, [*_kfence(found, pool), *_elsewhere(found)]
        except FormatError as error:  # the tables of user space may lack the kernel's
            if attempt == STOPS - 1:
                raise LabError(f"the direct map cannot be read: {error}") from error
        finally:
            guest.qemu.execute("cont")
    raise AssertionError("the last attempt returns or raises")


def _kfence(found: DirectMap, variable: int | None) -> Iterator[tuple[str, FrameRanges]]:
    """Yield the frames of KFENCE's pool, if there is one."""
    walk = None if variable is None else found.tables.walk(variable)
    if variable is None or walk is None or walk.pfn is None:
        return
    page = found.tables.memory.page(walk.pfn)
    if page is None:
        return
    at = variable % PAGE_SIZE
    pool = int.from_bytes(page[at : at + 8].tobytes(), "little")
    if pool > found.base:
        yield KFENCE, FrameRanges.of([((pool - found.base) >> PAGE_SHIFT, KFENCE_PAGES)])


def _elsewhere(found: DirectMap) -> Iterator[tuple[str, FrameRanges]]:
    """Yield the frames that the kernel maps in other areas, by area."""
    for start, end, name in AREAS:
        spans = found.tables.scan(start, end).of_state(Stop.PRESENT)
        if len(spans):
            pfns = np.concatenate([np.arange(one.pfn, one.pfn + one.pages) for one in spans])
            yield name, FrameRanges.of_pfns(np.unique(pfns))


def _relevant(found: DirectMap) -> list[Hole]:
    """Return the holes in RAM, and entries that are not present wherever they are."""
    return [hole for hole in found.holes if hole.in_source or hole.kind == Stop.NOT_PRESENT]


def _near(holes: Sequence[Hole]) -> Iterator[tuple[int, int]]:
    """Yield (first frame, number of frames) of ranges that cover all holes, a few pages between them included."""
    start = end = -1
    for hole in holes:
        if start >= 0 and hole.start_pfn - end > NEAR_PAGES:
            yield start, end - start
            start = -1
        start = hole.start_pfn if start < 0 else start
        end = hole.start_pfn + hole.pages
    if start >= 0:
        yield start, end - start


def _flags(guest: RunningGuest, first: int, pages: int) -> Iterator[tuple[int, int, int]]:
    """Yield (first frame, number of frames, flags) of runs; nothing if the kernel does not tell."""
    for line in guest.port.ask(f"!pageflags {first:#x} {pages}").lines:
        facts = facts_of(line)
        yield int(facts["first"], 16), int(facts["count"]), int(facts["value"], 16)


def hidden_in(holes: Sequence[Hole], owners: Owners) -> Iterator[Hidden]:
    """Yield what is hidden, one for each level, kind, owner and fate, in this order."""
    pages: dict[tuple[Level, Kind, str, Saved], int] = {}
    entries: dict[tuple[Level, Kind, str, Saved], set[int]] = {}
    for hole in holes:
        pfns = np.arange(hole.start_pfn, hole.start_pfn + hole.pages, dtype=np.int64)
        flags = np.full(hole.pages, -1, dtype=np.int64)
        for first, count, value in owners.flags:
            flags[(pfns >= first) & (pfns < first + count)] = value
        names = _named(pfns, flags, owners)
        for name in np.unique(names).tolist():
            for value in np.unique(flags[names == name]).tolist():
                which = (names == name) & (flags == value)
                key = hole.level, _kind(hole), str(name), _saved(str(name), int(value))
                pages[key] = pages.get(key, 0) + int(which.sum())
                entries.setdefault(key, set()).update((pfns[which] >> (hole.level.shift - PAGE_SHIFT)).tolist())
    for key in sorted(pages, key=lambda one: (-one[0], one[1:])):
        yield Hidden(*key, pages[key], len(entries[key]))


def _named(pfns: Pfns, flags: NDArray[np.int64], owners: Owners) -> NDArray[np.object_]:
    """Return the owner of each frame: one that is known by name, else one that the frame's flags name."""
    names = np.full(len(pfns), UNKNOWN, dtype=object)
    for bit, name in ((KPF_BUDDY, FREE), (KPF_OFFLINE, OFFLINE), (KPF_RESERVED, RESERVED), (KPF_NOPAGE, NO_PAGE)):
        names[(flags >= 0) & ((flags & bit) != 0)] = name
    free = names != UNKNOWN
    for name, frames in reversed(list(owners.named)):
        theirs = frames.contains(pfns)
        names[theirs if name in (KFENCE, SECRET) else theirs & ~free] = name
    return names


def _kind(hole: Hole) -> Kind:
    if hole.kind == Stop.NOT_PRESENT:
        return "not present"
    return "zero" if hole.level == Level.PTE else "no table"


def _saved(owner: str, flags: int) -> Saved:
    """Return the fate of a frame that is not present: `saveable_page` of kernel/power/snapshot.c."""
    if owner == SECRET:
        return "refused"
    if flags < 0:
        return "unknown"
    return "no" if flags & (KPF_BUDDY | KPF_NOPAGE | KPF_OFFLINE | KPF_RESERVED) else "yes"
