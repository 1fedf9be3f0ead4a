# SPDX-License-Identifier: GPL-2.0-or-later
"""Page-table entries as the kernel reads and makes them, against values of real kernels."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.linux.pgtable import KERNPG_TABLE, pfn_and_prot, pfn_entries, pfn_entry
from hibernaut.paging.entries import Entry, Level
from tests.linux.attribute_machines import machine, upper_entry
from tests.machines import GIB


@pytest.mark.parametrize(
    ("pfn", "prot", "entry"),
    [
        (0xF600, 0x8000000000000062, 0x800FFFFFF09FF062),
        (0xF601, 0x8000000000000062, 0x800FFFFFF09FE062),
        (0x400, 0x8000000000000062, 0x800FFFFFFFBFF062),
        (0xAAC8, KERNPG_TABLE, 0x000000000AAC8063),
    ],
)
def test_entries_have_the_values_seen_on_real_kernels(pfn: int, prot: int, entry: int) -> None:
    """Real 6.1 entries: frames of not-present ones inverted, a split's table put in with 0x63."""
    assert pfn_entry(pfn, prot) == entry
    assert pfn_and_prot(entry, Level.PTE) == (pfn, prot)


@given(st.integers(0, (1 << 40) - 512 * GIB), st.sampled_from([1, 512]), st.integers(0, 0xFFF), st.booleans())
def test_512_entries_at_once_are_512_entries(first: int, step: int, low: int, nx: bool) -> None:
    """The vectorised form of a split's entries equals the one-entry form."""
    prot = low | (Entry.NX if nx else 0)
    assert pfn_entries(first, step, prot).tolist() == [pfn_entry(first + i * step, prot) for i in range(512)]


def test_a_lookup_tells_what_the_levels_above_allow() -> None:
    """The nx and rw of a found entry are those of the levels above, not its own."""
    m = machine()
    found = m.lookup_address(m.vaddr(0x1000))
    assert found is not None
    assert (found.nx, found.rw) == (False, True)
    paddr, entry = upper_entry(m, 0x1000, Level.PUD)
    m.write_entry(paddr, (entry | Entry.NX) & ~Entry.RW)
    found = m.lookup_address(m.vaddr(0x1000))
    assert found is not None
    assert (found.nx, found.rw, bool(found.entry & Entry.NX)) == (True, False, True)
