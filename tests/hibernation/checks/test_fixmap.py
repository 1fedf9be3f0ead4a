# SPDX-License-Identifier: GPL-2.0-or-later
"""`slot_empty`: the fixmap slot in the saved table."""

from __future__ import annotations

from hibernaut.hibernation import (
    hibernate,
    slot_empty,
)
from hibernaut.hibernation.ways import FixmapNoClear
from hibernaut.linux.build import build_machine
from hibernaut.linux.layout import Layout, hole_4k
from hibernaut.linux.pgtable import pfn_entry
from tests.hibernation.machines import RAM


def test_slot_is_found_in_the_saved_table_too() -> None:
    """A slot that was not zero when its table was copied is found in the image, even if it is zero afterwards."""
    machine = build_machine(Layout(RAM, holes=(hole_4k(0x801),), tables="high"))
    twin = machine.fork()
    snapshot = hibernate(twin, FixmapNoClear())
    twin.fixmap.clear_fixmap()
    assert [violation.what for violation in slot_empty(twin, snapshot)] == [
        f"slot 0 holds {pfn_entry(0x801, 0x8000000000000163):#x} in its saved table"
    ]
