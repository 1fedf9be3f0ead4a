# SPDX-License-Identifier: GPL-2.0-or-later
"""The copy on the memory of a real kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from hibernaut.errors import MachineFault
from hibernaut.hibernation import Fixmap, Remap, hibernate, same_data, same_direct_map, slot_empty
from hibernaut.hibernation.saveable import saveable_pages
from hibernaut.hibernation.source_machine import machine_from_memory
from hibernaut.linux.environment import ChooseFrames, FailAllocations
from hibernaut.linux.pgtable import pfn_entry
from tests.linux.witness import (
    LOW2M_CR3,
    LOW2M_PAGES,
    LOW2M_PMD_TABLE,
    LOW2M_START,
    elf_memory,
    npregion_pages,
    plain_image,
)

if TYPE_CHECKING:
    from tests.conftest import Golden
from tests.hibernation.page_contents import table_frames


def test_real_machine_crashes_as_the_real_kernel_crashed(golden: Golden) -> None:
    """6.1 with the split's allocation failing: the warning, then the page fault at the block's first address."""
    machine = machine_from_memory(elf_memory(golden("ram-6.1-low2m.elf")), LOW2M_CR3, environment=FailAllocations(1))
    with pytest.raises(MachineFault) as fault:
        hibernate(machine, Remap())
    assert (fault.value.address, fault.value.entry) == (0xFFFF888000400000, 0x800FFFFFFFBFF062)
    assert fault.value.pfn == LOW2M_START
    assert fault.value.log[2:6] == (
        "PM: hibernation: Failed to remap page",
        "BUG: unable to handle page fault for address: ffff888000400000",
        "#PF: supervisor read access in kernel mode",
        "#PF: error_code(0x0000) - not-present page",
    )


def test_real_block_is_saved_through_the_slot(golden: Golden) -> None:
    """All 512 pages of the not-present block have the bytes that the guest's module wrote, nothing else changed."""
    memory = elf_memory(golden("ram-6.1-low2m.elf"))
    machine = machine_from_memory(memory, LOW2M_CR3, environment=FailAllocations(1))
    twin = machine.fork()
    snapshot = hibernate(twin, Fixmap())
    content, _ = snapshot.memory.gather(np.arange(LOW2M_START, LOW2M_START + LOW2M_PAGES))
    assert np.array_equal(content, npregion_pages(0, 0, LOW2M_PAGES))
    assert same_data(memory, snapshot) == ()
    assert (len(snapshot.changed), same_direct_map(machine, twin), slot_empty(twin, snapshot)) == (0, (), ())


def test_remap_on_a_real_machine_writes_the_tables_that_the_real_kernel_wrote(golden: Golden) -> None:
    """Given the kernel's list and the frame its split got, every page-table page of the image is the kernel's own."""
    pfns, blocks, where = plain_image(golden("swap-6.1-low2m.img"))
    machine = machine_from_memory(
        elf_memory(golden("ram-6.1-low2m.elf")), LOW2M_CR3, 4, pfns, ChooseFrames(0xAAC8), np.array([0xAAC8])
    )
    tables = table_frames(machine)
    assert len(tables) == 113
    snapshot = hibernate(machine, Remap())
    kernel = dict(zip(pfns.tolist(), where.tolist(), strict=True))
    assert tables <= kernel.keys()
    assert all(np.array_equal(snapshot.page(pfn), blocks[kernel[pfn]]) for pfn in tables)
    assert int(snapshot.page(LOW2M_PMD_TABLE).view("<u8")[2]) == 0x000000000AAC8063
    assert 0xAAC8 not in kernel
    table = machine.memory.page(0xAAC8)
    assert table is not None
    # Each page was made present and writable, then neither again: RW has gone with PRESENT.
    assert table.view("<u8").tolist() == [pfn_entry(0x400 + i, 0x8000000000000060) for i in range(512)]


def test_secret_memory_of_a_real_machine_is_saved_both_ways(golden: Golden) -> None:
    """1 292 not-present 4K pages: both ways save the dump's bytes, neither allocates; the guest printed the frames."""
    memory = elf_memory(golden("ram-6.1-secretmem.elf"))
    expected = golden.expected["ram-6.1-secretmem.elf"]
    machine = machine_from_memory(memory, int(expected["cr3"], 16))
    secret = [
        int(first, 16) + page
        for first, pages in expected["secret_pages_as_printed_by_the_guest"]
        for page in range(pages)
    ]
    assert len(secret) == 1292
    assert set(secret) <= set(saveable_pages(machine).pfns().tolist())
    for way in (Remap(), Fixmap()):
        twin = machine.fork()
        snapshot = hibernate(twin, way)
        content, present = snapshot.memory.gather(secret)
        assert present.all()
        assert np.array_equal(content, memory.gather(secret)[0])
        assert same_data(memory, snapshot) == ()
        assert (twin.allocations, same_direct_map(machine, twin)) == ((), ())
