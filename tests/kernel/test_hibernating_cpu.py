# SPDX-License-Identifier: GPL-2.0-or-later
"""The registers of the hibernating CPU by few pages are those by all symbols and types.

The witness is drgn, in `tests.cli.test_crash`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from hibernaut.kernel import hibernating_cpu
from hibernaut.kernel.btf import BtfKind
from hibernaut.kernel.btf_layouts import member_offsets
from hibernaut.kernel.hibernating_cpu import hibernating_cpu_note
from hibernaut.kernel.symbols import SymbolicKernel
from hibernaut.memory.overlay import Overlay
from hibernaut.memory.vmcoreinfo import find_vmcoreinfo
from hibernaut.sources import Source, open_memory
from tests.conftest import Golden
from tests.kernel.test_vmcoreinfo_pointers import Counted

IMAGES = ("swap-6.1-lzo.img", "swap-6.1-low2m.img", "swap-6.12-lz4.img")


class Hibernated:
    """An image and its kernel, all of whose symbols and types are read.

    Attributes:
        source: the image.
        kernel: its kernel.
        context: address of `saved_context`.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.kernel = SymbolicKernel(source.memory, find_vmcoreinfo(source.memory), source.name)
        self.context = self.kernel.symbols["saved_context"].address

    def member(self, structure: str, name: str) -> int:
        """Return the offset of a member."""
        assert self.kernel.btf is not None
        return member_offsets(self.kernel.btf, self.kernel.btf.find(structure, BtfKind.STRUCT)[0])[name]

    def register(self, name: str) -> int:
        """Return a saved register."""
        return self.kernel.u64(self.context + self.member("pt_regs", name), name)

    @property
    def area(self) -> int:
        """The address of the first CPU's own area."""
        return self.kernel.u64(self.kernel.symbols["__per_cpu_offset"].address, "__per_cpu_offset")

    @property
    def current(self) -> int:
        """The address of the variable that points to the task that the first CPU runs."""
        hot = self.kernel.symbols.get("pcpu_hot")
        if hot is not None:
            return self.area + hot.address + self.member("pcpu_hot", "current_task")
        return self.area + self.kernel.symbols["current_task"].address

    def note(self, memory: Overlay | None = None) -> Any:
        """Return the note of the image, or of other memory in its place."""
        source = self.source if memory is None else replace(self.source, memory=memory)
        return hibernating_cpu_note(source, self.kernel.vmcoreinfo)

    def with_u64(self, vaddr: int, value: int) -> Overlay:
        """Return the memory with one value changed."""
        overlay = Overlay(self.source.memory)
        paddr = self.kernel.tables.walk(vaddr).paddr
        assert paddr is not None
        overlay.write(paddr, struct.pack("<Q", value))
        return overlay

    def owner(self, memory: Overlay | None = None) -> int | None:
        """Return the PID that is shown by the stack."""
        kernel = SymbolicKernel(memory or self.source.memory, self.kernel.vmcoreinfo, on_demand=True)
        behind = self.context + kernel.layouts.structure("pt_regs").size_bytes
        return hibernating_cpu._number_of_owner(kernel, behind, self.register("sp"))


@pytest.fixture(scope="module", params=IMAGES)
def image(request: pytest.FixtureRequest, golden: Golden) -> Iterator[Hibernated]:
    """An image."""
    with open_memory(golden(request.param)) as source:
        yield Hibernated(source)


def test_both_ways_lead_to_the_same_note(image: Hibernated, monkeypatch: pytest.MonkeyPatch) -> None:
    """With symbols and types that are read in parts, and with all of them; the registers are the saved ones."""
    found = image.note()
    assert found is not None
    registers = struct.unpack_from("<21Q", found.description, 112)
    assert registers[19] == image.register("sp")
    assert registers[16] == image.kernel.symbols["swsusp_arch_suspend"].address
    assert image.member("saved_context", "regs") == 0
    number = image.kernel.u32(
        image.kernel.u64(image.current, "current") + image.member("task_struct", "pid"), "task_struct"
    )
    assert struct.unpack_from("<i", found.description, 32) == (number,)
    monkeypatch.setattr(hibernating_cpu, "_number_of_owner", lambda *_: None)
    monkeypatch.setattr(hibernating_cpu, "data_loaded_at_restore_entry", lambda _: None)
    assert image.note() == found
    monkeypatch.setattr(hibernating_cpu, "SymbolicKernel", all_at_once)
    assert image.note() == found


def all_at_once(*arguments: Any, on_demand: bool) -> SymbolicKernel:
    """Return a kernel all of whose symbols and types are read."""
    assert on_demand
    return SymbolicKernel(*arguments)


def test_few_pages_are_read(image: Hibernated) -> None:
    """A hundredth of the frames; symbols and types alone have four times as many."""
    memory = Counted(image.source.memory)
    assert hibernating_cpu_note(replace(image.source, memory=memory), image.kernel.vmcoreinfo) == image.note()
    assert len(memory.read_pfns) < memory.ranges.total_pages / 100


def test_the_base_of_gs_is_that_of_the_first_cpu(image: Hibernated) -> None:
    """The one that is saved behind the registers is `__per_cpu_offset` of the first CPU."""
    words = struct.unpack("<8Q", image.kernel.read(image.context + 168, 64, "saved_context"))
    assert image.area in words


Change = Callable[[Hibernated], Overlay]
CHANGES: dict[str, Change] = {
    "another base of GS": lambda image: image.with_u64(image.context + 176, image.area + 64),
    "no base of GS": lambda image: image.with_u64(image.context + 176, 0),
    "this_cpu_off is another one": lambda image: image.with_u64(
        image.area + image.kernel.symbols["this_cpu_off"].address, image.area + 4096
    ),
}
"""Changes by which the area of the CPU cannot be shown."""


@pytest.mark.parametrize("change", CHANGES)
def test_registers_without_a_shown_owner_are_read_the_long_way(image: Hibernated, change: str) -> None:
    """The note is the same."""
    memory = CHANGES[change](image)
    assert image.owner(memory) is None
    assert image.note(memory) == image.note()


def test_a_task_with_another_stack_is_not_taken_by_it(image: Hibernated) -> None:
    """The idle task is not the one that hibernates; a pointer to nothing leads to none."""
    assert image.owner() is not None
    idle = image.kernel.symbols["init_task"].address
    for task in (idle, 0, (1 << 64) - 8):
        assert image.owner(image.with_u64(image.current, task)) is None


def test_a_return_address_outside_of_the_text_is_refused(image: Hibernated) -> None:
    """Below `_stext`, or from `_etext` on; that of any function in between will do."""
    kernel, stack = image.kernel, image.register("sp")
    bounds = [kernel.symbols[name].address for name in ("_stext", "_etext")]
    for back in (0, bounds[0] - 1, bounds[1], kernel.symbols["init_task"].address):
        assert image.note(image.with_u64(stack, back)) is None
    for back in (bounds[0], bounds[1] - 1):
        assert image.note(image.with_u64(stack, back)) == image.note()
