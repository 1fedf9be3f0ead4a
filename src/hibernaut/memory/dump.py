# SPDX-License-Identifier: GPL-2.0-or-later
"""What opening a dump gives: its memory and what it says about the machine, or why it is not of that format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hibernaut.memory.physical import PhysicalMemory

__all__ = ["Dump", "Refusal"]


@dataclass(frozen=True, eq=False)
class Dump:
    """A memory dump that a reader accepted.

    Attributes:
        kind: the format: elf, lime, raw, kdump.
        memory: its page frames; closing it closes the file.
        cr3: physical address of the root of the page tables, if the dump says it.
        levels: levels of paging, 4 or 5, if the dump says it.
        notes: what else it says, by name: VMCOREINFO's keys as they are, other facts with a prefix (`qemu.cpus`).
        vmcoreinfo: the text of its VMCOREINFO note, if it has one.
    """

    kind: str
    memory: PhysicalMemory
    cr3: int | None = None
    levels: int | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    vmcoreinfo: bytes | None = None


@dataclass(frozen=True)
class Refusal:
    """A reader's answer that a file is not its own: the format it knows and why it declined."""

    format: str
    reason: str

    def __str__(self) -> str:
        return f"{self.format}: {self.reason}"
