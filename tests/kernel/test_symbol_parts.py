# SPDX-License-Identifier: GPL-2.0-or-later
"""Symbols read in parts of kallsyms are those of the whole, in fewer pages; drgn's own reader is the witness."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest

from hibernaut.errors import FormatError
from hibernaut.kernel import symbol_parts
from hibernaut.kernel.kallsyms import end_of_names
from hibernaut.kernel.kallsyms_in_memory import kallsyms_places
from hibernaut.kernel.symbol_parts import PartlyReadSymbols, symbols_on_demand
from hibernaut.kernel.symbol_table import KernelSymbol, KernelSymbols
from hibernaut.kernel.symbols import SymbolicKernel
from hibernaut.memory.overlay import Overlay
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.vmcoreinfo import find_vmcoreinfo
from hibernaut.sources import open_memory
from tests.conftest import Golden
from tests.kernel.by_drgn import drgn_symbols
from tests.kernel.test_vmcoreinfo_pointers import Counted

SOURCES = ("swap-6.1-lzo.img", "swap-6.12-lz4.img")
VARIABLES = ("init_task", "init_pid_ns", "saved_context", "_stext", "_etext", "_end", "__start_BTF", "swsusp_save")


@pytest.fixture(scope="module", params=SOURCES)
def whole(request: pytest.FixtureRequest, golden: Golden) -> Iterator[SymbolicKernel]:
    """A kernel whose symbols are all read."""
    with open_memory(golden(request.param)) as source:
        yield SymbolicKernel(source.memory, find_vmcoreinfo(source.memory))


def parts_of(kernel: SymbolicKernel, memory: PhysicalMemory | None = None) -> KernelSymbols:
    """Return the symbols of a kernel, read on demand."""
    return symbols_on_demand(SymbolicKernel(memory or kernel.memory, kernel.vmcoreinfo, on_demand=True))


def changed(kernel: SymbolicKernel, vaddr: int, content: bytes) -> Overlay:
    """Return the memory of a kernel with other bytes at a virtual address."""
    overlay = Overlay(kernel.memory)
    for at in range(len(content)):
        paddr = kernel.tables.walk(vaddr + at).paddr
        assert paddr is not None
        overlay.write(paddr, content[at : at + 1])
    return overlay


def is_whole(symbols: KernelSymbols) -> bool:
    """Return whether all of kallsyms was read."""
    assert isinstance(symbols, PartlyReadSymbols)
    return symbols._whole is not None


def test_global_symbols_are_those_of_the_whole(whole: SymbolicKernel) -> None:
    """Letter, address and size of some hundred, by the groups alone."""
    table, parts = whole.symbols.table, parts_of(whole)
    assert isinstance(parts, PartlyReadSymbols)
    assert parts._parts is not None
    groups = range(-(-len(table) // 256))
    chance = random.Random(1)
    chosen = [table.name(row) for row in chance.sample(range(len(table)), 800) if table.is_global(row)]
    for name in (*chosen, *VARIABLES):
        assert parts._parts.find_global(name, iter(groups)) == whole.symbols.find_global(name)


def test_variables_of_the_kernels_core_do_not_need_the_whole(whole: SymbolicKernel) -> None:
    """They are near the start of its data; a function that is not leads to the whole, and is the same."""
    parts = parts_of(whole)
    for name in ("init_task", "init_pid_ns", "init_uts_ns", "__start_BTF", "__stop_BTF", "_sdata", "_stext"):
        assert parts.get(name) == whole.symbols.get(name)
    assert not is_whole(parts)
    assert parts.get("swsusp_save") == whole.symbols.get("swsusp_save")
    assert is_whole(parts)


def test_drgn_has_the_same(whole: SymbolicKernel) -> None:
    """Address by drgn's own reader of kallsyms, and size; to drgn the first of two symbols of an address has none."""
    by_name = {one.name: one for one in drgn_symbols(whole.memory, whole.vmcoreinfo)}
    for name in VARIABLES:
        found = parts_of(whole).find_global(name)
        assert found is not None
        assert found[1].address == by_name[name].address
        assert by_name[name].size in (0, found[1].size)
    assert by_name["init_task"].size


def test_static_and_absent_symbols_need_the_whole(whole: SymbolicKernel) -> None:
    """A static one is found, several of a name are refused, one that is absent is."""
    for name in ("nr_swapfiles", "no_such_symbol"):
        parts = parts_of(whole)
        assert parts.find_global(name) is None
        assert parts.get(name) == whole.symbols.get(name)
        assert is_whole(parts)
    with pytest.raises(FormatError, match="symbols named"):
        parts_of(whole)["__func__.0"]


def test_few_pages_are_read(whole: SymbolicKernel) -> None:
    """For a variable less than a tenth of those of the whole; near an address less than for a search."""
    memory = Counted(whole.memory)
    kernel = SymbolicKernel(memory, whole.vmcoreinfo, on_demand=True)
    at_first = len(memory.read_pfns)
    near = kernel.symbols.near("swsusp_arch_suspend", whole.symbols["restore_registers"].address)
    assert near == whole.symbols["swsusp_arch_suspend"]
    beside = len(memory.read_pfns)
    assert kernel.symbols["init_task"] == whole.symbols["init_task"]
    few = len(memory.read_pfns)
    assert len(kernel.symbols.table) == len(whole.symbols.table)
    assert few < len(memory.read_pfns) / 10
    assert beside - at_first < 40


def test_near_an_address_no_other_symbol_is_found(whole: SymbolicKernel) -> None:
    """One of another group, and one that does not exist, are not; without an address only what was read before."""
    parts = parts_of(whole)
    restore = whole.symbols["restore_registers"].address
    assert parts.near("init_task", restore) is None
    assert parts.near("restore_registers", restore) == whole.symbols["restore_registers"]
    assert parts.near("swsusp_arch_suspend") == whole.symbols["swsusp_arch_suspend"]
    assert parts.near("saved_context") is None
    for address in (0, 1, (1 << 64) - 1):
        assert parts.near("init_task", address) is None
    assert whole.symbols.near("init_task") == whole.symbols["init_task"]


def test_rows_are_those_of_the_whole(whole: SymbolicKernel) -> None:
    """By address, of a symbol and between two: the last one at or below it."""
    parts = parts_of(whole)
    assert isinstance(parts, PartlyReadSymbols)
    assert parts._parts is not None
    addresses = whole.symbols.table.addresses
    for row in random.Random(2).sample(range(len(addresses)), 200):
        for address in (int(addresses[row]), int(addresses[row]) + 1):
            expected = int(np.searchsorted(addresses, np.uint64(address), side="right")) - 1
            assert parts._parts._row_at(address) == expected


@pytest.mark.parametrize("at", [0, 4, 400])
def test_wrong_markers_lead_to_the_whole(whole: SymbolicKernel, at: int) -> None:
    """Whatever group they are of: no symbol is read from a place that is not one, and none is lost."""
    memory = changed(whole, markers_of(whole) + at, b"\x77")
    parts = parts_of(whole, memory)
    for name in VARIABLES:
        assert parts.get(name) == whole.symbols.get(name)


def test_a_group_that_does_not_end_at_the_next_one_is_not_read(whole: SymbolicKernel) -> None:
    """A length that is one more swallows the rest of the group: the whole is read, and refused."""
    places = kallsyms_places(whole)
    parts = parts_of(whole)
    assert isinstance(parts, PartlyReadSymbols)
    assert parts._parts is not None
    group = parts._parts._row_at(whole.symbols["init_task"].address) // 256
    start = places["names"] + int(parts._parts._bounds[group])
    memory = changed(whole, start, bytes([whole.read(start, 1, "length")[0] + 1]))
    with pytest.raises(FormatError):
        parts_of(whole, memory)["init_task"]
    assert parts_of(whole, memory)["_stext"] == whole.symbols["_stext"]


def test_a_group_with_bytes_left_over_is_not_read(whole: SymbolicKernel) -> None:
    """The last length of a group is one less: no symbol of the group is taken from it, not even an earlier one."""
    places, parts = kallsyms_places(whole), parts_of(whole)
    assert isinstance(parts, PartlyReadSymbols)
    assert parts._parts is not None
    address = whole.symbols["init_task"].address
    group = parts._parts._row_at(address) // 256
    start, end = (places["names"] + int(parts._parts._bounds[number]) for number in (group, group + 1))
    names = whole.read(start, end - start, "names")
    last = end_of_names(names, 255)
    assert 1 < names[last] < 0x80
    assert parts.near("init_task", address) == whole.symbols["init_task"]
    memory = changed(whole, start + last, bytes([names[last] - 1]))
    assert parts_of(whole, memory).near("init_task", address) is None


def test_addresses_that_contradict_vmcoreinfo_are_refused(whole: SymbolicKernel) -> None:
    """An offset of `_stext` that is another one: neither a part nor the whole is taken."""
    table = whole.symbols.table
    memory: PhysicalMemory = whole.memory
    for row in table.rows("_stext"):
        memory = changed(
            SymbolicKernel(memory, whole.vmcoreinfo), kallsyms_places(whole)["offsets"] + 4 * row + 1, b"\x55"
        )
    with pytest.raises(FormatError, match="not those of VMCOREINFO"):
        SymbolicKernel(memory, whole.vmcoreinfo, on_demand=True)


@pytest.mark.parametrize("whole", SOURCES[:1], indirect=True)
def test_without_locations_the_whole_is_read(whole: SymbolicKernel) -> None:
    """The VMCOREINFO of older kernels does not say where kallsyms is: it is searched for, in the order of 6.1."""
    lines = [line for line in whole.vmcoreinfo.split(b"\n") if b"kallsyms" not in line]
    kernel = SymbolicKernel(whole.memory, b"\n".join(lines), on_demand=True)
    assert not isinstance(kernel.symbols, PartlyReadSymbols)
    assert kernel.symbols["init_task"] == whole.symbols["init_task"]


def test_symbols_of_one_address_are_passed(whole: SymbolicKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size ends at the next higher address; where that is too far the whole says it."""
    monkeypatch.setattr(symbol_parts, "FEW_ROWS", 1)
    for name in VARIABLES:
        assert parts_of(whole).find_global(name) == whole.symbols.find_global(name)
    monkeypatch.setattr(symbol_parts, "MOST_ALIASES", 1)
    table = whole.symbols.table
    same = np.flatnonzero(table.addresses[1:] == table.addresses[:-1])
    row = next(row for row in same.tolist() if table.is_global(row) and table.addresses[row] > 1 << 32)
    parts = parts_of(whole)
    assert parts.get(table.name(row)) == KernelSymbol(int(table.addresses[row]), table.size_bytes(row))
    assert is_whole(parts)


def markers_of(kernel: SymbolicKernel) -> int:
    """Return the address of `kallsyms_markers`, found by the bytes of all markers."""
    parts = parts_of(kernel)
    assert isinstance(parts, PartlyReadSymbols)
    assert parts._parts is not None
    places = kallsyms_places(kernel)
    content = kernel.read(places["names"], places["token_table"] - places["names"], "names")
    return places["names"] + content.index(parts._parts._bounds[:-1].astype("<u4").tobytes())
