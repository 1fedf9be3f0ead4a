# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines for tests of attribute changes, and readers of their entries."""

from __future__ import annotations

import numpy as np

from hibernaut.linux.build import build_machine
from hibernaut.linux.environment import Environment
from hibernaut.linux.kernel_image import KernelImage
from hibernaut.linux.layout import Layout
from hibernaut.linux.machine import Machine
from hibernaut.linux.pgtable import KERNPG_TABLE
from hibernaut.linux.rules import KernelRules, rules_named
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.paging.entries import Level
from tests.machines import RAM


def machine(
    *holes: object, environment: Environment | None = None, rules: str | KernelRules = "6.1", **layout: object
) -> Machine:
    """Build the machine of this row."""
    kernel = rules_named(rules) if isinstance(rules, str) else rules
    return build_machine(Layout(**{"ram": RAM, "holes": holes, **layout}), environment, kernel)  # type: ignore[arg-type]


def entry_of(of: Machine, pfn: int) -> tuple[Level, int]:
    """Return level and entry of a frame in the direct map."""
    found = of.lookup_address(of.vaddr(pfn))
    assert found is not None
    return found.level, found.entry


def table_of(of: Machine, pfn: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """The PTE table that the frame's PMD entry names."""
    found = of.lookup_address(of.vaddr(pfn))
    assert found is not None
    assert found.level == Level.PTE
    page = of.memory.page(found.paddr >> 12)
    assert page is not None
    table: np.ndarray[tuple[int], np.dtype[np.uint64]] = page.view("<u8")
    return table


def upper_entry(of: Machine, pfn: int, level: Level) -> tuple[int, int]:
    """Address and value of the table entry at a level above a frame's own."""
    step = next(step for step in of.tables.walk(of.vaddr(pfn)).steps if step.level == level)
    return step.paddr, step.entry


TEXT = 0xFFFFFFFF81000000


IMAGE = KernelImage(0x1000, 0x1400, TEXT, rodata_start_pfn=0x1300, rodata_end_pfn=0x1310)


TEXT_PROT = 0x1E3
"""Writable and executable: what rights there are is not what these tests are about."""


def machine_with_image(line: str, environment: Environment | None = None, free_pages: int = 64) -> Machine:
    """A machine whose frames 0x1000 to 0x13ff are also mapped at TEXT, by two 2M entries."""
    m = machine(rules=line, environment=environment, free_pages=free_pages)
    pud_table = next(step for step in m.tables.walk(TEXT).steps if step.level == Level.PUD)
    table = m.alloc_page("PMD table of the kernel image")
    entries = np.zeros(512, dtype=np.uint64)
    for block in (0, 1):
        entries[(TEXT >> 21 & 511) + block] = (0x1000 + 512 * block) << 12 | TEXT_PROT
    m.write_table(table, entries)
    m.write_entry(pud_table.paddr, table << 12 | KERNPG_TABLE)
    m.kernel_image = IMAGE
    return m


def text_entry(of: Machine, pfn: int) -> tuple[Level, int]:
    """Return level and entry of a frame in the mapping of the kernel's own image."""
    found = of.lookup_address(TEXT + (pfn - 0x1000) * PAGE_SIZE)
    assert found is not None
    return found.level, found.entry
