# SPDX-License-Identifier: GPL-2.0-or-later
"""The page of a folio that an index has, in a dump whose `struct page` are made a folio's."""

from __future__ import annotations

import numpy as np
import pytest

from hibernaut.errors import FormatError
from hibernaut.kernel.folios import pages_within_folios
from hibernaut.kernel.kernel import Kernel
from hibernaut.memory.overlay import Overlay
from tests.kernel.stopped import StoppedKernel

pytest.importorskip("drgn", reason="drgn is not installed: pip install drgn")

HEAD = 0x5000


def with_folio(stopped: StoppedKernel, order: int) -> Kernel:
    """Return the kernel with a folio of 2^order pages at frame HEAD."""
    kernel = Kernel(stopped.memory, stopped.text)
    page = int(kernel["vmemmap"]) + HEAD * int(stopped.facts["SIZE(page)"])
    tail = page + int(stopped.facts["SIZE(page)"])
    overlay = Overlay(stopped.memory)
    flags = 1 << int(kernel["PG_head"])
    overlay.write(stopped.paddr(page + int(stopped.facts["OFFSET(page.flags)"])), flags.to_bytes(8, "little"))
    overlay.write(stopped.paddr(tail + int(stopped.facts["OFFSET(page.compound_order)"])), bytes([order]))
    return Kernel(overlay, stopped.text)


def test_each_index_has_its_own_page(kernel: StoppedKernel) -> None:
    """By the first page for each index, and for one alone of them; a page that is not a folio's is its own."""
    changed = with_folio(kernel, 2)
    heads = np.full(4, HEAD)
    assert pages_within_folios(changed, heads, np.arange(64, 68)).tolist() == [0, 1, 2, 3]
    assert pages_within_folios(changed, heads[:1], np.array([66])).tolist() == [2]
    plain = Kernel(kernel.memory, kernel.text)
    flags = plain.object("struct page", int(plain["vmemmap"]) + 64 * 0x3F88).flags.value_()
    assert not flags >> int(plain["PG_head"]) & 1
    assert pages_within_folios(plain, np.array([0x3F88]), np.array([67])).tolist() == [0]
    assert not len(pages_within_folios(plain, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)))


def test_an_impossible_folio_is_refused(kernel: StoppedKernel) -> None:
    """An order that no folio has, and a `struct page` that is not in the memory."""
    with pytest.raises(FormatError, match=r"has \d+ pages; expected a power of two"):
        pages_within_folios(with_folio(kernel, 40), np.array([HEAD]), np.array([0]))
    with pytest.raises(FormatError, match="is not in memory"):
        pages_within_folios(Kernel(kernel.memory, kernel.text), np.array([1 << 30]), np.array([0]))
