# SPDX-License-Identifier: GPL-2.0-or-later
"""Results of opening a dump: its memory and facts of its machine, or the refusal of a reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hibernaut.memory.physical import PhysicalMemory

__all__ = ["Dump", "Refusal", "RootHint", "incomplete"]


@dataclass(frozen=True)
class RootHint:
    """A root of page tables that a file names.

    Attributes:
        cr3: its physical address.
        levels: levels of paging, 4 or 5; None if the file does not record them.
        origin: its origin in the file, for messages: "CPU 0", "VMCOREINFO".
    """

    cr3: int
    levels: int | None
    origin: str


@dataclass(frozen=True, eq=False)
class Dump:
    """A memory dump that a reader accepted.

    Attributes:
        kind: the format: elf, lime, avml, raw, kdump.
        memory: its physical memory; closing it closes the file.
        cr3: physical address of the root of the page tables; None if the dump does not record it.
        levels: levels of paging, 4 or 5; None if the dump does not record them.
        notes: other facts by name: VMCOREINFO's keys as they are, others with a prefix (`qemu.cpus`).
        vmcoreinfo: text of its VMCOREINFO note; None if it has none.
        roots: all roots that it names, the likeliest first; not each is one of the kernel's own.
        remarks: what is missing in it, a sentence each.
    """

    kind: str
    memory: PhysicalMemory
    cr3: int | None = None
    levels: int | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    vmcoreinfo: bytes | None = None
    roots: tuple[RootHint, ...] = ()
    remarks: tuple[str, ...] = ()


def incomplete(missing_pages: int, total_pages: int, *, marked: bool) -> tuple[str, ...]:
    """Return the remark on a dump whose writer or copy ended early; none if it is complete.

    Args:
        missing_pages: pages that it announces and does not hold.
        total_pages: pages that it announces.
        marked: whether it says itself that it is incomplete; else the file was cut later.
    """
    if not missing_pages:
        complete = "the dump is marked as incomplete, but no page of those that it announces is missing"
        return (complete,) if marked else ()
    how = "were not written" if marked else "are not in the file"
    return (f"the dump is incomplete: {missing_pages} of {total_pages} pages {how}",)


@dataclass(frozen=True)
class Refusal:
    """A reader's refusal of a file.

    Attributes:
        format: the format that the reader reads.
        reason: why it refuses the file, a clause.
        advice: what to do with the file; None if the reader does not know it.
    """

    format: str
    reason: str
    advice: str | None = None

    def __str__(self) -> str:
        return f"{self.format}: {self.reason}"
